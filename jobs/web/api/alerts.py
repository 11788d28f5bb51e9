"""Which changes of health were there, who was told, and about what are people told nothing for a time?

Its one rule: a token that is limited to some schedules meets only their alerts and silences.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse
from django_celery_beat.models import PeriodicTask
from ninja import Field, Query, Router, Schema, Status
from pydantic import WithJsonSchema

from jobs.alerts import acts, descriptions
from jobs.models import LONGEST_REASON, Alert, Notice, Silence, database_now
from jobs.rules.health import Health
from jobs.web.api.channels import Patterns
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import In, MissingError, Moment, RowId, actor_of, needs

router = Router(tags=["alerts"])
silences = Router(tags=["alerts"])

HealthName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in Health]})]
NoticeState = Annotated[str, WithJsonSchema({"type": "string", "enum": Notice.State.values})]
PhaseName = Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in descriptions.Phase]})]


class NoticeOut(Schema):
    channel: str
    state: NoticeState
    done_at: datetime | None
    error: str = Field(description="Why it could not be sent, or is sent no more.")


class AlertOut(Schema):
    id: int
    at: datetime = Field(description="When the change was seen.")
    schedule: int | None = Field(description="Null for a part of the system, or if the schedule was deleted.")
    name: str = Field(description="The name of the schedule then, or of the part.")
    job: str
    before: HealthName
    health: HealthName
    since: datetime
    expected: str
    sentence: str = Field(description="What happened.")
    count: int = Field(description="How often in a row.")
    due_at: datetime | None
    run: UUID | None
    notices: list[NoticeOut] = Field(description="Which channels are told, for who may view channels.")


class AlertFilters(Schema):
    schedule: RowId | None = None
    health: Health | None = None
    since: Moment | None = Field(None, description="Seen at this moment or later.")
    until: Moment | None = Field(None, description="Seen before this moment.")

    def chosen(self, rows: QuerySet[Alert]) -> QuerySet[Alert]:
        wanted = {"schedule": self.schedule, "health": self.health, "at__gte": self.since, "at__lt": self.until}
        return rows.filter(**{name: value for name, value in wanted.items() if value is not None})


class SilenceOut(Schema):
    id: int
    schedule: int | None
    patterns: list[str]
    about: str = Field(description="What it is about, in words.")
    phase: PhaseName
    starts_at: datetime
    ends_at: datetime
    reason: str
    created_by: str
    created_at: datetime


class SilenceForm(In):
    """Without a schedule and patterns, it is about everything, the system too. Without a start, it begins now."""

    schedule: RowId | None = None
    patterns: Patterns = []
    starts_at: Moment | None = None
    ends_at: Moment = Field(description=f"At most {acts.LONGEST_SILENCE.days} days after its start.")
    reason: str = Field("", max_length=LONGEST_REASON)


class SilenceFilters(Schema):
    schedule: RowId | None = None
    phase: descriptions.Phase | None = None


@router.get("", response=Page[AlertOut])
@needs("jobs.view_alert")
def list_alerts(request: HttpRequest, filters: Query[AlertFilters], paging: Query[Paging]) -> Any:
    """Changes of health, the latest first."""
    return page(request, filters.chosen(_alerts(request)), paging, ["-id"], _alert)


@router.get("/{alert}", response=AlertOut)
@needs("jobs.view_alert")
def get_alert(request: HttpRequest, alert: RowId) -> Any:
    """One change of health."""
    row = _alerts(request).filter(pk=alert).first()
    if row is None:
        raise MissingError(f"There is no alert {alert}: it was deleted, or never existed.")
    return _alert(row)


@silences.get("", response=Page[SilenceOut])
@needs("jobs.view_silence")
def list_silences(request: HttpRequest, filters: Query[SilenceFilters], paging: Query[Paging]) -> Any:
    """Silences, the latest first."""
    rows, now = _silences(request), database_now()
    if filters.schedule is not None:
        rows = rows.filter(schedule=filters.schedule)
    if filters.phase is not None:
        rows = rows.filter(descriptions.in_phase(now)[filters.phase])
    return page(request, rows, paging, ["-id"], lambda row: _silence(row, now))


@silences.post("", response={201: SilenceOut})
def create_silence(request: HttpRequest, response: HttpResponse, body: SilenceForm) -> Any:
    """Send no message about some schedules until an end. Problems that persist are reported then."""
    given = body.dict(exclude={"schedule"}, exclude_none=True)
    silence = Silence(**given, schedule=None if body.schedule is None else _schedule(request, body.schedule))
    acts.save_silence(silence, actor_of(request))
    response["Location"] = f"{request.path}/{silence.pk}"
    return Status(201, _silence(_found(request, silence.pk).get(), database_now()))


@silences.get("/{silence}", response=SilenceOut)
@needs("jobs.view_silence")
def get_silence(request: HttpRequest, silence: RowId) -> Any:
    """One silence."""
    return _silence(_found(request, silence).get(), database_now())


@silences.post("/{silence}/end", response={200: SilenceOut, 204: None})
def end_silence(request: HttpRequest, silence: RowId) -> Any:
    """End a silence now. One that has not begun is deleted: 204."""
    found = _found(request, silence)
    acts.end_silences(found, actor_of(request))
    row = found.first()
    return Status(204, None) if row is None else Status(200, _silence(row, database_now()))


@silences.delete("/{silence}", response={204: None})
def delete_silence(request: HttpRequest, silence: RowId) -> Any:
    """Delete a silence, also one that is over."""
    acts.delete_silences(_found(request, silence), actor_of(request))
    return Status(204, None)


def _alerts(request: HttpRequest) -> QuerySet[Alert]:
    rows, actor = _seen(request, Alert.objects.all()), actor_of(request)
    told = Notice.objects.select_related("channel").order_by("id")
    may_see = actor.may("jobs.view_channel") and not (actor.token and actor.token.is_limited)
    return rows.prefetch_related(Prefetch("notices", told if may_see else told.none(), to_attr="told"))


def _silences(request: HttpRequest) -> QuerySet[Silence]:
    return _seen(request, Silence.objects.select_related("schedule"))


def _seen(request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
    every = PeriodicTask.objects.all()
    seen = actor_of(request).limit(every)
    return rows if seen is every else rows.filter(schedule__in=seen)


def _schedule(request: HttpRequest, key: int) -> PeriodicTask:
    schedule: PeriodicTask | None = actor_of(request).limit(PeriodicTask.objects.all()).filter(pk=key).first()
    if schedule is None:
        raise MissingError(f"There is no schedule {key}: list the schedules at /api/schedules.")
    return schedule


def _found(request: HttpRequest, key: int) -> QuerySet[Silence]:
    """The silence as acts take it. Raises `MissingError`."""
    found = _silences(request).filter(pk=key)
    if not found.exists():
        raise MissingError(f"There is no silence {key}: list the silences at /api/silences.")
    return found


def _alert(row: Any) -> dict[str, Any]:
    same = {name: getattr(row, name) for name in AlertOut.model_fields if name not in {"schedule", "notices"}}
    return {**same, "schedule": row.schedule_id, "notices": [_notice(each) for each in row.told]}


def _notice(row: Notice) -> dict[str, Any]:
    return {"channel": row.channel.name, "state": row.state, "done_at": row.done_at, "error": row.error}


def _silence(row: Silence, now: datetime) -> dict[str, Any]:
    same = ("id", "patterns", "starts_at", "ends_at", "reason", "created_by", "created_at")
    words = {"about": descriptions.about(row), "phase": descriptions.phase(row, now)}
    return {**{name: getattr(row, name) for name in same}, "schedule": row.schedule_id, **words}
