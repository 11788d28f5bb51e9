"""What does a run wait for? The tasks that it sets off, of chains, groups, chords or called singly: its steps.

Its one rule: a step is written down before it is published, and its successor before it ends. So a run of which no
step is under way is over, and whoever ended a step may end the run: the first one does. A step that vanished takes its
run with it: the run is rescued as a whole.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from celery import current_app
from celery.utils.time import maybe_make_aware
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import LONGEST_NAME, Run, RunQuerySet, State, Step, lease
from jobs.models.prepared import Exist, Update
from jobs.worker import pulse

log = logging.getLogger(__name__)

# Options that are of no use once the call is over.
BOUND_TO_NOW = {"producer", "publisher", "connection"}
# Ids that Celery makes are never those of another run.
UUID_LENGTH = 36
# The header that says to which run, and to which of its attempts, a step belongs.
STEP_HEADER = "punctual_step"


def send(publish: Callable[..., Any], request: Any, name: str, options: dict[str, Any]) -> Any:
    """Publish a task by the task whose `request` it is: if that belongs to a run, as a step of it.

    A task that no worker of this project knows is somebody else's, and no step.

    Inside a transaction it is published when that is committed; if it is undone, there never was a step.
    """
    held = pulse.of(request)
    if held is None or ATTEMPT_HEADER in (options.get("headers") or {}) or name not in current_app.tasks:
        return publish(**options)
    try:
        _enlist(held, name, options)
    except (OperationalError, InterfaceError):
        if connection.in_atomic_block:
            raise
        connection.close()  # it broke while the task did something else
        _enlist(held, name, options)
    if connection.in_atomic_block:
        held.uncommitted.add(options["task_id"])
        later = {key: options[key] for key in options.keys() - BOUND_TO_NOW}
        transaction.on_commit(partial(_publish, held, publish, request, later))
        result = current_app.AsyncResult(options["task_id"])
        result.ignored = bool(options.get("ignore_result"))
        return result
    return _publish(held, publish, request, options)


def _publish(held: pulse.Held, publish: Callable[..., Any], request: Any, options: dict[str, Any]) -> Any:
    """What could not be published is no step, unless a chord waits for it; a step sent again is still where it was."""
    held.uncommitted.discard(options["task_id"])
    try:
        return publish(**options)
    except Exception:
        unsent = Step.objects.filter(id=options["task_id"], state=Step.State.QUEUED)
        if held.is_step and options["task_id"] == held.task_id:
            held.replaced = False
            unsent.update(state=Step.State.RUNNING, task=request.task, lease_until=Now() + lease())
        elif options["task_id"] in (body["options"]["task_id"] for body in _firsts_of(request.chord)):
            unsent.update(state=Step.State.EXPECTED, lease_until=None)  # Celery itself says nothing of it
        else:
            unsent.delete()
        raise


def _enlist(held: pulse.Held, name: str, options: dict[str, Any]) -> None:
    headers = dict(options.get("headers") or {})
    options["task_id"] = options.get("task_id") or str(uuid4())
    options["headers"] = headers | {STEP_HEADER: [str(held.run_id), held.attempt]}
    held.has_steps = True
    with transaction.atomic():
        for body in _firsts_of(options.get("chord")):
            _note(held, body["options"]["task_id"], body["task"], Step.State.EXPECTED)
        following = len(options.get("chain") or ())
        until = Now() + _patience() + _delay(options)
        _note(held, options["task_id"], name, Step.State.QUEUED, following=following, lease_until=until)


def _note(held: pulse.Held, task_id: str, name: str, state: Step.State, **columns: Any) -> None:
    """Make the step's row. One that is there is sent again, by a retry or in place of itself, or was expected."""
    step = Step(id=task_id, run_id=held.run_id, attempt=held.attempt, task=name[:LONGEST_NAME], state=state, **columns)
    is_itself = task_id == held.task_id
    held.replaced |= is_itself
    if len(task_id) != UUID_LENGTH and Step.objects.under_way().filter(id=task_id).exclude(run=held.run_id).exists():
        raise ValueError(f"A step {task_id!r} of another run is under way: give each an id of its own.")
    if state == Step.State.EXPECTED and not is_itself:
        Step.objects.bulk_create([step], ignore_conflicts=True)
    else:
        changed = ["run", "attempt", "task", "state", *columns]
        Step.objects.bulk_create([step], update_conflicts=True, unique_fields=["id"], update_fields=changed)


def _firsts_of(body: Any) -> list[dict[str, Any]]:
    """The tasks that are sent when a whole group is through; without those that have no id of their own yet."""
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


