"""What makes a Celery task a job: it may start an attempt of a run only once, and its end is written into the ledger.

Its one rule: the ledger is asked before the body runs, and the answer "somebody else has it" ends the message, not the
run. Tasks that belong to no run (plain `delay()`) pass untouched and cost nothing.

The base of every task by the application in project/celery.py: nothing needs to be imported to be a job.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from traceback import format_exception
from typing import Any, TypeVar
from uuid import UUID

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined] # new in billiard 4.3
from celery import signals, states
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, TimeLimitExceeded, WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.utils.time import maybe_make_aware
from celery.worker.state import revoked
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from psycopg.pq import TransactionStatus

from jobs.ledger import outcomes, steps
from jobs.ledger.steps import STEP_HEADER
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import LONGEST_NAME, UNSTARTED, Attempt, Run, State, Step, lease
from jobs.rules import policies
from jobs.worker import finish, pulse

log = logging.getLogger(__name__)
T = TypeVar("T")

_here = ""  # the node name of the worker that this process belongs to


# Names of the states that a task chose itself by raising, with the state and the sentence the ledger gives them.
CHOSEN = {
    states.IGNORED: (State.SUCCEEDED, "the task ended itself by raising Ignore"),
    states.REJECTED: (State.FAILED, "the task ended itself by raising Reject"),
}


class Job(DjangoTask):  # type: ignore[type-arg] # generic for the type checker only
    abstract = True
    Request = "jobs.worker.consumer:Request"

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """The start guard. Raises `Ignore` when this attempt was started, expired, cancelled or rescued before."""
        if self.request.get(ATTEMPT_HEADER) is not None or self.request.get(STEP_HEADER) is not None:
            _start(self.request, task_id)
        super().before_start(task_id, args, kwargs)

    def apply_async(  # type: ignore[override] # options are passed through as they come
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        """As Celery's, but `self.retry()` of a run waits in the ledger: messages with an ETA may be repeated.

        That of a step is sent when its body is over, and with it whatever transaction it was called in.
        """
        publish = partial(super().apply_async, args, kwargs, task_id=task_id, **options)
        held = pulse.of(self.request) if options.get("retries") else None
        if held is None or held.task_id != task_id:
            return publish()
        delay = _delay(options)  # what is no length of time fails in the task
        again = partial(_retry, held, list(args or ()), kwargs or {}, delay, options)
        held.retry = partial(_send_again, held, publish) if held.is_step else again
        return self.AsyncResult(held.task_id)

    def replace(self, sig: Any) -> Any:
        """As Celery's; what is undone with a transaction around it is told from what a task merely set off."""
        if held := pulse.of(self.request):
            held.replacing = True
        return super().replace(sig)


def _start(request: Any, task_id: str) -> None:
    worker = f"{str(request.hostname)[: LONGEST_NAME - 20]} ({os.getpid()})"
    attempt, step = request.get(ATTEMPT_HEADER), request.get(STEP_HEADER)
    try:
        if attempt is not None:
            held = pulse.Held(task_id, UUID(task_id), int(attempt))
            started = _on_a_good_connection(partial(Run.objects.start, held.run_id, held.attempt, worker))
        else:
            held = pulse.Held(task_id, UUID(step[0]), int(step[1]), is_step=True)
            started = _patiently(partial(steps.start, task_id, held.run_id, held.attempt, worker))
    except (IndexError, TypeError, ValueError) as error:
        raise Ignore(f"This message names no attempt of a run: {task_id!r}, {attempt!r}, {step!r}") from error
    except DatabaseError as error:
        log.warning("Run %s is not started: the ledger cannot be reached. It is sent again later.", task_id)
        raise Ignore("The ledger cannot be reached.") from error
    if not started:
        log.info("Attempt %s of run %s is not to be started.", held.attempt, held.run_id, extra={"run": task_id})
        raise Ignore("This attempt was started before, or is no longer wanted.")
    request.held = held
    pulse.hold(held)


def _delay(options: dict[str, Any]) -> timedelta:
    countdown, eta = options.get("countdown") or 0, options.get("eta")
    delay = maybe_make_aware(eta) - timezone.now() if eta else timedelta(seconds=countdown)
    return min(delay, policies.LONGEST_COUNTDOWN)


def _retry(held: pulse.Held, args: Any, kwargs: Any, delay: timedelta, options: dict[str, Any]) -> None:
    """Keep what the task asked for by `self.retry()` as the next attempt of its run."""
    pulse.write_news(held)
    run = Run.objects.get(id=held.run_id)
    run.attempt = held.attempt
    reason = f"the task asked to be run again in {delay.total_seconds():.0f} s"
    kept = {name: options[name] for name in ("retries", "time_limit", "soft_time_limit") if options.get(name)}
    changes = {"args": args, "kwargs": kwargs, "options": run.options | kept}
    changes |= {name: options[name] for name in ("queue", "priority") if isinstance(options.get(name), (str, int))}
    if run.return_to_waiting(Attempt.Outcome.RETRIED, delay, reason=reason, **changes):
        return
    if not outcomes.finish_cancelled(run):
        Attempt.fence(held.run_id, held.attempt)


