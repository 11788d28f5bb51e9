"""The processes that make up this installation, as they tell of themselves."""

from datetime import timedelta

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

# A node that has said nothing for so long is taken for dead; it speaks every `nodes.EVERY` seconds.
SILENT_AFTER = timedelta(seconds=60)


class NodeQuerySet(models.QuerySet["Node"]):
    def live(self) -> "NodeQuerySet":
        """Those that spoke lately and did not say goodbye."""
        return self.filter(Q(stopped_at=None), seen_at__gt=Now() - SILENT_AFTER)


class Node(models.Model):
    """A beat or a worker, known by its heartbeat. One that stopped said goodbye; one that was killed fades."""

    class Kind(models.TextChoices):
        BEAT = "beat"
        WORKER = "worker"

    name = models.CharField(max_length=200, primary_key=True)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    queues = models.CharField(max_length=500, blank=True, help_text="What it takes messages from.")
    concurrency = models.CharField(max_length=100, blank=True, help_text="Its pool, and how many runs at a time.")
    version = models.CharField(max_length=100, help_text="Of the code it runs.")
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now(), db_index=True)
    stopped_at = models.DateTimeField(null=True)

    objects = NodeQuerySet.as_manager()

    def __str__(self) -> str:
        return self.name
