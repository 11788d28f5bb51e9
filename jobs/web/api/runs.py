"""Which runs are there, and what may a program do with them? The same as a user of the admin.

Its one rule: a request that is repeated with the same Idempotency-Key makes one run, also if both arrive at once. A
user's keys are apart from those of other users and of code.
"""

from datetime import timedelta
from typing import Annotated, Any, cast
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.utils.cache import get_conditional_response
from django.utils.http import quote_etag
from ninja import Field, Header, Query, Router, Schema, Status

from jobs.ledger import requests
from jobs.ledger.requests import Requested, RunOptions
from jobs.models import ACTIVE, Run, RunQuerySet, State, Trigger
from jobs.models.audit import Actor
from jobs.monitoring import search, waiting
from jobs.rules.errors import Conflict
from jobs.web.api import shapes
from jobs.web.api.lists import LARGEST_PAGE, Page, Paging, page
from jobs.web.api.routes import In, Key, MissingError, Moment, RowId, Text, actor_of, needs

LONGEST_WAIT = 60  # seconds
LONGEST_DELAY = 366 * 86_400  # seconds

router = Router(tags=["runs"])
KeyHeader = Annotated[Key | None, Header(alias="Idempotency-Key")]


class RunFilters(Schema):
    state: list[State] = []
    trigger: list[Trigger] = []
    schedule: RowId | None = None
    job: Text | None = None
    queue: Text | None = None
    node: Text | None = Field(None, description="The worker.")
    actor: Text | None = Field(None, description="Who requested it.")
    error: Text | None = Field(None, description="The class of its error, such as ValueError.")
    backfill: UUID | None = None
    parent: UUID | None = Field(None, description="The run that it repeats.")
    since: Moment | None = Field(None, description="Created at this moment or later.")
    until: Moment | None = Field(None, description="Created before this moment.")


class NewRun(In):
    job: Text
    arguments: dict[str, Any] = Field({}, description="By name, as GET /api/jobs/{name} describes them.")
    key: Key | None = Field(None, description="The same as the header Idempotency-Key.")
    delay: float | None = Field(None, ge=0, le=LONGEST_DELAY, description="Seconds until it may start.")
    at: Moment | None = Field(None, description="The moment from which it may start.")
    priority: int | None = Field(None, ge=0, le=255)
    queue: Text = ""


class Chosen(In):
    runs: list[UUID] = Field(min_length=1, max_length=LARGEST_PAGE)


class CancelledOut(Schema):
    ended: int = Field(description="How many unstarted runs have ended.")
    asked: int = Field(description="How many running runs were asked to end.")


class RefusedOut(Schema):
    run: UUID
    detail: str


class RequestedOut(Schema):
    runs: list[shapes.RunLine]
    refused: list[RefusedOut]


@router.get("", response=Page[shapes.RunLine])
@needs("jobs.view_run")
def list_runs(request: HttpRequest, filters: Query[RunFilters], paging: Query[Paging]) -> Any:
    """Runs, newest first."""
    values = filters.dict()
    rows = search.find(actor_of(request), actor_name=values.pop("actor"), **values)
    with search.patient():
        return page(request, rows.defer(*shapes.UNSHOWN), paging, ["-id"], shapes.line)


@router.post("", response={202: shapes.RunOut, 200: shapes.RunOut})
def start_run(
    request: HttpRequest,
    response: HttpResponse,
    body: NewRun,
    idempotency_key: KeyHeader = None,
) -> Any:
    """Start a run of a job: 202. The same request with the same key again: 200, with the same run."""
    actor = actor_of(request)
    key = idempotency_key or body.key
    delay = None if body.delay is None else timedelta(seconds=body.delay)
    options = RunOptions(key=scoped(key, actor), delay=delay, at=body.at, priority=body.priority, queue=body.queue)
    run, is_new = requests.start(body.job, body.arguments, actor, options)
    if not (is_new or _is_same(run, body)):
        raise Conflict("A request with this key had other content: choose another key.")
    return accepted(response, run, is_new)


@router.post("/cancel", response=CancelledOut)
def cancel_runs(request: HttpRequest, body: Chosen) -> Any:
    """Cancel several runs. Those that have ended stay as they are."""
    actor = actor_of(request)
    ended, asked = requests.cancel(_rows(actor).filter(id__in=body.runs), actor)
    return {"ended": ended, "asked": asked}


