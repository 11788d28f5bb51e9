"""How far is a run, and why is it in its state? In figures and one sentence, the same behind every door."""

from dataclasses import dataclass

from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce

from jobs.models import TERMINAL, Backfill, Run, State, Step
from jobs.models.steps import UNDER_WAY


@dataclass(frozen=True, slots=True)
class Progress:
    """What the job reports, and how many of the steps of its latest attempt have ended.

    `total` is None if the job named none. `steps` counts the known steps and those that follow them in chains.
    """

    done: int
    total: int | None
    message: str
    steps_done: int
    steps: int


def progress_of(run: Run) -> Progress:
    """Read the steps of the latest attempt (index step_of_run). An attempt that has not started has none."""
    rows = run.steps.filter(attempt=run.attempt) if run.started_at else run.steps.none()
    steps = list(rows.values_list("state", "following"))
    over = sum(state not in UNDER_WAY and state != Step.State.EXPECTED for state, _ in steps)
    coming = sum(following for state, following in steps if state in UNDER_WAY)
    return Progress(run.progress_done, run.progress_total, run.progress_message, over, len(steps) + coming)


def with_counts(backfills: QuerySet[Backfill]) -> QuerySet[Backfill]:
    """Add `total`, the number of its runs, and `over`, how many of them have ended, to each (index run_backfill)."""
    runs = Run.objects.filter(backfill=OuterRef("pk")).order_by().values("backfill").annotate(number=Count("pk"))
    numbers = {"total": runs, "over": runs.filter(state__in=TERMINAL)}
    return backfills.annotate(**{name: Coalesce(Subquery(of.values("number")), 0) for name, of in numbers.items()})


def reason_of(run: Run) -> str:
    """Why the run is in its state, in one sentence; empty if there is nothing to say."""
    if run.state == State.WAITING and run.not_before is None:
        return "waits for an earlier run to end"
    if run.state == State.RUNNING and run.cancel_reason:
        return f"was asked to end; {run.cancel_reason}"
    return run.reason
