"""Which schedules are there, and what may a program do to them? The same as a user of the admin.

Its one rule: an operation parses, calls one act or one reading function, and renders. `schedule_form` reads the
JSON of a schedule, and `schedule_shown` writes it. A schedule that a token may not see does not exist for it.
"""

from typing import Annotated, Any
from uuid import UUID, uuid4, uuid5

from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django_celery_beat.models import PeriodicTask
from ninja import Query, Router, Schema, Status
from pydantic import BaseModel, Field

from jobs.alerts import descriptions
from jobs.ledger import backfills, requests
from jobs.models import KINDS, Backfill, Run, database_now
from jobs.monitoring import history
from jobs.rules.errors import Conflict
from jobs.rules.health import Health
from jobs.rules.policies import CatchUp
from jobs.schedules import acts, preview, status, timings
from jobs.web.api import schedule_form as forms
from jobs.web.api import schedule_shown, shapes
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import MissingError, Moment, RowId, Text, actor_of, needs
from jobs.web.api.runs import KeyHeader, accepted, only, scoped
from jobs.web.api.schedule_form import Body, NewSchedule, ScheduleForm, TimingForm
from jobs.web.api.schedule_shown import ShownSchedule, WholeSchedule

VIEW, VIEW_HEALTH = "django_celery_beat.view_periodictask", "jobs.view_alert"
SHOWN_DUE = 5  # due moments of a schedule
SHOWN_MOMENTS = 200  # of the preview of a backfill
NAMESPACE = UUID("5a0c3f1e-6a7b-4a52-9d0f-9c4f3d0b8e11")  # of the ids of backfills with a key

router = Router(tags=["schedules"])
Schedules = QuerySet[PeriodicTask]


class Filters(Schema):
    enabled: bool | None = None
    paused: bool | None = None
    flagged: bool | None = Field(None, description="Whether it cannot run.")
    from_settings: bool | None = None
    job: Text | None = None
    queue: Text | None = None
    name: Text | None = Field(None, description="A part of the name, in upper or lower case.")
    health: Health | None = Field(None, description="As the last look found it.")

    def chosen(self, rows: Schedules) -> Schedules:
        for name in ("enabled", "paused", "flagged", "from_settings"):
            if (wanted := getattr(self, name)) is not None:
                condition = status.CONDITIONS[name]
                rows = rows.filter(condition if wanted else ~condition)
        if self.health is not None:
            rows = rows.filter(descriptions.has_health(self.health))
        texts = {"task": self.job, "queue": self.queue, "name__icontains": self.name}
        return rows.filter(**{name: text for name, text in texts.items() if text is not None})


# --- reading --------------------------------------------------------------------------------------------------------


@router.get("", response=Page[ShownSchedule])
@needs(VIEW)
def list_schedules(request: HttpRequest, filters: Query[Filters], paging: Query[Paging]) -> dict[str, Any]:
    """Schedules by name."""
    if filters.health is not None:
        actor_of(request).check(VIEW_HEALTH)
    found = page(request, filters.chosen(_rows(request)), paging, ["name"], lambda row: row)
    runs, now, may_see_health = status.last_runs(found["items"]), database_now(), actor_of(request).may(VIEW_HEALTH)
    shown = [
        schedule_shown.show(row, runs.get(row.last_run_id), now, may_see_health=may_see_health)
        for row in found["items"]
    ]
    return {**found, "items": shown}


class PreviewForm(ScheduleForm):
    """A schedule that need not exist. Without a job, only its timing is looked at."""

    timing: TimingForm
    number: Annotated[int, Field(ge=1, le=preview.MOST, description="Of due moments.")] = SHOWN_DUE


class Previewed(Schema):
    """What a schedule would do. Nothing is saved."""

    words: str
    due: list[Moment]
    warnings: list[str]


@router.post("/preview", response=Previewed)
@needs(VIEW)
def preview_schedule(request: HttpRequest, body: PreviewForm) -> Any:  # noqa: ARG001 - ninja passes it
    """A timing in plain words, its next due moments, and warnings. Nothing is saved."""
    columns, _ = forms.given(body, whole=False)
    row = timings.parse(columns.pop("timing"))
    columns.pop("number", None)
    schedule = PeriodicTask(**forms.changed(PeriodicTask(), columns))
    return preview.preview(row, schedule, now=database_now(), number=body.number)


@router.get("/{schedule}", response=WholeSchedule)
@needs(VIEW)
def get_schedule(request: HttpRequest, schedule: RowId) -> dict[str, Any]:
    """A schedule with its next due moments, its last run and its status."""
    return _shown(request, schedule)


