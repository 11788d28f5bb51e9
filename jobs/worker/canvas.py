"""What happens to a task that a run sends? It becomes a step of that run: of a chain, group or chord, or sent singly.

Its one rule: a step is saved before it is published. Inside a transaction it is published after the commit; a rollback
removes the row, too. The row of a step that could not be published is deleted, unless a chord waits for it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from celery import current_app
from celery.utils.time import maybe_make_aware
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs.ledger import steps
from jobs.ledger.steps import STEP_HEADER
from jobs.messages.baggage import headers_now
from jobs.messages.envelope import ATTEMPT_HEADER, SCHEDULE_HEADER
from jobs.models import LONGEST_NAME, Step, lease
from jobs.models.steps import StepQuerySet
from jobs.worker import context
from jobs.worker.connection import has_open_transaction
from jobs.worker.context import Execution
from jobs.worker.loops import outside_loop

# Options that are useless after the call.
BOUND_TO_NOW = {"producer", "publisher", "connection"}


def send(publish: Callable[..., Any], execution: Execution, name: str, options: dict[str, Any]) -> Any:
    """Publish a task that another task sends, whose `execution` it is: a step of its run.

    A task that this project does not know belongs to another system, and is no step.
    """
    if ATTEMPT_HEADER in (options.get("headers") or {}) or name not in current_app.tasks:
        return publish(**options)
    with outside_loop():
        if has_open_transaction(connection) and not connection.in_atomic_block:
            raise transaction.TransactionManagementError(
                f"{name} cannot be sent inside a transaction that Django does not manage: use transaction.atomic(),"
                " which sends it after the commit, or send it outside of the transaction."
            )
        try:
            _enlist(execution, name, options)
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()  # the connection broke while the task did something else
            _enlist(execution, name, options)
    if connection.in_atomic_block:
        execution.unpublished.add(_key(options))
        later = {key: options[key] for key in options.keys() - BOUND_TO_NOW}
        transaction.on_commit(partial(_publish, execution, publish, later))
        result = current_app.AsyncResult(options["task_id"])
        result.ignored = bool(options.get("ignore_result"))
        return result
    return _publish(execution, publish, options)


def _publish(execution: Execution, publish: Callable[..., Any], options: dict[str, Any]) -> Any:
    execution.unpublished.discard(_key(options))
    with ExitStack() as on_error:
        on_error.callback(_undo, execution, _key(options), options["task_id"])
        result = publish(**options)
        on_error.pop_all()
        return result


def _key(options: dict[str, Any]) -> str:
    return str(options["headers"][STEP_HEADER][2])


def _undo(execution: Execution, key: str, task_id: str) -> None:
    """Undo the row of a step that could not be published; a step that was sent again gets its former state back."""
    with outside_loop():
        _undo_row(execution, Step.objects.filter(id=key, run=execution.run_id), task_id)


def _undo_row(execution: Execution, unsent: StepQuerySet, task_id: str) -> None:
    request = execution.request
    if execution.is_published_by_itself(task_id):
        execution.sent_again = False
        unsent.move({Step.State.QUEUED}, Step.State.RUNNING, task=request.task, lease_until=Now() + lease())
    elif task_id in (body["options"]["task_id"] for body in _firsts_of(request.chord)):
        unsent.move({Step.State.QUEUED}, Step.State.EXPECTED)  # the body of a chord, for which Celery reports no error
    else:
        unsent.filter(state=Step.State.QUEUED).delete()


def _enlist(execution: Execution, name: str, options: dict[str, Any]) -> None:
    options["task_id"] = options.get("task_id") or str(uuid4())
    group = str(options.get("group_id") or "")
    with transaction.atomic():
        for body in _firsts_of(options.get("chord")):
            _note(execution, body["options"]["task_id"], body["task"], Step.State.EXPECTED, group=group)
        following = len(options.get("chain") or ())
        until = Now() + timedelta(seconds=settings.STEP_PATIENCE_SECONDS) + delay_of(options)
        columns = {"group": group, "following": following, "lease_until": until}
        key = _note(execution, options["task_id"], name, Step.State.QUEUED, **columns)
    named = {STEP_HEADER: [str(execution.run_id), execution.attempt, key]}
    if execution.schedule:
        named[SCHEDULE_HEADER] = execution.schedule
    options["headers"] = dict(options.get("headers") or {}) | headers_now() | named


def _note(execution: Execution, task_id: str, name: str, state: Step.State, **columns: Any) -> str:
    """Save the row of a step; returns its key."""
    own = execution.step if execution.is_published_by_itself(task_id) else None
    columns |= {"run_id": execution.run_id, "attempt": execution.attempt, "state": state}
    step = Step(id=own or task_id, task_id=task_id, task=name[:LONGEST_NAME], **columns)
    execution.add_step(task_id)
    return Step.objects.enlist(step, is_sender=own is not None)


def forsake(body: Any, why: str) -> None:
    """Note why the body of a chord of this run will not be sent, for the run's reason."""
    ids = [first["options"]["task_id"] for first in _firsts_of(body)]
    if ids and (execution := context.current()):
        steps.forsake(ids, execution.run_id, execution.attempt, why)


def forsake_all(request: Any, why: str) -> None:
    """Note it of the chords that wait for this task, or for one that follows it in its chain."""
    why = f"its chord waits for {request.task}, but {why}"
    for options in ({"chord": request.chord}, *(task.get("options") or {} for task in request.chain or ())):
        forsake(options.get("chord"), why)


def _firsts_of(body: Any) -> list[dict[str, Any]]:
    """The first tasks that are sent after the last member of a chord; without those that have no id yet."""
    if not body:
        return []
    kind, kwargs = body.get("subtask_type"), body.get("kwargs") or {}
    if kind == "chain":
        return _firsts_of(next(iter(kwargs.get("tasks") or ()), None))
    if kind == "group":
        return [first for task in kwargs.get("tasks") or () for first in _firsts_of(task)]
    if kind == "chord":
        header = kwargs.get("header") or ()
        return _firsts_of(
            header if isinstance(header, dict) else {"subtask_type": "group", "kwargs": {"tasks": header}}
        )
    return [body] if body.get("options", {}).get("task_id") else []


def delay_of(options: dict[str, Any]) -> timedelta:
    """How long from now a message delays its task; never less than 0."""
    eta = options.get("eta")
    if eta is None:
        return timedelta(seconds=options.get("countdown") or 0)
    moment = maybe_make_aware(datetime.fromisoformat(eta) if isinstance(eta, str) else eta)
    return max(timedelta(0), moment - timezone.now())
