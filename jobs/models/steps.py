"""Steps: the tasks that a run sends while it executes. The run waits for all of them."""

from collections.abc import Collection
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from jobs.models import bulk
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

    def enlist(self, step: "Step", *, is_sender: bool = False) -> bool:
        """Save a step that is about to be published, or that its chord will publish. False if its id is taken.

        A step that sends itself again (`is_sender`) starts anew, and so does a step of a former attempt, whose end no
        longer counts. Each member of a chord expects the same body.
        """
        former = self.filter(id=step.id)
        if not is_sender:
            former = former.filter(step.replaces())
        columns = {name: getattr(step, name) for name in ("run_id", "attempt", "task", "group", "following")}
        starts_anew = {state for state, following in STEP_TRANSITIONS.items() if step.state in following}
        if former.move(starts_anew, step.state, lease_until=step.lease_until, **columns) or bulk.insert_new(step):
            return True
        same = {"id": step.id, "run": step.run_id, "attempt": step.attempt, "group": step.group}
        return step.state == Step.State.EXPECTED and self.filter(**same).exists()


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
    group = models.CharField(
        max_length=255, blank=True, db_default="", help_text="The id of the group or chord that it belongs to."
    )
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

    def replaces(self) -> Q:
        """The steps of the same id whose place it takes."""
        mine = Q(run=self.run_id, attempt__lt=self.attempt)
        if self.state == Step.State.QUEUED:
            mine |= Q(run=self.run_id, attempt=self.attempt, state=Step.State.EXPECTED)
        if len(self.id) != UUID_LENGTH:
            mine |= Q(state__in=OVER) & ~Q(run=self.run_id)
        return mine


UUID_LENGTH = 36  # Celery generates ids of this length; others are the job's own, and the next run may use them again
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