def _send_again(held: pulse.Held, publish: Callable[[], Any]) -> None:
    """Send a step once more, as it asked for by `self.retry()`."""
    pulse.write_log(held)
    try:
        publish()
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001 - arguments, a router, the broker: Celery's own answer would be Reject
        finish.fail(held, error, "".join(format_exception(error)))


def _patiently(write: Callable[[], T]) -> T:
    """Write to the ledger, if need be when the database is back: what is not recorded would be run again, or lost."""
    until, pause = time.monotonic() + lease().total_seconds(), 0.1
    while True:
        try:
            return _on_a_good_connection(write)
        except DatabaseError as error:
            if isinstance(error, pulse.REFUSED) or time.monotonic() > until:
                raise
            log.warning("A run waits for the ledger: %s", str(error).strip(), extra={"action": "finish"})
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _on_a_good_connection(write: Callable[[], T]) -> T:
    """Write to the ledger, on a new connection if the present one is broken, or in what a task left open."""
    if _has_open_transaction():
        connection.connection.close()
        del connections[DEFAULT_DB_ALIAS]  # with all that the task has set on it
    try:
        return write()
    except DatabaseError:
        connection.close()
        return write()


def _has_open_transaction() -> bool:
    raw: Any = connection.connection
    if raw is None:
        return False
    if connection.in_atomic_block or not connection.get_autocommit():
        return True
    if connection.vendor == "sqlite":
        return bool(raw.in_transaction)
    return bool(raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR))


def _on_success(sender: Any, **_: Any) -> None:
    if (held := pulse.of(sender.request)) and held.retry is None:
        pulse.release(held)
        _patiently(partial(finish.finish, held, State.SUCCEEDED))


def _on_failure(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    if held := pulse.of(sender.request):
        pulse.release(held)
        held.retry = None
        _patiently(partial(finish.fail, held, exception, str(getattr(einfo, "traceback", ""))))
    elif isinstance(exception, (TimeLimitExceeded, WorkerLostError)):
        _on_child_gone(task_id, exception)


def _on_postrun(task: Any, state: str | None = None, **_: Any) -> None:
    held = pulse.of(task.request)
    if held is None:
        return
    pulse.release(held)
    if held.retry is not None:
        _patiently(held.retry)
    elif state in CHOSEN:
        _patiently(partial(finish.finish, held, *CHOSEN[state]))
    elif state in {states.SUCCESS, None} and (error := sys.exception()) and not _ends_process(error):
        # It passes through: no `Exception`, or what follows the task could not be sent, or what it ended with be kept.
        _patiently(partial(finish.fail, held, error, "".join(format_exception(error))))


def _ends_process(error: BaseException) -> bool:
    """Whether the task was interrupted because its process is to end: that is no failure of its own."""
    return terminate_handler_fired() or isinstance(error, (WorkerShutdown, WorkerTerminate))


def _on_child_gone(task_id: str, exception: BaseException) -> None:
    """In the worker's main process: the child that executed the run was ended, by its time limit or from outside."""
    for held, mine in _held_by_child(task_id):
        if isinstance(exception, WorkerLostError):
            mine.update(lease_until=Now())  # found by the next rescue, instead of after a whole lease
        else:
            finish.fail(held, exception, "")


def _held_by_child(task_id: str) -> Iterator[tuple[pulse.Held, QuerySet[Any]]]:
    here = {"id": task_id, "state": "running", "worker__startswith": f"{_here} ("}
    with suppress(ValidationError):  # the id of a step may be any text
        for run in (runs := Run.objects.filter(**here)):
            yield pulse.Held(task_id, run.id, run.attempt), runs
    for step in (found := Step.objects.filter(**here)):
        yield pulse.Held(task_id, step.run_id, step.attempt, is_step=True), found


def _on_revoked(request: Any, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """By remote control, or because the message said when it expires: Celery will not execute this message."""
    why = "its message expired" if expired else "it was revoked"
    if (attempt := request.get(ATTEMPT_HEADER)) is not None:
        run = Run.objects.filter(id=request.id)
        if expired:  # of several messages of this attempt another may have started it
            revoked.discard(request.id)  # or this worker would refuse a later attempt, whose message has the same id
            outcomes.end(run.filter(attempt=attempt), UNSTARTED, State.CANCELLED, reason=f"cancelled: {why}")
        else:
            outcomes.cancel(run, why)
        if terminated:
            run.filter(state=State.RUNNING).update(lease_until=Now())
    elif step := request.get(STEP_HEADER):
        steps.refuse(request.id, int(step[1]), f"{why} before it started" if not terminated else why)
        outcomes.settle(UUID(step[0]), int(step[1]))


def _on_worker_init(sender: Any, **_: Any) -> None:
    global _here  # noqa: PLW0603 - a process is one worker
    _here = sender.hostname


def connect() -> None:
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.task.worker_init")
    signals.task_success.connect(_on_success, dispatch_uid="jobs.worker.task.success")
    signals.task_failure.connect(_on_failure, dispatch_uid="jobs.worker.task.failure")
    signals.task_revoked.connect(_on_revoked, dispatch_uid="jobs.worker.task.revoked")
    signals.task_postrun.connect(_on_postrun, dispatch_uid="jobs.worker.task.postrun")
