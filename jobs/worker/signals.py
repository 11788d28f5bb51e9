"""What does Celery report about a task, and what follows for its run? The receivers of Celery's signals.

Its one rule: a receiver finds the execution that a signal is about and calls one function of `finish` or `outcomes`.
Celery logs and swallows errors of receivers, so a write waits for the database (`connection.patiently`).
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from traceback import format_exception
from typing import Any
from uuid import UUID

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined] # new in billiard 4.3
from celery import signals, states
from celery.exceptions import TimeLimitExceeded, WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.worker.state import revoked
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.db.models.functions import Now

from jobs.ledger import outcomes, steps
from jobs.ledger.steps import STEP_HEADER
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import UNSTARTED, Run, State, Step
from jobs.worker import context, finish, pulse
from jobs.worker.connection import patiently
from jobs.worker.context import Execution

_here = ""  # the node name of the worker that this process belongs to

# The states that a task chooses by raising, with the state and the reason for the ledger.
CHOSEN = {
    states.IGNORED: (State.SUCCEEDED, "the task ended itself by raising Ignore"),
    states.REJECTED: (State.FAILED, "the task ended itself by raising Reject"),
}


def _on_success(sender: Any, **_: Any) -> None:
    if (execution := context.of(sender.request)) and execution.retry is None:
        pulse.release(execution)
        patiently(partial(finish.finish, execution, State.SUCCEEDED))


def _on_failure(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    if execution := context.of(sender.request):
        pulse.release(execution)
        execution.retry = None
        patiently(partial(finish.fail, execution, exception, str(getattr(einfo, "traceback", ""))))
    elif isinstance(exception, (TimeLimitExceeded, WorkerLostError)):
        _on_child_gone(task_id, exception)


def _on_postrun(task: Any, state: str | None = None, **_: Any) -> None:
    execution = context.of(task.request)
    if execution is None:
        return
    pulse.release(execution)
    if execution.retry is not None:
        patiently(execution.retry)
    elif state in CHOSEN:
        patiently(partial(finish.finish, execution, *CHOSEN[state]))
    elif state in {states.SUCCESS, None} and (error := sys.exception()) and not _ends_process(error):
        # Celery reported no failure: it is no `Exception`, or a follower could not be sent or the result not stored.
        patiently(partial(finish.fail, execution, error, "".join(format_exception(error))))


def _ends_process(error: BaseException) -> bool:
    """Whether the task was interrupted because its process is about to end, which is no failure of the task."""
    return terminate_handler_fired() or isinstance(error, (WorkerShutdown, WorkerTerminate))


def _on_child_gone(task_id: str, exception: BaseException) -> None:
    """In the worker's main process: the child that executed the run was killed, by its time limit or from outside."""
    for execution, rows in _executed_by_child(task_id):
        if isinstance(exception, WorkerLostError):
            rows.update(lease_until=Now())  # so the next rescue finds it; else it would wait for a whole lease
        else:
            finish.fail(execution, exception, "")


def _executed_by_child(task_id: str) -> Iterator[tuple[Execution, QuerySet[Any]]]:
    here = {"id": task_id, "state": "running", "node": _here}
    with suppress(ValidationError):  # the id of a step may be any text
        for run in (runs := Run.objects.filter(**here)):
            yield Execution(task_id, run.id, run.attempt), runs
    for step in (found := Step.objects.filter(**here)):
        yield Execution(task_id, step.run_id, step.attempt, is_step=True), found


def _on_revoked(request: Any, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """Celery will not execute this message: it was revoked by remote control, or it has expired."""
    why = "its message expired" if expired else "it was revoked"
    if (attempt := request.get(ATTEMPT_HEADER)) is not None:
        run = Run.objects.filter(id=request.id)
        if expired:  # another message of this attempt may have started it
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
    _here = context.node_of(sender.hostname)


def connect() -> None:
    """Listen to Celery."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.init")
    signals.task_success.connect(_on_success, dispatch_uid="jobs.worker.success")
    signals.task_failure.connect(_on_failure, dispatch_uid="jobs.worker.failure")
    signals.task_revoked.connect(_on_revoked, dispatch_uid="jobs.worker.revoked")
    signals.task_postrun.connect(_on_postrun, dispatch_uid="jobs.worker.postrun")
