"""How does the API show a run? In two sizes: a line of a list, and the whole run."""

import hashlib
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from ninja import Field, Schema

from jobs.models import TERMINAL, Attempt, Run, State
from jobs.monitoring.progress import Progress, progress_of, reason_of

UNSHOWN = ("args", "kwargs", "options", "error_text", "key")  # columns that a line leaves out


class ProgressOut(Schema):
    done: int
    total: int | None = Field(description="Null if the job named no total.")
    message: str
    steps_done: int
    steps: int = Field(description="0 if the run has no steps.")


class RunLine(Schema):
    id: UUID
    job: str
    schedule: int | None = Field(description="The id of its schedule; null without one, or if it was deleted.")
    schedule_name: str
    state: State
    is_over: bool
    reason: str = Field(description="Why it is in this state; may be empty.")
    trigger: str
    actor: str = Field(description="Who requested it; empty: its schedule.")
    queue: str
    priority: int | None
    due_at: datetime
    last_due_at: datetime = Field(description="Differs from due_at if the run stands for several due moments.")
    count: int = Field(description="The number of due moments that it stands for.")
    not_before: datetime | None
    expires_at: datetime | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    late_by_seconds: float | None
    took_seconds: float | None
    attempt: int
    worker: str
    error_class: str
    parent: UUID | None = Field(description="The run that this one repeats.")
    backfill: UUID | None


class AttemptOut(Schema):
    number: int
    outcome: str
    reason: str
    started_at: datetime | None
    ended_at: datetime
    worker: str
    error_class: str
    error_text: str


class RunOut(RunLine):
    arguments: dict[str, Any]
    positional: list[Any] = Field(description="Positional arguments of a schedule.")
    options: dict[str, Any] = Field(description="Other options of its message.")
    key: str | None = Field(description="Only the first request with a key makes a run.")
    sends: int = Field(description="How often its present attempt was sent to the broker.")
    cancel_requested: bool
    progress: ProgressOut
    error_text: str
    attempts: list[AttemptOut] = Field(description="Earlier attempts, which did not end the run.")


def line(run: Run) -> dict[str, Any]:
    """A run in a list. Reads no column of `UNSHOWN`."""
    same = ("id", "state", "trigger", "actor", "queue", "priority", "attempt", "worker", "error_class", "count")
    moments = (*("due_at", "last_due_at", "not_before", "expires_at"), *("queued_at", "started_at", "finished_at"))
    return {
        **{name: getattr(run, name) for name in (*same, *moments)},
        "job": run.task,
        "schedule": run.schedule_id,
        "schedule_name": run.schedule_name,
        "is_over": run.state in TERMINAL,
        "reason": reason_of(run),
        "late_by_seconds": _seconds(run.lateness),
        "took_seconds": _seconds(run.duration),
        "parent": run.parent_id,
        "backfill": run.backfill_id,
    }


def whole(run: Run) -> dict[str, Any]:
    """A run with all that belongs to it but its steps, logs and result, which may be long."""
    return {
        **line(run),
        "arguments": run.kwargs if isinstance(run.kwargs, dict) else {},
        "positional": run.args if isinstance(run.args, list) else [],
        "options": run.options,
        "key": run.key,
        "sends": run.sends,
        "cancel_requested": bool(run.cancel_reason),
        "progress": progress(progress_of(run)),
        "error_text": run.error_text,
        "attempts": [_attempt(each) for each in run.attempts.order_by("number")] if run.attempt > 1 else [],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    names = ("number", "outcome", "reason", "started_at", "ended_at", "worker", "error_class", "error_text")
    return {name: getattr(attempt, name) for name in names}


def _seconds(length: timedelta | None) -> float | None:
    return length.total_seconds() if length is not None else None


def progress(of: Progress) -> dict[str, Any]:
    return {name: getattr(of, name) for name in ProgressOut.model_fields}


def digest(shown: Schema) -> str:
    """Changes whenever the shown values do."""
    return hashlib.sha256(shown.model_dump_json().encode()).hexdigest()[:32]
