"""Resources: the current version of each, and the holdings that every process reports."""

from datetime import timedelta

from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Now

from jobs.cache.resources import NAME
from jobs.models.runs import LONGEST_NAME

# After this long without a report a process counts as gone; a live one reports at least every minute.
GONE_AFTER = timedelta(minutes=3)


class ResourceVersion(models.Model):
    """The current version of a resource, created when a process first uses it. Each invalidation raises the number."""

    name = models.CharField(max_length=100, primary_key=True, validators=[RegexValidator(NAME)])
    number = models.PositiveBigIntegerField(default=0)
    invalidated_at = models.DateTimeField(null=True)
    invalidated_by = models.CharField(max_length=LONGEST_NAME, blank=True)

    class Meta:
        verbose_name = "resource"

    def __str__(self) -> str:
        return self.name


class HoldingQuerySet(models.QuerySet["Holding"]):
    def live(self) -> "HoldingQuerySet":
        """Holdings of processes that reported recently."""
        return self.filter(seen_at__gt=Now() - GONE_AFTER)


class Holding(models.Model):
    """The entries of a resource that one process holds, and its hits and misses since the process began."""

    resource = models.ForeignKey(ResourceVersion, models.CASCADE, related_name="holdings", db_index=False)
    node = models.CharField(max_length=LONGEST_NAME, help_text="The worker that the process belongs to.")
    pid = models.PositiveIntegerField()
    entries = models.PositiveBigIntegerField()
    bytes = models.PositiveBigIntegerField()
    hits = models.PositiveBigIntegerField()
    misses = models.PositiveBigIntegerField(help_text="How often it was loaded.")
    seen_at = models.DateTimeField(db_default=Now())

    objects = HoldingQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["resource", "node", "pid"], name="holding_once")]

    def __str__(self) -> str:
        return f"{self.resource_id} in {self.node} ({self.pid})"