@router.post("/retry", response={202: RequestedOut})
def retry_runs(request: HttpRequest, body: Chosen, idempotency_key: KeyHeader = None) -> Any:
    """Repeat several runs that have ended, each with the same message as a new run, and once for each key."""
    actor = actor_of(request)
    requested = requests.retry(_rows(actor).filter(id__in=body.runs), actor, scoped(idempotency_key, actor))
    refused = [{"run": run.id, "detail": why} for run, why in requested.refused]
    return Status(202, {"runs": [shapes.line(run) for run in requested.runs + requested.repeated], "refused": refused})


@router.get("/{run}", response={200: shapes.RunOut, 304: None})
@needs("jobs.view_run")
def get_run(
    request: HttpRequest,
    response: HttpResponse,
    run: UUID,
    wait: Annotated[int, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the end of the run.")] = 0,
) -> Any:
    """One run. With `wait`, the answer comes when the run has ended or the time is up, at once if too many wait."""
    actor = actor_of(request)
    found = run_of(actor, run)
    if wait and found.state in ACTIVE and waiting.until_over(run, wait):
        found = run_of(actor, run)
    shown = shapes.RunOut.model_validate(shapes.whole(found))
    response["ETag"] = f"W/{quote_etag(shapes.digest(shown))}"
    unchanged = get_conditional_response(request, response["ETag"])
    return Status(304, None) if unchanged is not None and unchanged.status_code == 304 else shown


@router.post("/{run}/cancel", response=shapes.RunOut)
def cancel_run(request: HttpRequest, run: UUID) -> Any:
    """Cancel one run: an unstarted one ends at once, a running one is asked to end. 409 if it has ended."""
    actor = actor_of(request)
    found = run_of(actor, run)
    if not any(requests.cancel(_rows(actor).filter(id=run), actor)):
        raise Conflict(f"This run cannot be cancelled: it has ended as {run_of(actor, run).state}.")
    found.refresh_from_db()
    return shapes.whole(found)


@router.post("/{run}/retry", response={202: shapes.RunOut, 200: shapes.RunOut})
def retry_run(request: HttpRequest, response: HttpResponse, run: UUID, idempotency_key: KeyHeader = None) -> Any:
    """Repeat a run that has ended, with its message, due moment and data window: 202. The same key again: 200."""
    actor = actor_of(request)
    found = run_of(actor, run)
    actor.check_may(found.task, schedule=found.schedule_id)
    return accepted(response, *only(requests.retry([found], actor, scoped(idempotency_key, actor))))


def run_of(actor: Actor, run: UUID) -> Run:
    """The run, if the actor may see it. Raises `MissingError`."""
    found = _rows(actor).filter(id=run).first()
    if found is None:
        raise MissingError(f"There is no run {run}: it was deleted, never existed, or is hidden from this token.")
    return found


def accepted(response: HttpResponse, run: Run, is_new: bool) -> Status[Any]:
    """202 with a new run, 200 with the run of an earlier request; its address is in the header Location."""
    response["Location"] = address_of(run)
    return Status(202 if is_new else 200, shapes.whole(run))


def only(requested: Requested) -> tuple[Run, bool]:
    """The one requested run, and whether it is new. Raises `Conflict` with the reason of its refusal."""
    for _, why in requested.refused:
        raise Conflict(f"No run was started: {why}.")
    return (requested.runs or requested.repeated)[0], bool(requested.runs)


def scoped(key: str | None, actor: Actor) -> str | None:
    """The key of a request in the ledger, which has one space of keys for all users and code."""
    return key and f"api {actor.user.pk}: {key}"


def _is_same(run: Run, body: NewRun) -> bool:
    """Whether a request had the content of this run. PostgreSQL writes 1e23 in another form, so it compares, too."""
    same = Run.objects.filter(id=run.id, kwargs=body.arguments)
    is_same = (run.queue, run.priority) == (body.queue, body.priority)
    return is_same and (run.kwargs == body.arguments or same.exists())


def address_of(run: Run) -> str:
    return f"/api/runs/{run.id}"


def _rows(actor: Actor) -> RunQuerySet:
    return cast("RunQuerySet", actor.limit(Run.objects.all()))
