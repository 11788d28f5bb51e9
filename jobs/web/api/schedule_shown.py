"""How does the API show a schedule? In the form in which it can be sent back, with what follows from its columns.

Its one rule: it shows every row, also one that SQL has written against the rules (`schedule_form.stored`).
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django_celery_beat.models import PeriodicTask
from pydantic import BaseModel, Field, WithJsonSchema

from jobs.alerts import descriptions
from jobs.models import Policy, Run
from jobs.rules.health import Health
from jobs.schedules import status, timings
from jobs.web.api.routes import Moment
from jobs.web.api.schedule_form import COLUMNS, DURATIONS, PolicyForm, ScheduleForm, stored


class Pause(BaseModel):
    """The current pause; `until` null: until a user resumes the schedule."""

    since: Moment
    until: Moment | None
    by: str
    reason: str
    catch_up: str


class Outcome(BaseModel):
    """A run, in short."""

    id: UUID
    state: str
    reason: str
    due_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class Due(BaseModel):
    """A due moment, and why no run will start then; null if one will."""

    at: Moment
    skipped_because: str | None


class ShownPolicy(BaseModel):
    overlap: str
    catch_up: str
    catch_up_window: float
    catch_up_cap: int
    jitter: float
    remaining_runs: int | None
    pause_after_failures: int | None
    max_attempts: int
    retry_delay: float
    rerun_if_lost: bool
    soft_time_limit: int | None
    time_limit: int | None
    keep_result: bool | None
    late_after: float
    failures_allowed: int
    longest_runtime: float | None
    shortest_runtime: float | None
    longest_pause: float | None


class ShownHealth(BaseModel):
    """How it is doing, as the last look found it."""

    health: Annotated[str, WithJsonSchema({"type": "string", "enum": [each.value for each in Health]})]
    sentence: str = Field(description="What happened; empty if it is ok.")
    since: Moment | None
    run: UUID | None = Field(description="The run that shows it.")


class ShownSchedule(BaseModel):
    """A schedule. Without a policy, beat has yet to read it."""

    id: int
    name: str
    job: str
    arguments: dict[str, Any] | None
    args: list[Any] | None
    timing: dict[str, Any] | None
    words: str = Field(description="The timing in plain words.")
    enabled: bool
    description: str
    start_time: Moment | None
    expires: Moment | None
    one_off: bool
    expire_seconds: int | None
    queue: str | None
    priority: int | None
    headers: dict[str, Any] | None
    policy: ShownPolicy | None
    status: str = Field(description="Whether it runs and, if not, why.")
    next_due_at: Moment | None
    pause: Pause | None
    skip_next: int = Field(description="How many of the next due moments will be skipped.")
    source: str = Field(description="The project whose settings define it; empty if no settings do.")
    last_run: Outcome | None
    health: ShownHealth | None = Field(description="Null for who may not view alerts.")


class WholeSchedule(ShownSchedule):
    """A schedule with its next due moments."""

    due: list[Due]


def show(schedule: PeriodicTask, last_run: Run | None, now: datetime, *, may_see_health: bool = True) -> dict[str, Any]:
    """A schedule, in the form in which it can be sent back."""
    policy, row = status.policy_of(schedule), timings.of(schedule)
    shown = {
        name: getattr(schedule, COLUMNS.get(name, name))
        for name in ScheduleForm.model_fields
        if name not in {"timing", "policy"}
    }
    shown |= {name: stored(schedule, COLUMNS.get(name, name)) for name in ("arguments", "args", "headers")}
    return {
        **shown,
        "id": schedule.pk,
        "timing": None if row is None else timings.written(row),
        "words": status.in_words(schedule, now),
        "policy": policy and _rules(policy),
        "status": status.sentence(schedule, now),
        "next_due_at": policy and policy.next_due_at,
        "pause": policy and _pause(policy, now),
        "skip_next": policy.skip_next if policy else 0,
        "source": (policy.owner or "settings") if policy and policy.entry else "",
        "last_run": last_run and outcome(last_run),
        "health": _health(schedule) if may_see_health else None,
    }


def _health(schedule: PeriodicTask) -> dict[str, Any]:
    condition = descriptions.condition_of(schedule)
    return {name: getattr(condition, name) for name in ShownHealth.model_fields}


def outcome(run: Run) -> dict[str, Any]:
    """A run, in short."""
    return {name: getattr(run, name) for name in Outcome.model_fields}


def show_due(schedule: PeriodicTask, number: int) -> list[dict[str, Any]]:
    """The next due moments."""
    return [{"at": moment, "skipped_because": why or None} for moment, why in status.upcoming(schedule, number)]


def _rules(policy: Policy) -> dict[str, Any]:
    rules = {name: getattr(policy, name) for name in PolicyForm.model_fields}
    return {
        name: value.total_seconds() if name in DURATIONS and value is not None else value
        for name, value in rules.items()
    }


def _pause(policy: Policy, now: datetime) -> dict[str, Any] | None:
    pause = policy.pause
    if pause is None or not pause.covers(now):
        return None
    return {
        "since": pause.start,
        "until": pause.end,
        "by": pause.by,
        "reason": pause.reason,
        "catch_up": pause.catch_up,
    }
