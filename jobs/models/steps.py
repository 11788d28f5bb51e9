"""Steps: the tasks that a run sends while it executes. The run waits for all of them."""

from collections.abc import Collection
from typing import Any
from uuid import uuid4, uuid5

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

    def enlist(self, step: "Step", *, is_sender: bool = False) -> str:
        """Save a step that is about to be published, or that its chord will publish; returns the key of its row.

        The body of a chord has the row that its members expect, and a step that sends itself again (`is_sender`) keeps
        its own. Every other step gets a new one: ids of tasks repeat, because Celery keeps them in workflow objects.
        """
        if key := self._known(step, is_sender=is_sender) or (bulk.insert_new(step) and step.id):
            return key
        if step.state == Step.State.EXPECTED:  # the same row for all members of the chord, in every process
            if self._of_attempt(step).filter(id=step.id, group__in={step.group, ""}).exists():
                return step.id
            step.id = str(uuid5(step.run_id, f"{step.attempt} {step.group} {step.task_id}"))
        else:
            step.id = str(uuid4())
        bulk.insert_new(step)
        return step.id

    def _known(self, step: "Step", *, is_sender: bool) -> str:
        """Let the row that this step already has start anew; returns its key, empty if it has none."""
        names = ("task", "task_id", "group", "following", "lease_until", "error_class", "error_text")
        columns = {name: getattr(step, name) for name in names}
        mine = self._of_attempt(step)
        if is_sender:
            states = {state for state in Step.State if step.state in STEP_TRANSITIONS[state]}
            return step.id if mine.filter(id=step.id).move(states, step.state, **columns) else ""
        if step.state == Step.State.QUEUED:
            bodies = mine.filter(Q(task_id=step.task_id) | Q(id=step.task_id), state=Step.State.EXPECTED)
            for key in bodies.values_list("id", flat=True):  # two chords may expect bodies with the same task id
                if mine.filter(id=key).move({Step.State.EXPECTED}, step.state, **columns):
                    return str(key)
        return ""

    def _of_attempt(self, step: "Step") -> "StepQuerySet":
        return self.filter(run=step.run_id, attempt=step.attempt)


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

    id = models.CharField(
        max_length=255, primary_key=True, help_text="The id of its Celery task, unless an earlier step has that."
    )
    task_id = models.CharField(max_length=255, blank=True, db_default="", help_text="The id of its Celery task.")
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
