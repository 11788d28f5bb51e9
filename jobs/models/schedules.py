"""Policies of schedules, with their pauses, backfills, and saved timings whose schedules are yet to be computed."""

from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any
from uuid import uuid4

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, When
from django.db.models.functions import Coalesce, Now
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from jobs.models.nodes import LONGEST_PROJECT
from jobs.models.runs import ENDED_BY_ITSELF, LONGEST_ACTOR, Run, State, Trigger
from jobs.rules import health, policies

LONGEST = timedelta(days=3650)  # the limit of every duration in a policy

CATCH_UP_CHOICES = [
    (policies.CatchUp.NONE.value, "run none of them"),
    (policies.CatchUp.LATEST.value, "run the latest one"),
    (policies.CatchUp.ALL.value, "run all of them"),
]


# The columns of PeriodicTask that refer to a timing, and what they refer to.
KINDS = {"interval": IntervalSchedule, "crontab": CrontabSchedule, "solar": SolarSchedule, "clocked": ClockedSchedule}
PAUSED = Q(paused_at__isnull=False, paused_until__isnull=True) | Q(paused_until__gt=Now())
# The moments that a pause held back are due again; the next claim decides about them.
NOTHING_HELD_BACK: dict[str, Any] = {"next_due_at": Coalesce("owed_from", "next_due_at"), "owed_from": None}


