"""The ledger: schedules' policies, runs with their attempts, and the one way in which a run changes its state.

Its one rule: every change of state goes through `RunQuerySet.move`, one conditional UPDATE whose loser changes nothing
and is told so. Terminal rows never change. The database's clock decides; rows hold UTC.

A run's `attempt` number is its fencing token: start and finish name it, every return to `waiting` after a start raises
it, so neither a repeated message nor a process that wakes after its rescue finds anything to change.
"""

import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import connection, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs import policies

# How long a sender has a run to itself; after this the outbox offers it again.
SENDING = timedelta(seconds=10)
LONGEST_NAME = 200  # characters
LONGEST_ERROR_TEXT = 20_000  # characters; the end of a traceback says most


def database_now() -> datetime:
    """The database's clock, which decides; SQLite's is this machine's."""
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def new_run_id() -> UUID:
    """A random id that sorts by time (UUID version 7, RFC 9562), so that new rows stay together in the index."""
    milliseconds = int(timezone.now().timestamp() * 1000)
    return UUID(int=milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62))


def lease() -> timedelta:
    """How long an executing process owns its run without a sign of life."""
    return timedelta(seconds=settings.LEASE_SECONDS)


class State(models.TextChoices):
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    EXPIRED = "expired"
    SKIPPED = "skipped"


# Which state may follow which. A state without followers is terminal; `skipped` is given at the claim only.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.QUEUED: frozenset({State.WAITING, State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.WAITING, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.LOST}),
}
UNSTARTED = frozenset({State.WAITING, State.QUEUED})
ACTIVE = frozenset(TRANSITIONS)
TERMINAL = frozenset(State) - ACTIVE


class Trigger(models.TextChoices):
    SCHEDULE = "schedule"
    MANUAL = "manual"


class PolicyQuerySet(models.QuerySet["Policy"]):
    def due(self, now: datetime) -> "PolicyQuerySet":
        """Schedules with a due moment, the longest waiting first (index policy_next_due)."""
        return self.filter(next_due_at__lte=now).order_by("next_due_at")


