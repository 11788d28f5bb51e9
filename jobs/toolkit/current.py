"""What can a task ask and report while it executes: which run is this, how far is it, was this done before?

    from jobs.toolkit.current import current_run, once, progress

Its one rule: outside a run (a plain `delay()`, a test, a shell) the same calls do nothing and raise nothing. Inside a
run, a thread that the job started without its context gets a RuntimeError that says how to pass the context on.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction

from jobs.ledger.windows import window_start
from jobs.models import LONGEST_NAME, Effect, Run
from jobs.secrets import as_key, head
from jobs.worker import context
from jobs.worker.loops import outside_loop

MOST_UNITS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """The run that the task executes, or is a step of. Times are in UTC.

    Its data window goes from `window_start` to `window_end`: from the previous due moment of its schedule to its own,
    even if the previous one was skipped. `window_start` is None if nothing was due before: for a one-off, or the first
    run after a start time.
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
    """The run that this task belongs to; None outside a run. Queries the database."""
    execution = context.of_caller()
    if execution is None:
        return None
    with outside_loop():
        run = Run.objects.select_related("schedule__policy").get(id=execution.run_id)
        return CurrentRun(run.id, run.schedule_name, run.trigger, execution.attempt, run.due_at, window_start(run))


def progress(done: int, total: int | None = None, message: str = "") -> None:
    """Report the progress of the run: `done` of `total` units, and a message. Saved about once a second.

    Raises the errors of `int()`, such as OverflowError for infinity.
    """
    if execution := context.of_caller():
        execution.tell_progress(
            progress_done=_units(done),
            progress_total=None if total is None else _units(total),
            progress_message=head(message, LONGEST_NAME),
        )


def _units(number: float) -> int:
    """The number as it fits the column: otherwise, saving the end of the run would fail, too."""
    return min(max(0, int(number)), MOST_UNITS)


def once(key: str) -> bool:
    """Whether `key` is new to this run, over all of its attempts; True outside a run.

    Call it in the transaction that has the effect, so that both commit or neither does:

        with transaction.atomic():
            if once(f"charge {customer.pk}"):
                ...

    If another process has the same key in an open transaction, this call waits for the end of that transaction.
    """
    execution = context.of_caller()
    if execution is None:
        return True
    with outside_loop(), transaction.atomic():
        return Effect.objects.get_or_create(run_id=execution.run_id, key=as_key(key, LONGEST_NAME))[1]