class PolicyQuerySet(models.QuerySet["Policy"]):
    def due(self, now: datetime) -> "PolicyQuerySet":
        """Schedules with a due moment, the earliest first (index policy_next_due); none with an uncomputed change."""
        own = (Q(kind=kind, row=OuterRef(f"schedule__{kind}")) for kind in KINDS)
        changed = ChangedTiming.objects.filter(reduce(or_, own))
        return self.filter(~Exists(changed), next_due_at__lte=now, stale_since=None).order_by("next_due_at")

    def stale(self) -> "PolicyQuerySet":
        """Schedules whose timing has changed and must be computed, those that are due first (index policy_stale)."""
        return self.filter(stale_since__isnull=False).order_by(F("next_due_at").asc(nulls_last=True), "pk")

    def paused(self) -> "PolicyQuerySet":
        """Schedules that are paused now."""
        return self.filter(PAUSED)

    def pause(self, by: str, reason: str = "", until: datetime | None = None, catch_up: str = "none") -> int:
        """Run no moment that is due from now until `until` (None: until `resume`); returns how many were paused.

        `catch_up`, one of `policies.CatchUp`, says which of these moments run afterwards. Pausing again keeps the
        start of the pause and replaces the rest.
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
        """End the pause now. Its catch-up decides which moments of the pause run; nothing else starts early."""
        return self.paused().update(paused_until=Now(), **NOTHING_HELD_BACK)

    def skip(self, moments: int) -> int:
        """Skip as many of the moments that are due from now on, replacing an earlier choice."""
        return self.update(skip_next=moments, skip_from=Now())

    def pause_if_failing(self) -> bool:
        """Pause this one schedule if its runs have failed as often in a row as its policy allows; returns whether."""
        policy = self.filter(pause_after_failures__isnull=False).first()
        if policy is None:
            return False
        last = Run.objects.of_schedule(policy.pk).filter(trigger=Trigger.SCHEDULE, state__in=ENDED_BY_ITSELF)
        if policy.paused_at is not None:  # failures before the end of its last pause do not count
            last = last.filter(finished_at__gt=policy.paused_until or policy.paused_at)
        states = list(last.values_list("state", flat=True)[: policy.pause_after_failures])
        if len(states) < (policy.pause_after_failures or 0) or State.SUCCEEDED in states:
            return False
        reason = "the last run failed" if len(states) == 1 else f"the last {len(states)} runs failed"
        return bool(self.exclude(PAUSED).pause(by="Punctual", reason=reason))


class Policy(models.Model):
    """The rules for a schedule's due moments and runs, and when it is due next. One row for each `PeriodicTask`."""

    schedule = models.OneToOneField(PeriodicTask, models.CASCADE, primary_key=True, related_name="policy")
    next_due_at = models.DateTimeField(null=True, editable=False, help_text="Empty: no further runs.")
    timing = models.TextField(editable=False, default="", help_text="The timing behind next_due_at, as a Spec.")
    timing_since = models.DateTimeField(null=True, editable=False, help_text="When the current timing took effect.")
    known_since = models.DateTimeField(
        null=True, editable=False, help_text="Since when its timings are known; before that, the first one counts."
    )
    fingerprint = models.TextField(
        editable=False, default="", help_text="The schedule's timing columns behind `timing`."
    )
    stale_since = models.DateTimeField(
        null=True, editable=False, help_text="When its timing changed, if beat has yet to compute it."
    )
    decided_until = models.DateTimeField(
        null=True,
        editable=False,
        help_text="Moments before this may have an outcome already, because the clock or the rules of a zone changed.",
    )
    former = models.JSONField(
        editable=False, null=True, help_text="Earlier timings whose due moments beat has not claimed yet."
    )
    owed_from = models.DateTimeField(
        null=True, editable=False, help_text="The first due moment that a pause holds back until it is over."
    )
    stretch = models.UUIDField(
        null=True, editable=False, help_text="The latest run, if it is a row of skipped moments that may still grow."
    )
    forgotten_until = models.DateTimeField(
        null=True, editable=False, help_text="Runs due up to this moment may have been deleted; they count as done."
    )
    invalid_reason = models.TextField(
        editable=False, default="", help_text="Why this schedule cannot run; empty if it can."
    )
    entry = models.TextField(
        editable=False,
        default="",
        help_text="Its entry in CELERY_BEAT_SCHEDULE, as last installed; empty if it has none.",
    )
    owner = models.CharField(
        max_length=LONGEST_PROJECT,
        editable=False,
        default="",
        db_default="",
        help_text="The project whose settings define its entry; empty if an earlier version of Punctual installed it.",
    )
    removed_at = models.DateTimeField(
        null=True, editable=False, help_text="When its entry was found gone from the settings."
    )
    enabled_before = models.BooleanField(
        editable=False, default=True, db_default=True, help_text="Whether it was enabled when its entry went."
    )
    wall_zone = models.CharField(
        max_length=63,
        editable=False,
        default="",
        db_default="",
        help_text="An interval of days keeps the time of day of this zone; empty: a day is 24 hours.",
    )
    options = models.JSONField(
        editable=False, null=True, help_text="Other options of its messages, as for apply_async."
    )

    overlap = models.CharField(
        max_length=20,
        choices=[
            (policies.Overlap.SKIP.value, "skip the new run"),
            (policies.Overlap.QUEUE_ONE.value, "let one run wait until the earlier run ends"),
            (policies.Overlap.ALLOW.value, "run both at the same time"),
            (policies.Overlap.CANCEL_PREVIOUS.value, "cancel the earlier run"),
        ],
        default=policies.Overlap.SKIP.value,
        help_text="What to do if it is due while an earlier run is unfinished.",
    )
    catch_up = models.CharField(
        max_length=20,
        choices=CATCH_UP_CHOICES,
        default=policies.CatchUp.LATEST.value,
        help_text="What to do with due moments that were missed, such as during an outage.",
    )
    catch_up_window = models.DurationField(
        default=timedelta(days=1),
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="Missed moments older than this are not caught up (days hh:mm:ss).",
    )
    catch_up_cap = models.PositiveSmallIntegerField(
        "catch-up limit",
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(policies.MOST_CAUGHT_UP)],
        help_text="If all of them run: at most this many, the latest ones.",
    )
    jitter = models.DurationField(
        default=timedelta(0),
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="Delay each run at random by up to this, but not beyond the next due moment (hh:mm:ss).",
    )
    remaining_runs = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Disable the schedule after this many more runs; skipped and manual ones do not count.",
    )
    skip_next = models.PositiveIntegerField(default=0, help_text="How many of the next due moments to skip.")
    skip_from = models.DateTimeField(null=True, editable=False, help_text="When an operator chose to skip moments.")
    pause_after_failures = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Pause after this many failed runs in a row. Empty: never.",
    )
    paused_at = models.DateTimeField(null=True, editable=False)
    paused_until = models.DateTimeField(null=True, editable=False, help_text="Empty: until it is resumed.")
    paused_by = models.CharField(max_length=LONGEST_ACTOR, editable=False, default="")
    pause_reason = models.CharField(max_length=500, editable=False, default="")
    pause_catch_up = models.CharField(
        max_length=20, editable=False, choices=CATCH_UP_CHOICES, default=policies.CatchUp.NONE.value
    )
    max_attempts = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="How many attempts a failing run gets in all.",
    )
    retry_delay = models.DurationField(
        default=timedelta(seconds=30),
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="The wait before the second attempt (hh:mm:ss); it doubles with each further attempt.",
    )
    rerun_if_lost = models.BooleanField(
        default=True,
        help_text="Start a run again if its process died. Off: it ends as lost and is not started again.",
    )
    soft_time_limit = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Seconds after which SoftTimeLimitExceeded is raised in the job. Empty: no limit.",
    )
    time_limit = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Seconds after which the process of the job is killed. Empty: no limit.",
    )
    keep_result = models.BooleanField(
        null=True, help_text="Whether to keep the return value. Unknown: the task decides."
    )

    late_after = models.DurationField(
        default=health.LATE_AFTER,
        db_default=health.LATE_AFTER,
        validators=[MinValueValidator(timedelta(seconds=1)), MaxValueValidator(LONGEST)],
        help_text="It counts as late if it has not started by then after it is due (hh:mm:ss).",
    )
    failures_allowed = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        validators=[MaxValueValidator(health.MOST_FAILURES - 1)],
        help_text="It counts as failing after more failed runs in a row than these.",
    )
    longest_runtime = models.DurationField(
        null=True,
        blank=True,
        validators=[MinValueValidator(timedelta(seconds=1)), MaxValueValidator(LONGEST)],
        help_text="A run that takes longer is too long (hh:mm:ss). Empty: far longer than usual.",
    )
    shortest_runtime = models.DurationField(
        null=True,
        blank=True,
        validators=[MinValueValidator(timedelta(0)), MaxValueValidator(LONGEST)],
        help_text="A run that succeeds sooner is suspicious (hh:mm:ss). Empty: far sooner than usual.",
    )
    longest_pause = models.DurationField(
        null=True,
        blank=True,
        default=health.LONGEST_PAUSE,
        db_default=health.LONGEST_PAUSE,
        validators=[MinValueValidator(timedelta(minutes=1)), MaxValueValidator(LONGEST)],
        help_text="A longer pause is reported (days hh:mm:ss). Empty: never.",
    )

    objects = PolicyQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "policies"
        indexes = [
            models.Index("next_due_at", name="policy_next_due", condition=Q(next_due_at__isnull=False)),
            models.Index("stale_since", name="policy_stale", condition=Q(stale_since__isnull=False)),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    overlap__in=[overlap.value for overlap in policies.Overlap],
                    catch_up__in=[kind for kind, _ in CATCH_UP_CHOICES],
                    pause_catch_up__in=[kind for kind, _ in CATCH_UP_CHOICES],
                ),
                name="policy_choices_known",
            ),
            models.CheckConstraint(  # each look at the health of all schedules computes with these
                condition=Q(late_after__range=(timedelta(0), LONGEST))
                & (Q(longest_runtime=None) | Q(longest_runtime__range=(timedelta(0), LONGEST)))
                & (Q(shortest_runtime=None) | Q(shortest_runtime__range=(timedelta(0), LONGEST)))
                & (Q(longest_pause=None) | Q(longest_pause__range=(timedelta(0), LONGEST))),
                name="policy_limits_bounded",
            ),
        ]

    def __str__(self) -> str:
        return f"policy of {self.schedule.name}"

    @classmethod
    def of(cls, run: Run) -> "Policy":
        """The current policy of the run's schedule; the defaults if the schedule was deleted."""
        return getattr(run.schedule, "policy", None) or cls()

    @property
    def pause(self) -> policies.Pause | None:
        """The current or the last pause; None before the first."""
        return policies.Pause.of(self)