def _delay(options: dict[str, Any]) -> timedelta:
    eta = options.get("eta")
    if eta is None:
        return timedelta(seconds=options.get("countdown") or 0)
    moment = maybe_make_aware(datetime.fromisoformat(eta) if isinstance(eta, str) else eta)
    return max(timedelta(0), moment - timezone.now())


def _patience() -> timedelta:
    """How long a step may wait in the broker before it counts as lost."""
    return timedelta(seconds=settings.STEP_PATIENCE_SECONDS)


def start(task_id: str, run_id: UUID, attempt: int, worker: str) -> bool:
    """Take a step for this process; False when it was taken before, or its run needs it no longer."""
    return bool(_START(task_id, run_id, attempt, worker))


def end(task_id: str, attempt: int, state: Step.State, **changes: Any) -> None:
    """Record how a step ended. One that was sent again meanwhile is not over, and stays as it is."""
    if changes:
        mine, values = _ending(task_id, attempt, state.value)
        mine.update(**values, **changes)
    else:
        _END(task_id, attempt, state.value)


def _starting(task_id: str, run_id: UUID, attempt: int, worker: str) -> tuple[QuerySet[Step], dict[str, Any]]:
    wanted = {"state": State.RUNNING, "cancel_reason": ""}
    run = Run.objects.filter(id=OuterRef("run_id"), attempt=OuterRef("attempt"), **wanted)
    mine = Step.objects.filter(Exists(run), id=task_id, run=run_id, attempt=attempt, state=Step.State.QUEUED)
    changes = {"started_at": Now(), "lease_until": Now() + lease(), "worker": worker}
    return mine, {"state": Step.State.RUNNING, **changes}


def _ending(task_id: str, attempt: int, state: str) -> tuple[QuerySet[Step], dict[str, Any]]:
    mine = Step.objects.filter(id=task_id, attempt=attempt, state=Step.State.RUNNING)
    return mine, {"state": state, "finished_at": Now(), "lease_until": None}


_START, _END = Update(_starting), Update(_ending)


def refuse(task_id: str, attempt: int, why: str) -> None:
    """A step will not be executed, or not to its end, as somebody outside of its run has decided."""
    this = Step.objects.under_way().filter(id=task_id, attempt=attempt)
    this.update(state=Step.State.FAILED, finished_at=Now(), lease_until=None, error_class="Revoked", error_text=why)


def hand_over(held: pulse.Held, **changes: Any) -> None:
    """The body of a run is over: from now on its steps carry it."""
    body = Run.objects.filter(id=held.run_id, attempt=held.attempt, state=State.RUNNING)
    body.update(lease_until=None, **changes)


def over() -> RunQuerySet:
    """Runs that wait for nothing any more: their body is over, and each of their steps."""
    under_way = Step.objects.under_way().filter(run=OuterRef("pk"), attempt=OuterRef("attempt"))
    return Run.objects.carried().filter(~Exists(under_way))


def _being_over(run_id: UUID, attempt: int) -> RunQuerySet:
    return over().filter(id=run_id, attempt=attempt)


is_over = Exist(_being_over)


def outcome(run: Run) -> tuple[State, str, Step | None]:
    """How a run ends that is `over`, why, and by which step."""
    steps = Step.objects.filter(run=run, attempt=run.attempt)
    if run.cancel_reason:
        return State.CANCELLED, run.cancel_reason, None
    if run.error_class:
        return State.FAILED, run.reason, None
    if failed := steps.filter(state=Step.State.FAILED).order_by("finished_at").first():
        why = failed.error_text.strip().rpartition("\n")[2] or failed.error_class
        return State.FAILED, f"step {failed.task} failed: {why}", failed
    if missing := steps.filter(state=Step.State.EXPECTED).first():
        why = "what counts the group before it is gone, or it could not be sent"
        return State.FAILED, f"step {missing.task} never came: {why}", missing
    return State.SUCCEEDED, "", None


def cancel(run_id: UUID, attempt: int) -> bool:
    """End the steps that have not started; whether the attempt has any step at all."""
    mine = Step.objects.filter(run=run_id, attempt=attempt)
    idle = mine.filter(state__in=[Step.State.EXPECTED, Step.State.QUEUED])
    return bool(idle.update(state=Step.State.CANCELLED, finished_at=Now(), lease_until=None)) or mine.exists()


def give_up_unsent(held: pulse.Held) -> None:
    """Steps whose transaction is over and that were not sent, for something else failed as it ended."""
    unsent = Step.objects.filter(id__in=held.uncommitted, run=held.run_id, state=Step.State.QUEUED)
    why = "it was not sent: something else failed as its transaction ended"
    unsent.update(state=Step.State.FAILED, finished_at=Now(), lease_until=None, error_class="Unsent", error_text=why)
