"""What a task can ask and tell while it executes: which run is this, how far is it, was this done before?

    from jobs.toolkit.current import current_run, once, progress

Its one rule: outside a run (a plain `delay()`, a test, a shell) the same calls do nothing and harm nothing.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction

from jobs.models import LONGEST_NAME, Effect, Run, Trigger
from jobs.schedules import calendar
from jobs.secrets import head
from jobs.worker import context

MOST_UNITS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """The run that a task is, or is a step of; times in UTC.

    Its data are those from `window_start` to `window_end`: from the previous due moment of its schedule to its own,
    also where that one was skipped. None where nothing was due before: a one-off, the first run after a start time.
    """

    id: UUID
    schedule: str
    trigger: str
    attempt: int
    due_at: datetime
    window_start: datetime | None

    @property
    def window_end(self) -> datetime:
        return self.due_at


def current_run() -> CurrentRun | None:
    """The run that this task belongs to; None outside a run. Asks the database."""
    execution = context.current()
    if execution is None:
        return None
    run = Run.objects.select_related("schedule__policy").get(id=execution.run_id)
    return CurrentRun(run.id, run.schedule_name, run.trigger, execution.attempt, run.due_at, _window_start(run))


def _window_start(run: Run) -> datetime | None:
    """Of the schedule's own runs the ledger knows the moment before, whatever the timing was then."""
    earlier = Run.objects.of_schedule(run.schedule_id or 0).filter(trigger=Trigger.SCHEDULE, due_at__lt=run.due_at)
    before: datetime | None = None
    if run.trigger == Trigger.SCHEDULE:
        before = earlier.values_list("last_due_at", flat=True).first()
    policy = getattr(run.schedule, "policy", None)
    return before or (calendar.previous(policy, run.due_at) if policy else None)


def progress(done: int, total: int | None = None, message: str = "") -> None:
    """Tell how far the run is: `done` of `total` units, and what it is at. Written down about once a second.

    Raises what `int` raises for what is no number of units, such as infinity.
    """
    if execution := context.current():
        execution.tell_progress(
            progress_done=_units(done),
            progress_total=None if total is None else _units(total),
            progress_message=head(message, LONGEST_NAME),
        )


def _units(number: float) -> int:
    """As the column holds it: what it refuses here would be refused as the run ends, and with it the end."""
    return min(max(0, int(number)), MOST_UNITS)


def once(key: str) -> bool:
    """Whether this run does what `key` names for the first time, in whichever attempt; True outside a run.

    Call it in the transaction that has the effect, and both are done or neither is:

        with transaction.atomic():
            if once(f"charge {customer.pk}"):
                ...

    In another process that is at the same effect it waits for the end of that process's transaction.
    """
    execution = context.current()
    if execution is None:
        return True
    with transaction.atomic():
        return Effect.objects.get_or_create(run_id=execution.run_id, key=_short(key))[1]


def _short(key: str) -> str:
    """The key as it fits the column; of a long one its digest, or two that begin alike would be one."""
    return key if len(key) <= LONGEST_NAME else hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
