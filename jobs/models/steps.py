"""Steps: the tasks that a run sets off while it executes, each of which it waits for."""

from collections.abc import Collection
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from jobs.models.runs import LONGEST_NAME, Executed, Run


class StepQuerySet(models.QuerySet["Step"]):
    def under_way(self) -> "StepQuerySet":
        """Steps that a worker executes or is about to execute."""
        return self.filter(state__in=UNDER_WAY)

    def move(self, expected: Collection[str], to: str, **changes: Any) -> int:
        """Change the state of these steps where it is still one of `expected`; returns how many were changed.

        0 for a single step means that another process was first: a value, not an error.
        """
        moving, values = self.moving(expected, to, **changes)
        return moving.update(**values)

    def moving(self, expected: Collection[str], to: str, **changes: Any) -> "tuple[StepQuerySet, dict[str, Any]]":
        """What `move` updates, and with which values."""
        for state in expected:
            if to not in STEP_TRANSITIONS[Step.State(state)]:
                raise ValueError(f"A step never goes from {state} to {to}.")
        if to not in UNDER_WAY:
            changes |= {"lease_until": None}
        if to in OVER:
            changes |= {"finished_at": Now()}
        return self.filter(state__in=expected), {"state": to, **changes}

    def enlist(self, step: "Step") -> None:
        """Write down a step that is about to be published. Under an id that is sent again it begins anew."""
        columns = {name: getattr(step, name) for name in ("run_id", "attempt", "task", "following", "lease_until")}
        begins_anew = {state for state, following in STEP_TRANSITIONS.items() if step.state in following}
        if not self.filter(id=step.id).move(begins_anew, step.state, **columns):
            self.bulk_create([step], ignore_conflicts=True)


class Step(Executed):
    """A child task of a run: of a chain, a group, a chord, or simply called inside it."""

    class State(models.TextChoices):
        EXPECTED = "expected"  # a chord's body, until the chord's header is through
        QUEUED = "queued"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"
        LOST = "lost"

    id = models.CharField(max_length=255, primary_key=True, help_text="The id of its Celery task.")
    run = models.ForeignKey(Run, models.CASCADE, related_name="steps", db_index=False)
    attempt = models.PositiveSmallIntegerField(help_text="The attempt of the run that it belongs to.")
    task = models.CharField(max_length=LONGEST_NAME)
    state = models.CharField(max_length=10, choices=State.choices)
    following = models.PositiveSmallIntegerField(default=0, help_text="How many tasks its chain has after it.")
    lease_until = models.DateTimeField(null=True, help_text="When it is taken for lost unless something happens.")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    error_class = models.CharField(max_length=LONGEST_NAME, blank=True)
    error_text = models.TextField(blank=True)

    objects = StepQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index("run", "attempt", name="step_of_run"),
            models.Index("lease_until", name="step_lease", condition=Q(state__in=["queued", "running"])),
        ]

    def __str__(self) -> str:
        return f"{self.task} of {self.run_id}"


UNDER_WAY = frozenset({Step.State.QUEUED, Step.State.RUNNING})
OVER = frozenset({Step.State.SUCCEEDED, Step.State.FAILED, Step.State.CANCELLED, Step.State.LOST})

# Which state may follow which. A step that is sent again under its id begins anew: by a retry, in place of itself, or
# with the next attempt of its run.
STEP_TRANSITIONS: dict[Step.State, frozenset[Step.State]] = {
    Step.State.EXPECTED: frozenset({Step.State.QUEUED, Step.State.CANCELLED}),
    Step.State.QUEUED: OVER - {Step.State.SUCCEEDED} | {Step.State.EXPECTED, Step.State.QUEUED, Step.State.RUNNING},
    Step.State.RUNNING: OVER - {Step.State.CANCELLED} | {Step.State.EXPECTED, Step.State.QUEUED},
    **dict.fromkeys(OVER, frozenset({Step.State.QUEUED})),
}
