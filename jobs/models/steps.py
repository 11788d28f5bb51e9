"""Steps: the tasks that a run sends while it executes. The run waits for all of them."""

from collections.abc import Collection
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from jobs.models.runs import LONGEST_NAME, Executed, Run


class StepQuerySet(models.QuerySet["Step"]):
    def under_way(self) -> "StepQuerySet":
        """Queued and running steps."""
        return self.filter(state__in=UNDER_WAY)

    def move(self, expected: Collection[str], to: str, **changes: Any) -> int:
        """Change the state of the steps whose state is still one of `expected`; returns how many it changed.

        For a single step, 0 means that another process was first: a value, not an error.
        """
        moving, values = self.moving(expected, to, **changes)
        return moving.update(**values)

    def moving(self, expected: Collection[str], to: str, **changes: Any) -> "tuple[StepQuerySet, dict[str, Any]]":
        """The steps that `move` updates, and the new values."""
        for state in expected:
            if to not in STEP_TRANSITIONS[Step.State(state)]:
                raise ValueError(f"A step never goes from {state} to {to}.")
        if to not in UNDER_WAY:
            changes |= {"lease_until": None}
        if to in OVER:
            changes |= {"finished_at": Now()}
        return self.filter(state__in=expected), {"state": to, **changes}

    def enlist(self, step: "Step") -> None:
        """Save a step that is about to be published. A step that is sent again under its id starts anew."""
        self._save(step, self.filter(id=step.id))

    def expect(self, step: "Step") -> None:
        """Save a step that its chord will publish. Only a step of another attempt starts anew: its chord is gone."""
        self._save(step, self.filter(id=step.id).exclude(run=step.run_id, attempt=step.attempt))

    def _save(self, step: "Step", former: "StepQuerySet") -> None:
        columns = {name: getattr(step, name) for name in ("run_id", "attempt", "task", "following", "lease_until")}
        starts_anew = {state for state, following in STEP_TRANSITIONS.items() if step.state in following}
        if not former.move(starts_anew, step.state, **columns):
            self.bulk_create([step], ignore_conflicts=True)


class Step(Executed):
    """A child task of a run: part of a chain, a group or a chord, or sent singly."""

    class State(models.TextChoices):
        EXPECTED = "expected"  # the body of a chord, until all its members are done
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
    following = models.PositiveSmallIntegerField(default=0, help_text="How many tasks follow it in its chain.")
    lease_until = models.DateTimeField(
        null=True, help_text="When it counts as lost unless it starts or renews the lease."
    )
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

# Which state may follow which. A step that is sent or expected again under its id starts anew: in a retry, in place of
# itself, or in the next attempt of its run.
STEP_TRANSITIONS: dict[Step.State, frozenset[Step.State]] = {
    Step.State.EXPECTED: frozenset({Step.State.EXPECTED, Step.State.QUEUED, Step.State.CANCELLED}),
    Step.State.QUEUED: frozenset(Step.State) - {Step.State.SUCCEEDED},
    Step.State.RUNNING: frozenset(Step.State) - {Step.State.RUNNING, Step.State.CANCELLED},
    **dict.fromkeys(OVER, frozenset({Step.State.EXPECTED, Step.State.QUEUED})),
}
