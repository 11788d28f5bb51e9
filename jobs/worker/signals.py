"""What does Celery report about a task, and what follows for its run? The receivers of Celery's signals.

Its one rule: a receiver finds the execution that a signal is about and calls one function of `finish` or `outcomes`.
Celery logs and swallows errors of receivers, so a write waits for the database (`connection.patiently`), and what
cannot be written fails the run.
"""

import logging
import sys
from collections.abc import Callable
from functools import partial
from traceback import format_exception
from typing import Any
from uuid import UUID

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined] # new in billiard 4.3
from celery import signals, states
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerShutdown, WorkerTerminate
from celery.utils.serialization import UnpickleableExceptionWrapper
from celery.worker import state as worker_state
from django.db import Error as DatabaseError
from django.db.models.functions import Now

from jobs.ledger import outcomes, steps
from jobs.ledger.steps import STEP_HEADER
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import LONGEST_REASON, UNSTARTED, Run, State, Step
from jobs.rules.errors import logged
from jobs.secrets import in_one_line
from jobs.worker import canvas, context, finish, pulse, reports, traces
from jobs.worker.connection import on_good_connection, patiently
from jobs.worker.context import REFUSED, Execution
from jobs.worker.refusals import Named

log = logging.getLogger(__name__)

_here = ""  # the node name of the worker that this process belongs to

# The states that a task chooses by raising, with the state and the reason for the ledger.
CHOSEN = {
    states.IGNORED: (State.SUCCEEDED, "the task ended itself by raising Ignore"),
    states.REJECTED: (State.FAILED, "the task ended itself by raising Reject, and no message is repeated"),
    states.RETRY: (State.FAILED, "the task ended itself by raising Retry; only self.retry() executes it again"),
}


def _on_success(sender: Any, **_: Any) -> None:
    if (execution := context.of(sender.request)) and execution.retry is None:
        _conclude(execution, partial(finish.finish, execution, State.SUCCEEDED))


def _on_failure(sender: Any, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    if execution := context.of(sender.request):
        execution.retry = None
        # Celery replaces an error that cannot be pickled; the error itself is being handled here.
        replaced = isinstance(exception, UnpickleableExceptionWrapper)
        _fail(execution, (sys.exception() if replaced else None) or exception, str(getattr(einfo, "traceback", "")))


def _on_postrun(task: Any, state: str | None = None, retval: Any = None, **_: Any) -> None:
    execution = context.of(task.request)
    if execution is None:
        return
    try:
        if execution.retry is not None:
            _conclude(execution, execution.retry, getattr(retval, "exc", None))
        elif task.request.is_eager and getattr(retval, "sig", None):
            pass  # `self.retry()`: Celery executes the task again at once, as the same attempt
        elif state in CHOSEN:
            _conclude(execution, partial(_finish_as_chosen, execution, task.request, *CHOSEN[state]))
        elif state in {states.SUCCESS, None} and (error := sys.exception()) and not _ends_process(error):
            # Celery reported no failure: it is no `Exception`, a follower was not sent, or the result was not stored.
            _fail(execution, error, "".join(format_exception(error)))
    finally:
        pulse.release(execution)
        context.leave(execution)


def _finish_as_chosen(execution: Execution, request: Any, state: State, reason: str) -> None:
    canvas.forsake_all(request, reason)
    finish.finish(execution, state, reason)


def _fail(execution: Execution, error: BaseException, text: str) -> None:
    traces.failed(execution, error)
    _conclude(execution, partial(finish.fail, execution, error, text), error)


def _conclude(execution: Execution, write: Callable[[], object], own: BaseException | None = None) -> None:
    """Record the end of an attempt whose body is over; `own` is the error of the task.

    Celery swallows what is raised here, and an attempt left open would end as lost. So the attempt fails then.
    """
    pulse.release(execution)
    try:
        patiently(write)
    except SoftTimeLimitExceeded:  # the body ended in time, and the end is recorded once
        patiently(write)
    except Exception as error:
        if isinstance(error, DatabaseError) and not isinstance(error, REFUSED):
            raise  # the database is unavailable; the lease runs out
        what = execution.attempt, execution.run_id
        log.exception("The end of attempt %d of run %s could not be recorded.", *what, extra=execution.keys)
        patiently(partial(finish.give_up, execution, error, own))


def _ends_process(error: BaseException) -> bool:
    """Whether the task was interrupted because its process is about to end, which is no failure of the task."""
    return terminate_handler_fired() or isinstance(error, (WorkerShutdown, WorkerTerminate))


def on_child_gone(named: Named, task_id: str, exception: BaseException, *, revoked: bool) -> None:
    """In the worker's main process: the child that executed the run was killed, by its time limit or from outside."""
    with logged(log, "The end of the process of task %s could not be recorded.", task_id, extra=named.keys):
        on_good_connection(partial(_record_child_gone, named, task_id, exception, revoked=revoked))


def _record_child_gone(named: Named, task_id: str, exception: BaseException, *, revoked: bool) -> None:
    here = {"attempt": named.attempt, "state": "running", "node": _here}
    runs, found = Run.objects.filter(id=named.run, **here), Step.objects.filter(id=named.step, run=named.run, **here)
    rows: Any = found if named.step else runs
    if not rows.exists():
        return
    execution = Execution(task_id, named.run, named.attempt, named.step or None)
    if isinstance(exception, TimeLimitExceeded):
        finish.fail(execution, exception, "")
    elif revoked and execution.is_step:
        finish.finish(execution, State.FAILED, "it was revoked")
    else:
        why = in_one_line(exception, LONGEST_REASON).partition(" Job: ")[0].rpartition("prematurely: ")[2].rstrip(".")
        # So the next rescue finds it, with the reason; else it would wait for a whole lease.
        rows.update(lease_until=Now(), **{"error_text" if named.step else "reason": f"its process ended: {why}"})


def _on_revoked(request: Any, expired: bool = False, **_: Any) -> None:
    """Celery will not execute this message, or ends it: it was revoked by remote control, or it has expired."""
    why = "its message expired" if expired else "it was revoked"
    if (attempt := request.get(ATTEMPT_HEADER)) is not None:
        run = Run.objects.filter(id=request.id)
        if expired:  # another message of this attempt may have started it
            worker_state.revoked.discard(request.id)  # a later attempt, whose message has the same id, may start
            # Any program can write an expiry into a message: the row has the run's own.
            mine, reason = run.filter(attempt=attempt, expires_at__lte=Now()), f"cancelled: {why}"
            on_good_connection(partial(outcomes.end, mine, UNSTARTED, State.CANCELLED, reason=reason))
        else:
            on_good_connection(partial(outcomes.cancel, run, why))
    elif step := request.get(STEP_HEADER):
        key, (run_id, number) = steps.key_of(step, request.id), (UUID(step[0]), int(step[1]))
        on_good_connection(partial(steps.refuse, key, run_id, number, f"{why} before it started", "Revoked"))
        outcomes.settle(run_id, number)


def _on_worker_init(sender: Any, **_: Any) -> None:
    global _here  # noqa: PLW0603 - a process is one worker
    _here = context.node_of(sender.hostname)
    reports.mask_replies()


def connect() -> None:
    """Listen to Celery."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.init")
    signals.task_success.connect(_on_success, dispatch_uid="jobs.worker.success")
    signals.task_failure.connect(_on_failure, dispatch_uid="jobs.worker.failure")
    signals.task_revoked.connect(_on_revoked, dispatch_uid="jobs.worker.revoked")
    signals.task_postrun.connect(_on_postrun, dispatch_uid="jobs.worker.postrun")
