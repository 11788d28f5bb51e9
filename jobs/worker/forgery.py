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

from kombu.utils.json import dumps, loads

from jobs.ledger import steps
from jobs.messages.envelope import keeps_arguments
from jobs.models import LONGEST_NAME, SENDING, UNSTARTED, Run, State, database_now
from jobs.models.runs import Sent
from jobs.worker.context import Execution

NOTHING = "null"  # equal to the arguments of no run


def sent(task: Any, args: Any, kwargs: Any) -> Sent:
    """The task and the arguments that a message executes."""
    name = task.name[:LONGEST_NAME]
    if not keeps_arguments(task):
        return Sent(name)
    try:
        return Sent(name, dumps(list(args)), dumps(kwargs))
    except (TypeError, ValueError, RecursionError):
        return Sent(name, NOTHING, NOTHING)


def start(execution: Execution, node: str, pid: int, message: Sent) -> bool:
    """Start the run of a message. False if it has started, if it must not start, or if the message is not its own."""
    named = execution.run_id, execution.attempt, node, pid
    if Run.objects.start(*named, message):
        return True
    run = _unstarted(execution)
    if run is None or not _is_same(run, message):
        return False
    # A message and its row may write a value in different ways: a UUID without hyphens, a time zone as +00:00.
    return Run.objects.start(*named, Sent(message.task, json.dumps(run.args), json.dumps(run.kwargs)))


def difference(execution: Execution, message: Sent) -> str:
    """The difference between a message that started nothing and its unstarted run or step; empty if they are equal."""
    if execution.step is not None:
        other = steps.other_task(execution.step, execution.run_id, execution.attempt, message.task)
        return f"it executes {message.task}, but its step is {other}" if other else ""
    run = _unstarted(execution)
    if run is None:
        return ""
    if run.task != message.task:
        return f"it executes {message.task}, but the run is {run.task}"
    if message.args is not None and not _is_same(run, message):
        return "its arguments are not those of the run"
    is_sent = run.state == State.QUEUED or run.sends
    if not is_sent and (run.not_before is None or run.not_before > database_now() + SENDING):
        return "it comes before the run may start"
    return ""


def _unstarted(execution: Execution) -> Run | None:
    unstarted = Run.objects.filter(id=execution.run_id, attempt=execution.attempt, state__in=UNSTARTED)
    return unstarted.only("task", "args", "kwargs", "state", "sends", "not_before").first()


def _is_same(run: Run, message: Sent) -> bool:
    """Whether kombu reads the same arguments from the message and from the row."""
    if message.args is None:
        return False
    with suppress(ValueError, TypeError, ArithmeticError, AttributeError):
        of_run = _read(json.dumps([run.args, run.kwargs]))
        return of_run == _read(f"[{message.args}, {message.kwargs}]")
    return False


def _read(text: str) -> str:
    return dumps(loads(text), sort_keys=True)
