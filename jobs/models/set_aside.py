"""Which items did the workers set aside? Those of the broker that no worker can read or whose signature is wrong."""

from typing import Any

from django.db import IntegrityError, models, transaction
from django.db.models import F
from django.db.models.functions import Now

from jobs.models.runs import LONGEST_NAME, LONGEST_REASON

LONGEST_EXCERPT = 2_000  # characters
MOST = 1_000  # rows


class SetAside(models.Model):
    """An item that workers have removed from the broker without executing it. Equal items share a row."""

    digest = models.CharField(max_length=64, primary_key=True, help_text="The SHA-256 of the item.")
    first_at = models.DateTimeField(db_default=Now())
    last_at = models.DateTimeField(db_default=Now(), db_index=True)
    times = models.PositiveIntegerField(default=1, help_text="How often it came.")
    node = models.CharField(max_length=LONGEST_NAME, blank=True, help_text="The worker that set it aside last.")
    queue = models.CharField(max_length=LONGEST_NAME, blank=True, help_text="The queue, or the channel.")
    why = models.CharField(max_length=LONGEST_REASON)
    size = models.PositiveBigIntegerField(help_text="In bytes.")
    excerpt = models.TextField(blank=True, help_text="Its beginning, with secrets masked.")

    class Meta:
        verbose_name = "message set aside"
        verbose_name_plural = "messages set aside"

    def __str__(self) -> str:
        return f"{self.why} ({self.digest[:8]})"

    @classmethod
    def note(cls, digest: str, **columns: Any) -> None:
        """Add an item, or count it again. Beyond `MOST` rows, the oldest are deleted."""
        known = cls.objects.filter(digest=digest)
        again: dict[str, Any] = {**columns, "last_at": Now(), "times": F("times") + 1}
        if known.update(**again):
            return
        try:
            with transaction.atomic():
                cls.objects.create(digest=digest, **columns)
        except IntegrityError:  # another worker was faster
            known.update(**again)
        newest = cls.objects.order_by("-last_at", "digest").values("digest")
        cls.objects.filter(digest__in=list(newest[MOST : 2 * MOST].values_list("digest", flat=True))).delete()
