"""What the ready-made jobs keep."""

from django.db import models


class FeedEntry(models.Model):
    """An entry of an RSS or Atom feed, brought by `jobs.import_feed`."""

    feed = models.CharField(max_length=500, help_text="The address of the feed.")
    guid = models.CharField(max_length=500)
    title = models.CharField(max_length=500)
    link = models.CharField(max_length=2000, blank=True)
    published_at = models.DateTimeField(null=True)
    imported_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "feed entries"
        constraints = [models.UniqueConstraint(fields=["feed", "guid"], name="feed_entry_once")]

    def __str__(self) -> str:
        return self.title
