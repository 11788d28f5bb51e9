"""Which programs outside may start a job by a webhook, and what have they sent? The same as in the admin.

Its one rule: keys stay secret. A source names the variable that holds its keys, and secrets in bodies are masked.
A limited token meets only the sources of its jobs, and the webhooks of the runs that it may see.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.db.models import QuerySet
from django.db.models.functions import Length
from django.http import HttpRequest, HttpResponse
from ninja import Field, Query, Router, Schema, Status
from pydantic import WithJsonSchema

from jobs.ledger import webhooks
from jobs.models import LONGEST_NAME, Run, Webhook, WebhookSource
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import In, MissingError, RowId, actor_of, needs

router = Router(tags=["webhooks"])
received = Router(tags=["webhooks"])

Form = Annotated[str, WithJsonSchema({"type": "string", "enum": WebhookSource.Form.values})]
Slug = Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[-a-zA-Z0-9_]+$")]
Keys = Annotated[
    str, Field(max_length=100, description="The NAME of the variable WEBHOOK_KEYS_NAME that holds its keys.")
]
Job = Annotated[str, Field(max_length=LONGEST_NAME, description="It takes the argument `webhook`.")]


class SourceOut(Schema):
    id: int
    name: str = Field(description="The end of its address: /hooks/NAME.")
    form: Form
    keys: str = Field(description="The NAME of the variable WEBHOOK_KEYS_NAME that holds its keys.")
    job: str
    arguments: dict[str, Any]
    is_enabled: bool
    created_at: datetime
    refused_at: datetime | None = Field(description="When it last sent an invalid request.")
    refused_reason: str


class SourceForm(In):
    """The columns that a request gives; a change leaves the others alone."""

    name: Slug = ""
    form: WebhookSource.Form = WebhookSource.Form.STANDARD
    keys: Keys = ""
    job: Job = ""
    arguments: dict[str, Any] = Field({}, description="Of the job, besides `webhook`.")
    is_enabled: bool = True


class NewSource(SourceForm):
    """All columns of a source; one that the request leaves out has the default."""

    name: Slug
    keys: Keys
    job: Job


class WebhookLine(Schema):
    id: UUID
    source: int | None = Field(description="Null if the source was deleted.")
    source_name: str
    event: str = Field(description="Its identity.")
    content_type: str
    size: int = Field(description="Of the body, in bytes.")
    received_at: datetime
    run: UUID


class WebhookOut(WebhookLine):
    headers: dict[str, str] = Field(description="Those that describe the event.")
    body: str = Field(description=f"At most {webhooks.LONGEST_SHOWN:,} characters, with secrets masked.")


class WebhookFilters(Schema):
    source: RowId | None = None


@router.get("", response=Page[SourceOut])
@needs("jobs.view_webhooksource")
def list_webhook_sources(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Sources of webhooks by name."""
    return page(request, _sources(request), paging, ["name"], shown)


@router.post("", response={201: SourceOut})
def create_webhook_source(request: HttpRequest, response: HttpResponse, body: NewSource) -> Any:
    """Create a source. One whose webhooks could start nothing is refused."""
    source = WebhookSource(**body.dict())
    webhooks.save(source, actor_of(request))
    response["Location"] = f"{request.path}/{source.pk}"
    return Status(201, shown(_found(request, source.pk).get()))


@router.get("/{source}", response=SourceOut)
@needs("jobs.view_webhooksource")
def get_webhook_source(request: HttpRequest, source: RowId) -> Any:
    """One source, and when and why it last refused a request."""
    return shown(_found(request, source).get())


@router.patch("/{source}", response=SourceOut)
def change_webhook_source(request: HttpRequest, source: RowId, body: SourceForm) -> Any:
    """Change the given columns; the others stay."""
    webhooks.change(_found(request, source), body.dict(exclude_unset=True), actor_of(request))
    return shown(_found(request, source).get())


@router.delete("/{source}", response={204: None})
def delete_webhook_source(request: HttpRequest, source: RowId) -> Any:
    """Delete a source. What it has sent stays with its runs."""
    webhooks.delete(_found(request, source), actor_of(request))
    return Status(204, None)


@received.get("", response=Page[WebhookLine])
@needs("jobs.view_webhook")
def list_webhooks(request: HttpRequest, filters: Query[WebhookFilters], paging: Query[Paging]) -> Any:
    """Received webhooks without their bodies, the latest first."""
    rows = _webhooks(request).defer("body")
    if filters.source is not None:
        rows = rows.filter(source=filters.source)
    return page(request, rows, paging, ["-id"], line)


@received.get("/{webhook}", response=WebhookOut)
@needs("jobs.view_webhook")
def get_webhook(request: HttpRequest, webhook: UUID) -> Any:
    """One webhook with its headers and the beginning of its body."""
    row = _webhooks(request).filter(pk=webhook).first()
    if row is None:
        raise MissingError(f"There is no webhook {webhook}: it is deleted together with its run.")
    return whole(row)


def _sources(request: HttpRequest) -> QuerySet[WebhookSource]:
    return actor_of(request).limit(WebhookSource.objects.all())


def _found(request: HttpRequest, key: int) -> QuerySet[WebhookSource]:
    """The source as acts take it. Raises `MissingError`."""
    found = _sources(request).filter(pk=key)
    if not found.exists():
        raise MissingError(f"There is no source {key}: list the sources at /api/webhook-sources.")
    return found


def with_size() -> QuerySet[Any]:
    """All webhooks, with the size of their bodies in bytes."""
    return Webhook.objects.annotate(size=Length("body"))


def _webhooks(request: HttpRequest) -> QuerySet[Any]:
    runs, rows = Run.objects.all(), with_size()
    seen = actor_of(request).limit(runs)
    return rows if seen is runs else rows.filter(run__in=seen)


def shown(row: WebhookSource) -> dict[str, Any]:
    """A source in JSON."""
    return {name: getattr(row, name) for name in SourceOut.model_fields}


def line(row: Any) -> dict[str, Any]:
    """A webhook in JSON without its headers and its body. The row has its `size`, as those of `with_size`."""
    same = ("id", "source_name", "event", "content_type", "size", "received_at")
    return {**{name: getattr(row, name) for name in same}, "source": row.source_id, "run": row.run_id}


def whole(row: Any) -> dict[str, Any]:
    """A webhook in JSON with its headers and the beginning of its body."""
    return {**line(row), "headers": row.headers, "body": webhooks.body_of(row)}
