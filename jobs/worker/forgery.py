"""Is this a message of its run? Compares what a message executes with the row of its run or step.

Its one rule: a message that names a run starts that run's own task with its arguments, once the run may start. Any
other message starts nothing and leaves the ledger unchanged, so the run's own message can still start it. The UPDATE
that starts a run compares; further queries follow only if it starts nothing.

Limits: it does not compare arguments that a receiver of `before_task_publish` or a task's own `apply_async` may change.
Of a step, it compares only the task. Signatures (MESSAGE_KEYS) cover both.
"""

import json
from contextlib import suppress
from typing import Any

from django.db import DataError
from kombu.utils.json import dumps, loads

from jobs.ledger import steps
from jobs.messages.arguments import find_task
from jobs.messages.envelope import keeps_arguments
from jobs.models import LONGEST_NAME, SENDING, UNSTARTED, Run, State, database_now
from jobs.models.runs import Sent
from jobs.worker.context import Execution

FOLLOWERS = ("callbacks", "errbacks", "chain", "chord")
NOTHING = "null"  # equal to the arguments of no run


def start_step(execution: Execution, key: str, node: str, pid: int, message: Sent) -> bool:
    """Start the step of a message, like `start`."""
    named = execution.run_id, execution.attempt
    if steps.start(key, *named, node, pid, message.task):
        return True
    task = steps.queued_task(key, *named)
    return task not in {"", message.task} and _is_task(task, message) and steps.start(key, *named, node, pid, task)


def sent(task: Any, args: Any, kwargs: Any) -> Sent:
    """The task and the arguments that a message executes."""
    name = task.name[:LONGEST_NAME]
    if not keeps_arguments(task):
        return Sent(name)
    if any(getattr(task.request, part, None) for part in FOLLOWERS):  # a step may have some
        return Sent(name, NOTHING, NOTHING, has_followers=True)
    try:
        return Sent(name, dumps(list(args)), dumps(kwargs))
    except (TypeError, ValueError, RecursionError):
        return Sent(name, NOTHING, NOTHING)


def start(execution: Execution, node: str, pid: int, message: Sent) -> bool:
    """Start the run of a message. False if it has started, if it must not start, or if the message is not its own."""
    named = execution.run_id, execution.attempt, node, pid
    with suppress(DataError):  # arguments that no database stores
        if Run.objects.start(*named, message):
            return True
    run = _unstarted(execution)
    # A message and its row may write a value in different ways: a UUID without hyphens, a time zone as +00:00. The name
    # in the row may be an alias of the task. Both stay as they are in this attempt.
    return run is not None and _is_own(run, message) and Run.objects.start(*named)


def difference(execution: Execution, message: Sent) -> str:
    """The difference between a message that started nothing and its unstarted run or step; empty if they are equal."""
    if execution.step is not None:
        other = steps.queued_task(execution.step, execution.run_id, execution.attempt)
        return f"it executes {message.task}, but its step is {other}" if other and not _is_task(other, message) else ""
    run = _unstarted(execution)
    return _difference(run, message) if run else ""


def _difference(run: Run, message: Sent) -> str:
    if not _is_task(run.task, message):
        return f"it executes {message.task}, but the run is {run.task}"
    if message.has_followers:
        return "tasks follow it, and none follow the run"
    if not _is_own(run, message):
        return "its arguments are not those of the run"
    is_sent = run.state == State.QUEUED or run.sends
    if not is_sent and (run.not_before is None or run.not_before > database_now() + SENDING):
        return "it comes before the run may start"
    return ""


def _unstarted(execution: Execution) -> Run | None:
    unstarted = Run.objects.filter(id=execution.run_id, attempt=execution.attempt, state__in=UNSTARTED)
    return unstarted.only("task", "args", "kwargs", "state", "sends", "not_before").first()


def _is_task(name: str, message: Sent) -> bool:
    """Whether a row's name, which may be an alias, is the task of the message."""
    return message.task in {name, getattr(find_task(name), "name", name)}


def _is_own(run: Run, message: Sent) -> bool:
    """Whether the message executes the task of the row, with arguments that kombu reads as the same."""
    if message.has_followers or not _is_task(run.task, message):
        return False
    if message.args is None:
        return True
    with suppress(ValueError, TypeError, ArithmeticError, AttributeError):
        of_run = _read(json.dumps([run.args, run.kwargs]))
        return of_run == _read(f"[{message.args}, {message.kwargs}]")
    return False


def _read(text: str) -> str:
    return dumps(loads(text), sort_keys=True)