class ChangedTiming(models.Model):
    """A saved crontab or interval, solar event or clocked moment whose many schedules beat has yet to compute."""

    kind = models.CharField(max_length=10, help_text="The column of PeriodicTask that refers to it.")
    row = models.BigIntegerField()
    changed_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "row"], name="changed_timing_once")]

    def __str__(self) -> str:
        return f"{self.kind} {self.row}"

    @property
    def schedules(self) -> models.QuerySet[PeriodicTask]:
        found: models.QuerySet[PeriodicTask] = PeriodicTask.objects.filter(**{self.kind: self.row})
        return found


class Backfill(models.Model):
    """A person's request to run the due moments of a schedule in a time range, a few at a time."""

    class Which(models.TextChoices):
        MISSING = "missing", "moments that have not run"
        FAILED = "failed", "moments that have not run or have failed"
        ALL = "all", "all moments, even if they succeeded"

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    schedule = models.ForeignKey(PeriodicTask, models.CASCADE, related_name="backfills")
    start = models.DateTimeField(help_text="The start of the range.")
    end = models.DateTimeField(help_text="The end of the range; a moment due exactly then is not included.")
    which = models.CharField(max_length=10, choices=Which.choices, default=Which.MISSING)
    at_once = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="How many of its runs may be queued or running at the same time.",
    )
    actor = models.CharField(max_length=LONGEST_ACTOR)
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"backfill of {self.schedule} from {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M}"
