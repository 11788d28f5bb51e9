"""What does a run wait for? Its steps: the tasks that it sends, in chains, groups and chords or singly.

Its one rule: a step is saved before it is published, and its successor before it ends. So a run is over when its body
is over and no step is queued or running. Each process that ends a step may end the run: the first one does. A lost step
takes its run with it: the run is rescued as a whole.
"""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from django.db.models import CharField, Exists, IntegerField, OuterRef, Q, QuerySet, UUIDField
from django.db.models.functions import Now

from jobs.models import Run, RunQuerySet, State, Step, lease
from jobs.models.prepared import Exist, Update
from jobs.models.runs import PROCESS
from jobs.models.steps import StepQuerySet

# The header that names the run and the attempt of a step, and the key of its row.
STEP_HEADER = "punctual_step"


def key_of(header: Sequence[Any], task_id: str) -> str:
    """The key of a step's row, from `STEP_HEADER`. A former version of Punctual leaves it out: it is the task's id."""
    return str(header[2]) if len(header) > 2 else task_id


def start(key: str, run_id: UUID, attempt: int, node: str, pid: int, task: str) -> bool:
    """Claim a step for this process. False if it has started, if it is another task, or if its run does not need it."""
    return bool(_START(key=key, run_id=run_id, attempt=attempt, node=node, pid=pid, lease=lease(), task=task))


def queued_task(key: str, run_id: UUID, attempt: int) -> str:
    """The task of a step that has not started; else empty."""
    queued = Step.objects.filter(id=key, run=run_id, attempt=attempt, state=Step.State.QUEUED)
    return queued.values_list("task", flat=True).first() or ""


def end(key: str, run_id: UUID, attempt: int, state: Step.State, **changes: Any) -> None:
    """Record the end of a running step. A step that was sent again in the meantime is not over and stays unchanged."""
    if state == Step.State.SUCCEEDED:
        _SUCCEED(key=key, run_id=run_id, attempt=attempt)
    else:
        Step.objects.filter(id=key, run=run_id, attempt=attempt).move({Step.State.RUNNING}, state, **changes)


def _starting(
    key: Any, run_id: Any, attempt: Any, task: Any, lease: Any, **process: Any
) -> tuple[QuerySet[Step], dict[str, Any]]:
    changes = {"started_at": Now(), "lease_until": Now() + lease, **process}
    return _wanted(key, run_id, attempt).filter(task=task).moving({Step.State.QUEUED}, Step.State.RUNNING, **changes)


def _wanted(key: Any, run_id: Any, attempt: Any) -> StepQuerySet:
    """The step, if its run still needs it: a run whose body has failed only waits for running steps."""
    waits = {"state": State.RUNNING, "cancel_reason": "", "error_class": ""}
    run = Run.objects.filter(id=OuterRef("run_id"), attempt=OuterRef("attempt"), **waits)
    return Step.objects.filter(Exists(run), id=key, run=run_id, attempt=attempt)


def _succeeding(key: Any, run_id: Any, attempt: Any) -> tuple[QuerySet[Step], dict[str, Any]]:
    this = Step.objects.filter(id=key, run=run_id, attempt=attempt)
    return this.moving({Step.State.RUNNING}, Step.State.SUCCEEDED)


_STEP: dict[str, Any] = {"key": CharField(), "run_id": UUIDField(), "attempt": IntegerField()}
_START = Update(_starting, _STEP | PROCESS | {"task": CharField()})
_SUCCEED = Update(_succeeding, _STEP)


def refuse(key: str, run_id: UUID, attempt: int, why: str, error_class: str) -> bool:
    """Fail a step whose message will not start it. False if it has started, or if its run no longer needs it."""
    this = _wanted(key, run_id, attempt)
    return bool(this.move({Step.State.QUEUED}, Step.State.FAILED, error_class=error_class, error_text=why))


def dismiss(key: str, run_id: UUID, attempt: int) -> bool:
    """Cancel a step that has not started because its run no longer needs it."""
    this = Step.objects.filter(id=key, run=run_id, attempt=attempt)
    return bool(this.move({Step.State.QUEUED}, Step.State.CANCELLED))


def fail_unsent(keys: Collection[str], run_id: UUID) -> None:
    """Fail steps that were not sent because another on-commit callback of their transaction failed."""
    why = "it was not sent: another on-commit callback of its transaction failed"
    unsent = Step.objects.filter(id__in=keys, run=run_id)
    unsent.move({Step.State.QUEUED}, Step.State.FAILED, error_class="Unsent", error_text=why)


def forsake(task_ids: Collection[str], run_id: UUID, attempt: int, why: str) -> None:
    """Note why expected steps will never be sent."""
    bodies = Step.objects.filter(Q(task_id__in=task_ids) | Q(id__in=task_ids), run=run_id, attempt=attempt)
    bodies.filter(state=Step.State.EXPECTED).update(error_text=why)


def carry(run_id: UUID, attempt: int, **changes: Any) -> None:
    """Record that the body of a run is over: from now on it waits for its steps."""
    Run.objects.filter(id=run_id, attempt=attempt, state=State.RUNNING).update(lease_until=None, **changes)


def over() -> RunQuerySet:
    """Runs that can end: their body is over, and no step is queued or running."""
    under_way = Step.objects.under_way().filter(run=OuterRef("pk"), attempt=OuterRef("attempt"))
    return Run.objects.carried().filter(~Exists(under_way))


def _being_over(run_id: Any, attempt: Any) -> RunQuerySet:
    return over().filter(id=run_id, attempt=attempt)


is_over = Exist(_being_over, {"run_id": UUIDField(), "attempt": IntegerField()})


def outcome(run: Run) -> tuple[State, str, Step | None]:
    """The final state of a run that is `over`, the reason, and the step that caused it."""
    steps = Step.objects.filter(run=run, attempt=run.attempt)
    if run.cancel_reason:
        return State.CANCELLED, run.cancel_reason, None
    if run.error_class:
        return State.FAILED, run.reason, None
    if failed := steps.filter(state=Step.State.FAILED).order_by("finished_at").first():
        why = failed.error_text.strip().rpartition("\n")[2] or failed.error_class
        return State.FAILED, f"step {failed.task} failed: {why}", failed
    if missing := steps.filter(state=Step.State.EXPECTED).order_by("-error_text").first():
        why = missing.error_text or "the counter of its chord is gone, or it could not be sent"
        return State.FAILED, f"step {missing.task} never started: {why}", missing
    return State.SUCCEEDED, "", None


def cancel(run_id: UUID, attempt: int) -> bool:
    """Cancel the steps that have not started; returns whether the attempt has any step at all."""
    mine = Step.objects.filter(run=run_id, attempt=attempt)
    return bool(mine.move({Step.State.EXPECTED, Step.State.QUEUED}, Step.State.CANCELLED)) or mine.exists()
