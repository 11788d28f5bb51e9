"""The beats and workers of this installation, known by their heartbeats, and strangers that act without its ledger."""

from datetime import timedelta

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

LONGEST_QUEUES = LONGEST_PROBLEM = 500  # characters
LONGEST_PROJECT = 100  # characters
# After this long without a heartbeat a node counts as silent; it sends one every `nodes.EVERY` seconds.
SILENT_AFTER = timedelta(seconds=60)


class Release(models.Model):
    """The entries of one version of a project's code. A later release has a greater id: it was first seen later."""

    project = models.CharField(max_length=LONGEST_PROJECT)
    version = models.CharField(max_length=100, blank=True, help_text="The version of its code, as CODE_VERSION says.")
    entries = models.CharField(max_length=64, help_text="A hash of its entries.")
    first_seen_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "version", "entries"], name="release_known_once")]

    def __str__(self) -> str:
        return f"{self.project} {self.version or self.entries[:8]}"


class NodeQuerySet(models.QuerySet["Node"]):
    def live(self) -> "NodeQuerySet":
        """Nodes that sent a heartbeat recently and have not stopped."""
        return self.filter(Q(stopped_at=None), seen_at__gt=Now() - SILENT_AFTER)

    def consumers(self) -> "NodeQuerySet":
        """Live workers and strangers that take messages."""
        return self.live().exclude(kind=Node.Kind.BEAT).exclude(queues="")

    def queues(self) -> set[str]:
        """The queues that these nodes consume. Names that a full list has cut off are missing."""
        lists = self.values_list("queues", flat=True)
        return {name for each in lists for name in each.split(", ")[: -1 if len(each) == LONGEST_QUEUES else None]}


class Node(models.Model):
    """A beat or a worker, known by its heartbeat. One that stops in order is marked; one that is killed goes silent."""

    class Kind(models.TextChoices):
        BEAT = "beat"
        WORKER = "worker"
        STRANGER = "stranger"  # it consumes our queues or runs our schedules, but does not report to the ledger

    name = models.CharField(max_length=200, primary_key=True)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    queues = models.CharField(max_length=LONGEST_QUEUES, blank=True, help_text="The queues that it consumes.")
    concurrency = models.CharField(
        max_length=100, blank=True, help_text="Its pool, and how many runs it executes at a time."
    )
    version = models.CharField(max_length=100, help_text="The version of its code.")
    release = models.ForeignKey(
        Release, models.SET_NULL, null=True, editable=False, help_text="The entries that a beat knows."
    )
    tzdata = models.CharField(
        max_length=20, blank=True, default="", db_default="", help_text="The version of the rules of its time zones."
    )
    problem = models.CharField(
        max_length=LONGEST_PROBLEM, blank=True, default="", db_default="", help_text="Its fault, and how to mend it."
    )
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now(), db_index=True)
    stopped_at = models.DateTimeField(null=True)

    objects = NodeQuerySet.as_manager()

    def __str__(self) -> str:
        return self.name

    def consumes(self, queue: str) -> bool:
        """Whether it consumes this queue (empty: an unknown one), or lists so many that some are left out."""
        return not queue or queue in self.queues.split(", ") or len(self.queues) == LONGEST_QUEUES
