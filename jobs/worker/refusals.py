"""What becomes of a run or step whose message this worker cannot take?

It knows no such task, or may not or cannot decode the message. Its one rule: the ledger hears of it at once, with the
reason and this worker's name. Beat sends the run again later, perhaps to another worker. A step fails: it has no sender
that would send it again. This happens in the worker's main process.

Limit: while the database is unavailable, a refusal is only logged. The run is then sent again after its patience.
"""

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from celery import signals
from kombu.exceptions import ContentDisallowed

from jobs.ledger import outbox, outcomes, steps
from jobs.ledger.steps import STEP_HEADER
from jobs.messages import keys
from jobs.messages.envelope import ATTEMPT_HEADER, SCHEDULE_HEADER
from jobs.models import LONGEST_REASON, Run, Step
from jobs.monitoring import strangers
from jobs.rules.errors import logged
from jobs.secrets import in_one_line
from jobs.worker.connection import on_good_connection

log = logging.getLogger(__name__)

RIVALS_EVERY = 20.0  # seconds, so that another scheduler stays live on the nodes page while it sends


@dataclass(frozen=True, slots=True)
class Named:
    """The attempt of a run that a message starts, or to which its step belongs."""

    run: UUID
    attempt: int
    step: str = ""
    task: str = ""
    schedule: Any = field(default=None, compare=False)  # the header `SCHEDULE_HEADER`

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of log lines about it."""
        parts = {"attempt": self.attempt, "task": self.task, "step": self.step}
        return {"run": str(self.run), **keys.of_schedule(self.schedule)} | {k: v for k, v in parts.items() if v}


def named_by(headers: Any) -> Named | None:
    """What the headers of a message name; None if that is no run and no step."""
    try:
        if (attempt := headers.get(ATTEMPT_HEADER)) is not None:
            return Named(UUID(headers["id"]), int(attempt), "", str(headers["task"]), headers.get(SCHEDULE_HEADER))
        if step := headers.get(STEP_HEADER):
            named = UUID(step[0]), int(step[1]), steps.key_of(step, str(headers["id"])), str(headers["task"])
            return Named(*named, headers.get(SCHEDULE_HEADER))
    except (AttributeError, LookupError, TypeError, ValueError):
        log.info("A message names no attempt of a run: %r", headers)
    return None


def refuse(message: Any, why: str) -> None:
    """Give back the run of this message, or fail its step; do nothing for the message of a plain task."""
    if (named := named_by(message.headers)) and _is_own(named):
        give_back(named, why)


def refuse_run(named: Named | None, why: str) -> None:
    """Give back the run of a message that may be forged: its own message can still start it. A step stays as it is."""
    if named and not named.step and _is_own(named):
        give_back(named, why)


def _is_own(named: Named) -> bool:
    """Whether the run or step has the task that its message names. If the database is unavailable: as if it had."""
    runs, found = Run.objects.filter(id=named.run), Step.objects.filter(id=named.step, run=named.run)
    rows: Any = found if named.step else runs
    with logged(log, "The task of run %s could not be read.", named.run, extra=named.keys):
        return bool(on_good_connection(rows.filter(task=named.task).exists))
    return True


def give_back(named: Named, why: str) -> None:
    """Let a run wait again, for another worker; its step fails."""
    log.warning("Run %s: %s", named.run, why, extra={**named.keys, "action": "refuse"})
    with logged(log, "The refusal of run %s could not be recorded.", named.run, extra=named.keys):
        on_good_connection(partial(_refuse_step if named.step else _give_back, named, why[:LONGEST_REASON]))


def _give_back(named: Named, why: str) -> None:
    outbox.give_back(named.run, named.attempt, why)


def _refuse_step(named: Named, why: str) -> None:
    steps.refuse(named.step, named.run, named.attempt, why, "Undeliverable")
    outcomes.settle(named.run, named.attempt)


def notice_rival(schedule: str, origin: str) -> None:
    """A message that names a schedule but no attempt: another scheduler sent it. Looks at one in a while."""
    if time.monotonic() < _Rivals.again_at:
        return
    _Rivals.again_at = time.monotonic() + RIVALS_EVERY
    with logged(log, "The sender of a message for the schedule %r could not be recorded.", schedule):
        on_good_connection(partial(strangers.notice, schedule, origin))


class _Rivals:
    again_at = 0.0  # of this process, by its monotonic clock


def sentence(worker: str, error: Exception | None) -> str:
    """Why this worker takes no message that raises this error."""
    what = in_one_line(error, LONGEST_REASON) if error else "it is no message of Celery"
    advice = ": use json, or add the type to accept_content" if isinstance(error, ContentDisallowed) else ""
    return f"{worker} cannot take its message, {what}{advice}"


def _on_unknown(sender: Any, message: Any, name: str, **_: Any) -> None:
    what = f"{sender.hostname} knows no task {name}"
    refuse(message, f"{what}: deploy the code to it, or let another worker take the queue")


def _on_rejected(sender: Any, message: Any, exc: Exception | None, **_: Any) -> None:
    refuse(message, sentence(sender.hostname, exc))


def connect() -> None:
    """Listen to Celery."""
    signals.task_unknown.connect(_on_unknown, dispatch_uid="jobs.worker.unknown")
    signals.task_rejected.connect(_on_rejected, dispatch_uid="jobs.worker.rejected")