class Policy(models.Model):
    """What a schedule does beyond being due, and when it is due next. One row for each `PeriodicTask`."""

    schedule = models.OneToOneField(PeriodicTask, models.CASCADE, primary_key=True, related_name="policy")
    next_due_at = models.DateTimeField(null=True, editable=False, help_text="Empty: nothing to come.")
    timing_since = models.DateTimeField(null=True, editable=False, help_text="When the present timing took effect.")
    fingerprint = models.TextField(editable=False, default="", help_text="What next_due_at was computed from.")
    stretch = models.UUIDField(
        null=True, editable=False, help_text="The row of the moments that were skipped last, while they are."
    )
    invalid_reason = models.TextField(
        editable=False, default="", help_text="Why this schedule cannot run; empty: it can."
    )

    overlap = models.CharField(
        max_length=20,
        choices=[(policies.Overlap.SKIP, "skip the new run"), (policies.Overlap.ALLOW, "run them side by side")],
        default=policies.Overlap.SKIP,
        help_text="What to do when it is due while an earlier run is not over.",
    )
    catch_up = models.CharField(
        max_length=20,
        choices=[
            (policies.CatchUp.NONE, "run none of them"),
            (policies.CatchUp.LATEST, "run the latest one"),
            (policies.CatchUp.ALL, "run all of them"),
        ],
        default=policies.CatchUp.LATEST,
        help_text="What to do with moments that were missed while nothing was running.",
    )
    catch_up_window = models.DurationField(
        default=timedelta(days=1),
        validators=[MinValueValidator(timedelta(0))],
        help_text="Moments missed longer ago than this are not caught up (days hh:mm:ss).",
    )
    max_attempts = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="How often a run is tried in all when it fails.",
    )
    retry_delay = models.DurationField(
        default=timedelta(seconds=30),
        validators=[MinValueValidator(timedelta(0))],
        help_text="How long to wait before the second attempt (hh:mm:ss); doubles with each further one.",
    )
    rerun_if_lost = models.BooleanField(
        default=True,
        help_text="Start a run again when its process died. Off: it runs at most once and ends as lost.",
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

    def __str__(self) -> str:
        return f"policy of {self.schedule}"

    @property
    def rule(self) -> policies.Rule:
        return policies.Rule(policies.Overlap(self.overlap), policies.CatchUp(self.catch_up), self.catch_up_window)


class RunQuerySet(models.QuerySet["Run"]):
    def active(self) -> "RunQuerySet":
        """Runs that are not over (index run_active)."""
        return self.filter(state__in=ACTIVE)

    def to_send(self, now: datetime) -> "RunQuerySet":
        """The outbox: runs to hand to Celery now, because nobody did or because nothing came of it (run_to_send)."""
        return self.filter(state__in=UNSTARTED, not_before__lte=now).order_by("not_before")

    def overdue(self, now: datetime) -> "RunQuerySet":
        """Unstarted runs that came too late to be of use (run_expires)."""
        return self.filter(state__in=UNSTARTED, expires_at__lte=now)

    def orphaned(self, now: datetime) -> "RunQuerySet":
        """Running runs whose process gave no sign of life for a whole lease (run_lease)."""
        return self.filter(state=State.RUNNING, lease_until__lte=now).order_by("lease_until")

    def move(self, expected: Collection[State], to: State, **changes: Any) -> int:
        """Change the state of these runs where it is still one of `expected`; returns how many were changed.

        0 for a single run means that somebody else was first: a value, not an error.
        """
        for state in expected:
            if state != to and to not in TRANSITIONS.get(state, frozenset()):
                raise ValueError(f"A run never goes from {state} to {to}.")
        if to in TERMINAL:
            changes |= {"finished_at": Now(), "lease_until": None}
        return self.filter(state__in=expected).update(state=to, **changes)

    def start(self, run_id: UUID, attempt: int, worker: str) -> bool:
        """Take an attempt for this process; False when it was taken, expired, cancelled or rescued before."""
        fresh = Q(expires_at__isnull=True) | Q(expires_at__gt=Now())
        mine = self.filter(fresh, id=run_id, attempt=attempt)
        changes = {"started_at": Now(), "lease_until": Now() + lease(), "worker": worker, "reason": ""}
        return bool(mine.move(UNSTARTED, State.RUNNING, **changes))

    def finish(self, run_id: UUID, attempt: int, state: State, **changes: Any) -> bool:
        """Record how an attempt ended the run; False when it no longer owned it, and then it is noted as fenced."""
        if self.filter(id=run_id, attempt=attempt).move({State.RUNNING}, state, **changes):
            return True
        Attempt.objects.filter(run=run_id, number=attempt, outcome=Attempt.Outcome.LOST).update(
            outcome=Attempt.Outcome.FENCED
        )
        return False


class Run(models.Model):
    """One occurrence, or one request, and its whole life. Its id is the id of its Celery task."""

    id = models.UUIDField(primary_key=True, default=new_run_id, editable=False)
    schedule = models.ForeignKey(PeriodicTask, models.SET_NULL, null=True, related_name="runs", db_index=False)
    schedule_name = models.CharField(max_length=LONGEST_NAME)
    task = models.CharField(max_length=LONGEST_NAME)
    args = models.JSONField(default=list)
    kwargs = models.JSONField(default=dict)
    queue = models.CharField(max_length=LONGEST_NAME, blank=True)
    priority = models.PositiveSmallIntegerField(null=True)
    options = models.JSONField(default=dict, help_text="Further options of the message, as apply_async takes them.")

    trigger = models.CharField(max_length=20, choices=Trigger.choices, default=Trigger.SCHEDULE)
    actor = models.CharField(max_length=150, blank=True, help_text="Who asked for it, where a person did.")
    due_at = models.DateTimeField()
    last_due_at = models.DateTimeField(
        help_text="Differs from due_at where one row stands for a stretch of skipped ones."
    )
    count = models.PositiveIntegerField(default=1, help_text="How many due moments this row stands for.")
    not_before = models.DateTimeField(help_text="Unstarted runs are handed to Celery when this moment has come.")
    expires_at = models.DateTimeField(null=True)

    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    reason = models.TextField(blank=True, help_text="Why it is in this state, in one sentence.")
    attempt = models.PositiveSmallIntegerField(default=1)
    sends = models.PositiveSmallIntegerField(default=0, help_text="How often this attempt was handed to Celery.")
    queued_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    worker = models.CharField(max_length=LONGEST_NAME, blank=True)
    lease_until = models.DateTimeField(null=True)
    error_class = models.CharField(max_length=LONGEST_NAME, blank=True)
    error_text = models.TextField(blank=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index("not_before", name="run_to_send", condition=Q(state__in=sorted(UNSTARTED))),
            models.Index("lease_until", name="run_lease", condition=Q(state=State.RUNNING)),
            models.Index(
                "expires_at", name="run_expires", condition=Q(state__in=sorted(UNSTARTED), expires_at__isnull=False)
            ),
            models.Index("schedule", name="run_active", condition=Q(state__in=sorted(ACTIVE))),
            models.Index("schedule", F("due_at").desc(), name="run_recent"),
            models.Index("finished_at", name="run_finished", condition=Q(finished_at__isnull=False)),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["schedule", "due_at"], condition=Q(trigger=Trigger.SCHEDULE), name="run_one_per_occurrence"
            ),
            models.CheckConstraint(condition=Q(state__in=State.values), name="run_state_known"),
            models.CheckConstraint(
                condition=Q(state__in=sorted(ACTIVE)) | Q(finished_at__isnull=False), name="run_over_has_end"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.schedule_name or self.task} due {self.due_at:%Y-%m-%d %H:%M:%S}"

    @property
    def lateness(self) -> timedelta | None:
        """From due to start."""
        return self.started_at - self.due_at if self.started_at else None

    @property
    def duration(self) -> timedelta | None:
        """From start to end."""
        return self.finished_at - self.started_at if self.started_at and self.finished_at else None

    @property
    def policy(self) -> Policy:
        """The policy of the run's schedule as it is now; the defaults for a run whose schedule is gone."""
        return getattr(self.schedule, "policy", None) or Policy()

    def return_to_waiting(
        self, among: RunQuerySet, outcome: "Attempt.Outcome", delay: timedelta, **changes: Any
    ) -> bool:
        """End this attempt without ending the run: keep it as an `Attempt`, wait `delay`, then run the next one.

        False when the run is no longer one `among`, or no longer running in this attempt.
        """
        error = {name: changes.pop(name) for name in ("error_class", "error_text") if name in changes}
        changes |= {"attempt": self.attempt + 1, "sends": 0, "not_before": Now() + delay}
        changes |= {"started_at": None, "lease_until": None, "worker": ""}
        with transaction.atomic():
            if not among.filter(id=self.id, attempt=self.attempt).move({State.RUNNING}, State.WAITING, **changes):
                return False
            Attempt.objects.create(
                run=self,
                number=self.attempt,
                outcome=outcome,
                reason=changes["reason"],
                started_at=self.started_at,
                worker=self.worker,
                **error,
            )
        return True


class Attempt(models.Model):
    """An execution that did not end its run."""

    class Outcome(models.TextChoices):
        FAILED = "failed"
        RETRIED = "retried"
        LOST = "lost"
        FENCED = "fenced"

    run = models.ForeignKey(Run, models.CASCADE, related_name="attempts", db_index=False)
    number = models.PositiveSmallIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    reason = models.TextField(blank=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(db_default=Now())
    worker = models.CharField(max_length=LONGEST_NAME, blank=True)
    error_class = models.CharField(max_length=LONGEST_NAME, blank=True)
    error_text = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "number"], name="attempt_once")]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.run_id}"


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
