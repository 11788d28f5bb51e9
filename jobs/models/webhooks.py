"""Which programs outside may start a job by a signed request, and what did they send?"""

from django.db import models
from django.db.models.functions import Now

from jobs.models.runs import LONGEST_NAME, Run, RunIdField


class WebhookSource(models.Model):
    """A sender of webhooks: `POST /hooks/NAME` with a valid signature starts its job."""

    class Form(models.TextChoices):
        STANDARD = "standard", "Standard Webhooks"
        GITHUB = "github", "GitHub"
        STRIPE = "stripe", "Stripe"

    name = models.SlugField(max_length=50, unique=True, help_text="The end of its address: /hooks/NAME.")
    form = models.CharField(max_length=10, choices=Form.choices, default=Form.STANDARD, help_text="How it signs.")
    keys = models.CharField(
        max_length=100, help_text="The NAME of the variable WEBHOOK_KEYS_NAME that holds its keys, separated by commas."
    )
    job = models.CharField(max_length=LONGEST_NAME, help_text="The job that each webhook starts.")
    arguments = models.JSONField(
        default=dict, blank=True, help_text="Arguments of the job besides `webhook`, which is the id of what was sent."
    )
    is_enabled = models.BooleanField("enabled", default=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    refused_at = models.DateTimeField(null=True, editable=False, help_text="When it last sent an invalid request.")
    refused_reason = models.CharField(max_length=LONGEST_NAME, blank=True, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(form__in=["standard", "github", "stripe"]), name="webhook_source_form_known"
            )
        ]

    def __str__(self) -> str:
        return self.name


class Webhook(models.Model):
    """A webhook as it was received. It is written with its run, in one transaction, and deleted with it."""

    id = RunIdField(primary_key=True, editable=False)
    source = models.ForeignKey(WebhookSource, models.SET_NULL, null=True, related_name="webhooks")
    source_name = models.CharField(max_length=50)
    event = models.CharField(max_length=LONGEST_NAME, help_text="Its identity: the same one starts nothing again.")
    content_type = models.CharField(max_length=LONGEST_NAME, blank=True)
    headers = models.JSONField(default=dict)
    body = models.BinaryField()
    received_at = models.DateTimeField(db_default=Now())
    run = models.OneToOneField(Run, models.CASCADE, related_name="webhook")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["source", "event"], name="webhook_once")]

    def __str__(self) -> str:
        return f"{self.source_name} {self.event}"