class Answer(Schema):
    """What happened at a moment. `due_at` is the due moment that was meant; `before` and `after` are the nearest."""

    sentence: str
    due_at: Moment | None
    run: UUID | None
    before: Moment | None
    after: Moment | None


@router.get("/{schedule}/what-happened", response=Answer)
@needs(VIEW)
def what_happened(request: HttpRequest, schedule: RowId, at: Moment) -> dict[str, Any]:
    """What became of a moment: which run it got, or why none."""
    answer = history.what_happened(_found(request, schedule), at)
    return {**{name: getattr(answer, name) for name in Answer.model_fields}, "run": answer.run and answer.run.id}


# --- changing -------------------------------------------------------------------------------------------------------


@router.post("", response={201: WholeSchedule})
def create_schedule(request: HttpRequest, body: NewSchedule, response: HttpResponse) -> Status[Any]:
    """Create a schedule. One that cannot be computed or sent is refused."""
    schedule = PeriodicTask()
    forms.save(schedule, body, actor_of(request), whole=True)
    response["Location"] = f"{request.path}/{schedule.pk}"
    return Status(201, _shown(request, schedule.pk))


@router.patch("/{schedule}", response=WholeSchedule)
def change_schedule(request: HttpRequest, schedule: RowId, body: ScheduleForm) -> dict[str, Any]:
    """Change the given columns, also those of the policy; the others stay."""
    return _changed(request, schedule, body, whole=False)


@router.put("/{schedule}", response=WholeSchedule)
def replace_schedule(request: HttpRequest, schedule: RowId, body: NewSchedule) -> dict[str, Any]:
    """Change all columns; those that are left out get their defaults."""
    return _changed(request, schedule, body, whole=True)


@router.delete("/{schedule}", response={204: None})
def delete_schedule(request: HttpRequest, schedule: RowId) -> Status[None]:
    """Delete a schedule. Its runs stay in the ledger. One from the settings returns as long as its entry is there."""
    acts.delete(_chosen(request, schedule), actor_of(request))
    return Status(204, None)


@router.post("/{schedule}/enable", response=WholeSchedule)
def enable_schedule(request: HttpRequest, schedule: RowId) -> dict[str, Any]:
    """Enable it from now on: nothing runs for moments that are over."""
    acts.enable(_chosen(request, schedule), actor_of(request))
    return _shown(request, schedule)


@router.post("/{schedule}/disable", response=WholeSchedule)
def disable_schedule(request: HttpRequest, schedule: RowId) -> dict[str, Any]:
    """Disable it. Its unfinished runs continue."""
    acts.disable(_chosen(request, schedule), actor_of(request))
    return _shown(request, schedule)


class PauseForm(Body):
    """Without `until`, the pause lasts until a user resumes the schedule."""

    reason: Annotated[str, Field(max_length=acts.LONGEST_REASON)] = ""
    until: Moment | None = None
    catch_up: Annotated[CatchUp, Field(strict=False)] = CatchUp.NONE


UNTIL_RESUMED = PauseForm()


@router.post("/{schedule}/pause", response=WholeSchedule)
def pause_schedule(request: HttpRequest, schedule: RowId, body: PauseForm = UNTIL_RESUMED) -> dict[str, Any]:
    """Pause it. Pausing again replaces the reason, the end and the catch-up."""
    acts.pause(_chosen(request, schedule), actor_of(request), body.reason, body.until, body.catch_up.value)
    return _shown(request, schedule)


@router.post("/{schedule}/resume", response=WholeSchedule)
def resume_schedule(request: HttpRequest, schedule: RowId) -> dict[str, Any]:
    """Resume it, if it is paused."""
    acts.resume(_chosen(request, schedule), actor_of(request))
    return _shown(request, schedule)


class SkipForm(Body):
    moments: Annotated[int, Field(ge=0, le=acts.MOST_SKIPPED)]


@router.post("/{schedule}/skip", response=WholeSchedule)
def skip_due_moments(request: HttpRequest, schedule: RowId, body: SkipForm) -> dict[str, Any]:
    """Skip so many of the next due moments, replacing an earlier choice; 0 skips none."""
    acts.skip_next(_chosen(request, schedule), actor_of(request), body.moments)
    return _shown(request, schedule)


# --- runs -----------------------------------------------------------------------------------------------------------


@router.post("/{schedule}/run", response={202: shapes.RunOut, 200: shapes.RunOut})
def run_schedule(request: HttpRequest, response: HttpResponse, schedule: RowId, key: KeyHeader = None) -> Status[Any]:
    """Run it once, now: 202. The same request with the same Idempotency-Key again: 200, with the same run."""
    actor, chosen = actor_of(request), _chosen(request, schedule)
    actor.check_rows(chosen)
    return accepted(response, *only(requests.run_now(chosen, actor, scoped(key, actor))))


