"""The ledger: schedules' policies, runs with their attempts, and the one way in which a run changes its state.

Its one rule: every change of state goes through `RunQuerySet.move`, one conditional UPDATE whose loser changes nothing
and is told so. Terminal rows never change. The database's clock decides; rows hold UTC.

A run's `attempt` number is its fencing token: start and finish name it, every return to `waiting` after a start raises
it, so neither a repeated message nor a process that wakes after its rescue finds anything to change.
"""

import secrets
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import connection, models, transaction
from django.db.models import Case, F, Q, When
from django.db.models.functions import Coalesce, Now
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs import policies

# How long a sender has a run to itself; after this the outbox offers it again.
SENDING = timedelta(seconds=5)
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
    """A random id that sorts by time (UUID version 7, RFC 9562), so that new rows stay together in the index.

    The twelve bits after the millisecond are its fraction: what is made together is listed in the order of its making.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62))


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
ENDED_BY_ITSELF = frozenset({State.SUCCEEDED, State.FAILED, State.LOST})


class Trigger(models.TextChoices):
    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"


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
        reason = f"{len(states)} runs in a row failed"
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
            (policies.Overlap.SKIP, "skip the new run"),
            (policies.Overlap.QUEUE_ONE, "let one wait for the end of the earlier run"),
            (policies.Overlap.ALLOW, "run them side by side"),
            (policies.Overlap.CANCEL_PREVIOUS, "cancel the earlier run"),
        ],
        default=policies.Overlap.SKIP,
        help_text="What to do when it is due while an earlier run is not over.",
    )
    catch_up = models.CharField(
        max_length=20,
        choices=CATCH_UP_CHOICES,
        default=policies.CatchUp.LATEST,
        help_text="What to do with moments that were missed while nothing was running.",
    )
    catch_up_window = models.DurationField(
        default=timedelta(days=1),
        validators=[MinValueValidator(timedelta(0))],
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
        validators=[MinValueValidator(timedelta(0))],
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
        max_length=20, editable=False, choices=CATCH_UP_CHOICES, default=policies.CatchUp.NONE
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
    actor = models.CharField(max_length=150)
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"backfill of {self.schedule} from {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M}"


class RunQuerySet(models.QuerySet["Run"]):
    def active(self) -> "RunQuerySet":
        """Runs that are not over (index run_active)."""
        return self.filter(state__in=ACTIVE)

    def of_schedule(self, schedule: int) -> "RunQuerySet":
        """Its runs, the latest first (index run_recent)."""
        return self.filter(schedule=schedule).order_by("-due_at")

    def held(self) -> "RunQuerySet":
        """Runs that wait for another one to end (index run_held)."""
        return self.filter(state=State.WAITING, not_before__isnull=True)

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

    def cancel(self, reason: str) -> int:
        """End at once what has not started, ask what is running to end; returns how many were either."""
        sentence = f"cancelled: {reason}"
        ended = self.move(UNSTARTED, State.CANCELLED, reason=sentence)
        return ended + self.filter(state=State.RUNNING).update(cancel_reason=sentence)

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
    backfill = models.ForeignKey(Backfill, models.SET_NULL, null=True, related_name="runs", db_index=False)
    due_at = models.DateTimeField()
    last_due_at = models.DateTimeField(
        help_text="Differs from due_at where one row stands for a stretch of skipped ones."
    )
    count = models.PositiveIntegerField(default=1, help_text="How many due moments this row stands for.")
    not_before = models.DateTimeField(
        null=True,
        help_text="Unstarted runs are handed to Celery when this moment has come; empty: when another run has ended.",
    )
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
    cancel_reason = models.TextField(blank=True, help_text="Why it was asked to end; empty: it was not.")
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
            models.Index("schedule", name="run_held", condition=Q(state=State.WAITING, not_before__isnull=True)),
            models.Index("backfill", name="run_backfill", condition=Q(backfill__isnull=False)),
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
        changes |= {"started_at": None, "lease_until": None, "worker": "", "expires_at": None}
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
