"""What a schedule does beyond being due: its policy, pauses and backfills."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Case, F, Q, When
from django.db.models.functions import Coalesce, Now
from django_celery_beat.models import PeriodicTask

from jobs.models.runs import ENDED_BY_ITSELF, LONGEST_ACTOR, Run, State, Trigger
from jobs.rules import policies

LONGEST = timedelta(days=3650)  # of any length of time in a policy

CATCH_UP_CHOICES = [
    (policies.CatchUp.NONE.value, "run none of them"),
    (policies.CatchUp.LATEST.value, "run the latest one"),
    (policies.CatchUp.ALL.value, "run all of them"),
]


PAUSED = Q(paused_at__isnull=False, paused_until__isnull=True) | Q(paused_until__gt=Now())
# What a pause held back is due again; the next claim decides about it anew.
NOTHING_HELD_BACK: dict[str, Any] = {"next_due_at": Coalesce("owed_from", "next_due_at"), "owed_from": None}


class PolicyQuerySet(models.QuerySet["Policy"]):
    def due(self, now: datetime) -> "PolicyQuerySet":
        """Schedules with a due moment, the longest waiting first (index policy_next_due)."""
        return self.filter(next_due_at__lte=now).order_by("next_due_at")

    def paused(self) -> "PolicyQuerySet":
        """Schedules whose pause is not over."""
        return self.filter(PAUSED)

    def pause(self, by: str, reason: str = "", until: datetime | None = None, catch_up: str = "none") -> int:
        """Run nothing that falls due from now on until `until` (None: until `resume`); returns how many were paused.

        `catch_up`, one of `policies.CatchUp`, says which of the moments that pass meanwhile are run afterwards.
        A pause that is on goes on with the new words.
        """
        return self.update(
            paused_at=Case(When(PAUSED, then=F("paused_at")), default=Now()),
            paused_until=until,
            paused_by=by,
            pause_reason=reason,
            pause_catch_up=catch_up,
            **NOTHING_HELD_BACK,
        )

    def resume(self) -> int:
        """End the pause now: of what was due meanwhile runs what the pause said, and nothing else starts early."""
        return self.paused().update(paused_until=Now(), **NOTHING_HELD_BACK)

    def pause_if_failing(self) -> bool:
        """Pause this one schedule if as many of its runs failed in a row as its policy allows; says whether it did."""
        policy = self.filter(pause_after_failures__isnull=False).first()
        if policy is None:
            return False
        last = Run.objects.of_schedule(policy.pk).filter(trigger=Trigger.SCHEDULE, state__in=ENDED_BY_ITSELF)
        if policy.paused_at is not None:  # what failed before a person resumed it is forgiven
            last = last.filter(finished_at__gt=policy.paused_until or policy.paused_at)
        states = list(last.values_list("state", flat=True)[: policy.pause_after_failures])
        if len(states) < (policy.pause_after_failures or 0) or State.SUCCEEDED in states:
            return False
        reason = "the last run failed" if len(states) == 1 else f"the last {len(states)} runs failed"
        return bool(self.exclude(pk__in=self.paused()).pause(by="Punctual", reason=reason))


class Policy(models.Model):
    """What a schedule does beyond being due, and when it is due next. One row for each `PeriodicTask`."""

    schedule = models.OneToOneField(PeriodicTask, models.CASCADE, primary_key=True, related_name="policy")
    next_due_at = models.DateTimeField(null=True, editable=False, help_text="Empty: nothing to come.")
    timing = models.TextField(editable=False, default="", help_text="What next_due_at was computed from, as a Spec.")
    timing_since = models.DateTimeField(null=True, editable=False, help_text="When the present timing took effect.")
    fingerprint = models.TextField(editable=False, default="", help_text="The schedule's columns behind `timing`.")
    former = models.JSONField(
        editable=False, null=True, help_text="Timings before the present one of which moments are still owed."
    )
    owed_from = models.DateTimeField(
        null=True, editable=False, help_text="The first moment that a pause holds back, to be decided when it is over."
    )
    stretch = models.UUIDField(
        null=True, editable=False, help_text="The row of the moments that were skipped last, while they are."
    )
    forgotten_until = models.DateTimeField(
        null=True, editable=False, help_text="Runs that were due until then may have been deleted; they count as done."
    )
    invalid_reason = models.TextField(
        editable=False, default="", help_text="Why this schedule cannot run; empty: it can."
    )
    entry = models.TextField(
        editable=False,
        default="",
        help_text="Its entry in CELERY_BEAT_SCHEDULE as last installed; empty: not from there.",
    )
    options = models.JSONField(
        editable=False, null=True, help_text="Further options of its messages, as apply_async takes them."
    )

    overlap = models.CharField(
        max_length=20,
        choices=[
            (policies.Overlap.SKIP.value, "skip the new run"),
            (policies.Overlap.QUEUE_ONE.value, "let one wait for the end of the earlier run"),
            (policies.Overlap.ALLOW.value, "run them side by side"),
            (policies.Overlap.CANCEL_PREVIOUS.value, "cancel the earlier run"),
        ],
        default=policies.Overlap.SKIP.value,
        help_text="What to do when it is due while an earlier run is not over.",
    )
    catch_up = models.CharField(
        max_length=20,
        choices=CATCH_UP_CHOICES,
        default=policies.CatchUp.LATEST.value,
        help_text="What to do with moments that were missed while nothing was running.",
    )
    catch_up_window = models.DurationField(
        default=timedelta(days=1),
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="Moments missed longer ago than this are not caught up (days hh:mm:ss).",
    )
    catch_up_cap = models.PositiveSmallIntegerField(
        "catch-up at most",
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(policies.MOST_CAUGHT_UP)],
        help_text="Where all are run: no more than this many of them, the latest.",
    )
    jitter = models.DurationField(
        default=timedelta(0),
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="Start each run up to this much later, at random, but before the next one is due (hh:mm:ss).",
    )
    remaining_runs = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Switch the schedule off after this many further runs; skipped and manual ones do not count.",
    )
    skip_next = models.PositiveIntegerField(default=0, help_text="How many of the next due moments to skip.")
    pause_after_failures = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Pause after this many failed runs in a row. Empty: never.",
    )
    paused_at = models.DateTimeField(null=True, editable=False)
    paused_until = models.DateTimeField(null=True, editable=False, help_text="Empty: until somebody resumes it.")
    paused_by = models.CharField(max_length=150, editable=False, default="")
    pause_reason = models.CharField(max_length=500, editable=False, default="")
    pause_catch_up = models.CharField(
        max_length=20, editable=False, choices=CATCH_UP_CHOICES, default=policies.CatchUp.NONE.value
    )
    max_attempts = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="How often a run is tried in all when it fails.",
    )
    retry_delay = models.DurationField(
        default=timedelta(seconds=30),
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="How long to wait before the second attempt (hh:mm:ss); doubles with each further one.",
    )
    rerun_if_lost = models.BooleanField(
        default=True,
        help_text="Start a run again when its process died. Off: it runs at most once and ends as lost.",
    )
    soft_time_limit = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Seconds after which a run is asked to end: SoftTimeLimitExceeded is raised in it. Empty: no limit.",
    )
    time_limit = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Seconds after which a run is ended by force. Empty: no limit.",
    )
    keep_result = models.BooleanField(
        null=True, help_text="Whether the return value is kept. Unknown: the task's choice."
    )

    objects = PolicyQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "policies"
        indexes = [models.Index("next_due_at", name="policy_next_due", condition=Q(next_due_at__isnull=False))]
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    overlap__in=[overlap.value for overlap in policies.Overlap],
                    catch_up__in=[kind for kind, _ in CATCH_UP_CHOICES],
                    pause_catch_up__in=[kind for kind, _ in CATCH_UP_CHOICES],
                ),
                name="policy_choices_known",
            )
        ]

    def __str__(self) -> str:
        return f"policy of {self.schedule.name}"

    @classmethod
    def of(cls, run: Run) -> "Policy":
        """The policy of the run's schedule as it is now; the defaults for a run whose schedule is gone."""
        return getattr(run.schedule, "policy", None) or cls()

    @property
    def pause(self) -> policies.Pause | None:
        """The pause that is on, or was on last; None before the first."""
        return policies.Pause.of(self)


class Backfill(models.Model):
    """A person's request to run what a schedule was due for in a range of time, a few runs at once."""

    class Which(models.TextChoices):
        MISSING = "missing", "what has not run"
        FAILED = "failed", "what has not run or failed"
        ALL = "all", "everything, also what succeeded"

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    schedule = models.ForeignKey(PeriodicTask, models.CASCADE, related_name="backfills")
    start = models.DateTimeField(help_text="The first moment of the range.")
    end = models.DateTimeField(help_text="The moment after the range.")
    which = models.CharField(max_length=10, choices=Which.choices, default=Which.MISSING)
    at_once = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="How many of its runs may be under way at the same time.",
    )
    actor = models.CharField(max_length=LONGEST_ACTOR)
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"backfill of {self.schedule} from {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M}"
