"""The rows of the ready-made jobs: feed entries, stored files and deliveries of mail."""

from uuid import uuid4

from django.db import models
from django.db.models.functions import Now

LONGEST_ADDRESS = 400  # characters; longer than any valid mail address, so only invalid ones are cut


class FeedEntry(models.Model):
    """An entry of an RSS or Atom feed, imported by `jobs.import_feed`."""

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


class StoredFile(models.Model):
    """A file in Django's default storage, uploaded or made by a run. `toolkit.files` creates and deletes it."""

    class Kind(models.TextChoices):
        UPLOAD = "upload"
        REPORT = "report"
        IMAGE = "image"
        BACKUP = "backup"
        DATA = "data"

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.UPLOAD)
    name = models.CharField(max_length=200, help_text="The name under which it is downloaded.")
    file = models.FileField()
    content_type = models.CharField(max_length=100, default="application/octet-stream")
    size = models.BigIntegerField(null=True, help_text="In bytes; empty until the file is complete.")
    run_id = models.UUIDField(null=True, db_index=True, help_text="The run that made it.")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    def __str__(self) -> str:
        return self.name


class Delivery(models.Model):
    """A run's message to one address, and its outcome. `toolkit.mail` writes it before and after the sending."""

    class State(models.TextChoices):
        SENDING = "sending", "in doubt"
        SENT = "sent"
        REFUSED = "refused"

    id = models.UUIDField(primary_key=True, editable=False, help_text="The left part of its Message-ID.")
    run = models.ForeignKey("jobs.Run", models.CASCADE, related_name="deliveries")
    message = models.CharField(max_length=64, help_text="A digest of the message's name, or of its content.")
    address = models.CharField(max_length=LONGEST_ADDRESS)
    state = models.CharField(max_length=10, choices=State.choices, default=State.SENDING)
    reason = models.CharField(max_length=200, blank=True, help_text="Why the address was refused.")
    begun_at = models.DateTimeField(db_default=Now(), db_index=True)

    class Meta:
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return self.address
