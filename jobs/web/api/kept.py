"""What else is kept for people to read? Backfills, acts, messages set aside, mail, entries of feeds, measurements."""

from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Annotated, Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest
from django_celery_beat.models import PeriodicTask
from ninja import Field, Query, Router, Schema
from pydantic import WithJsonSchema

from jobs.models import Backfill, Delivery, FeedEntry, Measurement, Run, SetAside
from jobs.models.audit import Act, AuditEntry, Door, Kind
from jobs.monitoring.progress import with_counts
from jobs.rules.errors import Forbidden
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import actor_of, needs

router = Router(tags=["kept"])


class BackfillOut(Schema):
    id: UUID
    schedule: int
    start: datetime
    end: datetime
    which: Backfill.Which
    at_once: int
    actor: str
    created_at: datetime
    runs: int = Field(description="How many runs it has.")
    ended: int = Field(description="How many of them have ended.")


class ActOut(Schema):
    id: int
    at: datetime
    actor: str
    door: Door
    token: str = Field(description="The name of the API token; empty without one.")
    act: Act
    kind: Annotated[
        str, WithJsonSchema({"type": "string", "enum": Kind.values}), Field(description="What it was done to.")
    ]
    key: str
    name: str
    summary: str
    before: dict[str, Any] | None = Field(description="The changed columns before; null for a new row.")
    after: dict[str, Any] | None = Field(description="The changed columns after; null for a deleted row.")


class SetAsideOut(Schema):
    digest: str
    why: str
    first_at: datetime
    last_at: datetime
    times: int
    queue: str
    node: str
    size: int = Field(description="In bytes.")
    excerpt: str = Field(description="Its beginning, with secrets masked.")


class DeliveryOut(Schema):
    id: UUID = Field(description="The left part of its Message-ID.")
    run: UUID
    address: str
    state: Annotated[
        str,
        WithJsonSchema({"type": "string", "enum": Delivery.State.values}),
        Field(description="“sending” means that it is in doubt."),
    ]
    reason: str
    begun_at: datetime


class FeedEntryOut(Schema):
    id: int
    feed: str
    guid: str
    title: str
    link: str
    published_at: datetime | None
    imported_at: datetime


class MeasurementOut(Schema):
    id: int
    dataset: str
    at: datetime
    key: str
    column: str
    value: float | None = Field(description="Null for a value that JSON cannot express, such as infinity.")
    loaded_at: datetime


@router.get("/backfills", response=Page[BackfillOut])
@needs("jobs.view_backfill")
def list_backfills(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Backfills with their progress, the latest first. A limited token sees those of its schedules."""
    schedules = PeriodicTask.objects.all()
    seen = actor_of(request).limit(schedules)
    rows = Backfill.objects.all() if seen is schedules else Backfill.objects.filter(schedule__in=seen)
    return page(request, with_counts(rows), paging, ["-created_at", "-id"], _backfill)


@router.get("/acts", response=Page[ActOut])
@needs("jobs.view_auditentry")
def list_acts(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Who did what, through which door, the latest first. Not for a limited token, which would see other schedules."""
    _refuse_limited(request)
    return _page(request, paging, AuditEntry.objects.all(), ActOut, ["-id"])


@router.get("/set-aside", response=Page[SetAsideOut])
@needs("jobs.view_setaside")
def list_set_aside(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Items that workers removed from the broker unexecuted, the latest first. Not for a limited token."""
    _refuse_limited(request)
    return _page(request, paging, SetAside.objects.all(), SetAsideOut, ["-last_at", "-digest"])


@router.get("/deliveries", response=Page[DeliveryOut])
@needs("jobs.view_delivery")
def list_deliveries(request: HttpRequest, paging: Query[Paging]) -> Any:
    """The outcome of each message to an address, the latest first. A limited token sees those of its runs."""
    rows, runs = Delivery.objects.all(), Run.objects.all()
    seen = actor_of(request).limit(runs)
    rows = rows if seen is runs else rows.filter(run__in=seen)
    return _page(request, paging, rows, DeliveryOut, ["-begun_at", "-id"])


@router.get("/feed-entries", response=Page[FeedEntryOut])
@needs("jobs.view_feedentry")
def list_feed_entries(request: HttpRequest, paging: Query[Paging]) -> Any:
    """The entries of imported feeds, the latest first."""
    return _page(request, paging, FeedEntry.objects.all(), FeedEntryOut, ["-id"])


@router.get("/measurements", response=Page[MeasurementOut])
@needs("jobs.view_measurement")
def list_measurements(request: HttpRequest, paging: Query[Paging]) -> Any:
    """The values that `jobs.etl` has loaded, the latest first."""
    return _page(request, paging, Measurement.objects.all(), MeasurementOut, ["-id"])


def _refuse_limited(request: HttpRequest) -> None:
    """Refuse a limited token rows that may be those of other jobs. Raises `Forbidden`."""
    token = actor_of(request).token
    if token is not None and token.is_limited:
        raise Forbidden(f"The token “{token.name}” is limited to some jobs or schedules: use one that is not.")


def _backfill(row: Any) -> dict[str, Any]:
    same = ("id", "start", "end", "which", "at_once", "actor", "created_at")
    return {
        **{name: getattr(row, name) for name in same},
        "schedule": row.schedule_id,
        "runs": row.total,
        "ended": row.over,
    }


def _page(
    request: HttpRequest, paging: Paging, rows: QuerySet[Any], out: type[Schema], order: Sequence[str]
) -> dict[str, Any]:
    def show(row: Any) -> dict[str, Any]:
        values = {name: getattr(row, "run_id" if name == "run" else name) for name in out.model_fields}
        return {name: value if _is_json(value) else None for name, value in values.items()}

    return page(request, rows, paging, order, show)


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or isfinite(value)
