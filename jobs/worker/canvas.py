"""What happens to a task that a run sends? It becomes a step of that run: of a chain, group or chord, or sent singly.

Its one rule: a step is saved before it is published. Inside a transaction it is published after the commit; a rollback
removes the row, too. The row of a step that could not be published is deleted, unless a chord waits for it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from celery import current_app
from celery.utils.time import maybe_make_aware
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs.ledger.steps import STEP_HEADER
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import LONGEST_NAME, Step, lease
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
        try:
            _enlist(execution, name, options)
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()  # the connection broke while the task did something else
            _enlist(execution, name, options)
    if connection.in_atomic_block:
        execution.unpublished.add(options["task_id"])
        later = {key: options[key] for key in options.keys() - BOUND_TO_NOW}
        transaction.on_commit(partial(_publish, execution, publish, later))
        result = current_app.AsyncResult(options["task_id"])
        result.ignored = bool(options.get("ignore_result"))
        return result
    return _publish(execution, publish, options)


def _publish(execution: Execution, publish: Callable[..., Any], options: dict[str, Any]) -> Any:
    execution.unpublished.discard(options["task_id"])
    with ExitStack() as on_error:
        on_error.callback(_undo, execution, options["task_id"])
        result = publish(**options)
        on_error.pop_all()
        return result


def _undo(execution: Execution, task_id: str) -> None:
    """Undo the row of a step that could not be published; a step that was sent again gets its former state back."""
    unsent, request = Step.objects.filter(id=task_id, run=execution.run_id), execution.request
    if execution.is_published_by_itself(task_id):
        execution.sent_again = False
        unsent.move({Step.State.QUEUED}, Step.State.RUNNING, task=request.task, lease_until=Now() + lease())
    elif task_id in (body["options"]["task_id"] for body in _firsts_of(request.chord)):
        unsent.move({Step.State.QUEUED}, Step.State.EXPECTED)  # the body of a chord, for which Celery reports no error
    else:
        unsent.filter(state=Step.State.QUEUED).delete()


def _enlist(execution: Execution, name: str, options: dict[str, Any]) -> None:
    headers, group = dict(options.get("headers") or {}), str(options.get("group_id") or "")
    options["task_id"] = options.get("task_id") or str(uuid4())
    options["headers"] = headers | {STEP_HEADER: [str(execution.run_id), execution.attempt]}
    with transaction.atomic():
        for body in _firsts_of(options.get("chord")):
            _note(execution, body["options"], body["task"], group, Step.State.EXPECTED)
        following = len(options.get("chain") or ())
        until = Now() + timedelta(seconds=settings.STEP_PATIENCE_SECONDS) + delay_of(options)
        _note(execution, options, name, group, Step.State.QUEUED, following=following, lease_until=until)


def _note(
    execution: Execution, options: dict[str, Any], name: str, group: str, state: Step.State, **columns: Any
) -> None:
    """Save the row of a step. A step whose id belongs to another one gets a new id, in `options`.

    A chain that is applied again gives its last task the same id, and each member of a chord names the same body. So
    all members of one chord must find the same new id: it follows from their group.
    """
    of_run = {"run_id": execution.run_id, "attempt": execution.attempt}
    wanted = str(options["task_id"])
    for task_id in (wanted, str(uuid5(NAMESPACE_OID, f"{group} {wanted}")), str(uuid4())):
        step = Step(id=task_id, task=name[:LONGEST_NAME], group=group, state=state, **of_run, **columns)
        if Step.objects.enlist(step, is_sender=task_id == execution.task_id):
            options["task_id"] = task_id
            execution.add_step(task_id)
            return


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
