"""How is a run created? As a plain row, because beat may create thousands in a second."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from jobs.messages.baggage import with_headers
from jobs.messages.message import Message
from jobs.models import SENDING, State, Trigger, new_run_id


@dataclass(slots=True, kw_only=True)
class NewRun:
    """A run as it is inserted; missing columns get their default."""

    schedule_id: int | None
    schedule_name: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int | None
    options: dict[str, Any]
    due_at: datetime
    last_due_at: datetime
    not_before: datetime | None
    window_start: datetime | None = None
    trigger: str = Trigger.SCHEDULE.value
    actor: str = ""
    key: str | None = None
    backfill_id: UUID | None = None
    parent_id: UUID | None = None
    state: str = State.WAITING.value
    reason: str = ""
    count: int = 1
    expires_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 1
    sends: int = 0
    id: UUID = field(default_factory=new_run_id)


def new_run(schedule: int | None, name: str, message: Message, due_at: datetime, now: datetime) -> NewRun:
    """A run, not saved yet. Its creator sends it within `SENDING`; after that, any beat may."""
    return NewRun(
        schedule_id=schedule,
        schedule_name=name,
        task=message.task,
        args=message.args,
        kwargs=message.kwargs,
        queue=message.queue,
        priority=message.priority,
        options=with_headers(message.options),
        due_at=due_at,
        last_due_at=due_at,
        not_before=now + SENDING,
    )


def expires_at(seconds: int | None, start_at: datetime) -> datetime | None:
    """The expiry of a run, counted from when it may start, so that a moment caught up late still has its full time."""
    return start_at + timedelta(seconds=seconds) if seconds else None