class BackfillForm(Body):
    start: Moment
    end: Moment
    which: Annotated[Backfill.Which, Field(strict=False)] = Backfill.Which.MISSING
    at_once: Annotated[int, Field(ge=1, le=1000)] = 1


class MomentToRun(BaseModel):
    due_at: Moment
    window_start: Moment | None


class PreviewedBackfill(BaseModel):
    """What a backfill would create now."""

    number: int = Field(description="How many runs.")
    moments: list[MomentToRun] = Field(description=f"The due moments, oldest first: at most {SHOWN_MOMENTS}.")
    left_alone: int = Field(description="Due moments that ran, will run, or may have run.")
    assumed: int = Field(description="How many lie before the timings of the schedule are known.")


class Backfilled(BaseModel):
    """A backfill, whose runs `GET /api/runs?backfill=` lists."""

    id: UUID
    number: int = Field(description="How many runs it has.")


@router.post("/{schedule}/backfill/preview", response=PreviewedBackfill)
@needs(VIEW)
def preview_backfill(request: HttpRequest, schedule: RowId, body: BackfillForm) -> dict[str, Any]:
    """The due moments that a backfill would run now."""
    seen = backfills.preview(_backfill(_found(request, schedule), body, uuid4()))
    pairs = zip(seen.moments[:SHOWN_MOMENTS], seen.starts, strict=False)
    moments = [{"due_at": moment, "window_start": start} for moment, start in pairs]
    return {"number": len(seen.moments), "moments": moments, "left_alone": seen.left_alone, "assumed": seen.assumed}


@router.post("/{schedule}/backfill", response={202: Backfilled, 200: Backfilled})
def backfill_schedule(request: HttpRequest, schedule: RowId, body: BackfillForm, key: KeyHeader = None) -> Status[Any]:
    """Run the due moments of a range in the past: 202. The same request with the same Idempotency-Key again: 200."""
    actor = actor_of(request)
    id_ = uuid5(NAMESPACE, str(scoped(key, actor))) if key else uuid4()
    asked, is_known = _backfill(_found(request, schedule), body, id_), Backfill.objects.filter(id=id_).exists()
    backfills.backfill(asked, actor)
    _check_same(asked)
    return Status(200 if is_known else 202, {"id": id_, "number": Run.objects.filter(backfill=id_).count()})


def _backfill(schedule: PeriodicTask, body: BackfillForm, id_: UUID) -> Backfill:
    return Backfill(
        id=id_, schedule=schedule, start=body.start, end=body.end, which=body.which.value, at_once=body.at_once
    )


def _check_same(asked: Backfill) -> None:
    """Refuse a key that another request has used. Raises `Conflict`."""
    asked_for = {name: getattr(asked, name) for name in ("schedule_id", "start", "end", "which", "at_once")}
    if not Backfill.objects.filter(id=asked.id, **asked_for).exists():
        raise Conflict("This Idempotency-Key belongs to another backfill: choose a new key for each request.")


# --- rows -----------------------------------------------------------------------------------------------------------


def _rows(request: HttpRequest) -> Schedules:
    """The schedules that the sender may know of, with their timings and the id of the last run."""
    seen = actor_of(request).limit(PeriodicTask.objects.all())
    return status.with_last_run(seen.select_related("policy", "condition", *KINDS), "id")


def _found(request: HttpRequest, key: int) -> Any:
    schedule = _rows(request).filter(pk=key).first()
    if schedule is None:
        raise MissingError(f"There is no schedule {key}: list the schedules at /api/schedules.")
    return schedule


def _chosen(request: HttpRequest, key: int) -> Schedules:
    """The schedule as acts take it."""
    chosen: Schedules = PeriodicTask.objects.filter(pk=_found(request, key).pk)
    return chosen


def _shown(request: HttpRequest, key: int) -> dict[str, Any]:
    schedule = _found(request, key)
    last_run = status.last_runs([schedule]).get(schedule.last_run_id)
    return {
        **schedule_shown.show(schedule, last_run, database_now(), may_see_health=actor_of(request).may(VIEW_HEALTH)),
        "due": schedule_shown.show_due(schedule, SHOWN_DUE),
    }


def _changed(request: HttpRequest, key: int, body: ScheduleForm, *, whole: bool) -> dict[str, Any]:
    with transaction.atomic():
        _chosen(request, key).select_for_update(no_key=True).first()  # before it is read: two may change it at once
        forms.save(_found(request, key), body, actor_of(request), whole=whole)
    return _shown(request, key)
