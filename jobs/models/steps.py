"""Steps: the tasks that a run sets off while it executes, each of which it waits for."""

from django.db import models
from django.db.models import Q

from jobs.models.runs import LONGEST_NAME, Run


class StepQuerySet(models.QuerySet["Step"]):
    def under_way(self) -> "StepQuerySet":
        """Steps that somebody is to execute, or executes."""
        return self.filter(state__in=UNDER_WAY)


class Step(models.Model):
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
    worker = models.CharField(max_length=LONGEST_NAME, blank=True)
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
