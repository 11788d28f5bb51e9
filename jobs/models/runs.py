"""Runs with their attempts, and the only way to change the state of a run.

Its one rule: every change of state goes through `RunQuerySet.move` or `conclude`, one conditional UPDATE. The loser of
a race changes nothing, and its return value says so. A terminal state never changes. The database's clock decides;
rows hold UTC.

A run's `attempt` number is its fencing token: start and finish name it, and every return to `waiting` after a start
raises it. So a repeated message changes nothing, and neither does a process that wakes up after its rescue.
"""

import secrets
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import models, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Greatest, Now
from django_celery_beat.models import PeriodicTask
from psycopg.types.json import Jsonb

from jobs.models import bulk
from jobs.models.clock import lease
from jobs.models.prepared import Update, UpdateReturning

# How long a sender has a run to itself; after that, the outbox offers it again.
SENDING = timedelta(seconds=5)
LONGEST_ACTOR = 254  # characters, like an e-mail address, which custom user models use as the name
LONGEST_NAME = 200  # characters
LONGEST_REASON = 500  # characters of an error in the reason of its run; `error_text` holds more
LONGEST_ERROR_TEXT = 20_000  # characters; the end of the traceback is kept


class AsJSON(models.JSONField):
    """JSON text, for comparison with a column of JSON."""

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:  # noqa: ARG002
        return Jsonb(value, dumps=str) if connection.vendor == "postgresql" else value


def new_run_id() -> UUID:
    """A random id that sorts by time (UUID version 7, RFC 9562), so that new rows stay together in the index.

    Twelve more bits hold the fraction of the millisecond, so that ids sort by time within a millisecond, too.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62))


class RunIdField(models.UUIDField):  # type: ignore[type-arg] # generic for the type checker only
    """A UUID, by default from `new_run_id`. Migrations see Django's own field, without a default."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"default": new_run_id, **options})

    def deconstruct(self) -> Any:
        name, _, args, options = super().deconstruct()
        return name, "django.db.models.UUIDField", args, {key: options[key] for key in options.keys() - {"default"}}


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


# The states that may follow each state. A state without followers is terminal; only the claim creates skipped runs.
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
    API = "api", "API"
    WEBHOOK = "webhook"
    CODE = "code"
    BACKFILL = "backfill"
    RETRY = "retry"


# The triggers of runs that were requested as they are: they stand for no due moment.
REQUESTED = frozenset({Trigger.MANUAL, Trigger.API, Trigger.WEBHOOK, Trigger.CODE})

# The columns of a run whose next attempt has not started.
NOT_STARTED: dict[str, Any] = {
    "sends": 0,
    "started_at": None,
    "lease_until": None,
    "node": "",
    "pid": None,
    "expires_at": None,
    "progress_done": 0,
    "progress_total": None,
    "progress_message": "",
    "error_class": "",
    "error_text": "",
}


class Ended(NamedTuple):
    """A run that has just ended."""

    run: UUID
    schedule: int | None
    state: State


class Sent(NamedTuple):
    """The task and the JSON arguments of a message. None: a publisher may change the arguments, so compare none."""

    task: str
    args: str | None = None
    kwargs: str = "{}"
    has_followers: bool = False


class RunQuerySet(models.QuerySet["Run"]):
    def active(self) -> "RunQuerySet":
        """Unfinished runs (index run_active)."""
        return self.filter(state__in=ACTIVE)

    def of_schedule(self, schedule: int) -> "RunQuerySet":
        """The runs of a schedule, latest first (index run_one_per_occurrence)."""
        return self.filter(schedule=schedule).order_by("-due_at")

    def waiting_turn(self) -> "RunQuerySet":
        """Runs that wait until another run ends (index run_held)."""
        return self.filter(state=State.WAITING, not_before__isnull=True)

    def to_send(self, now: datetime) -> "RunQuerySet":
        """The outbox: unstarted runs to send to Celery now, for the first time or again (index run_to_send)."""
        return self.filter(state__in=UNSTARTED, not_before__lte=now).order_by("not_before")

    def carried(self) -> "RunQuerySet":
        """Running runs whose own body is over: they end with their last step (index run_lease)."""
        return self.filter(state=State.RUNNING, lease_until=None)

    def overdue(self, now: datetime) -> "RunQuerySet":
        """Unstarted runs whose expiry has passed (index run_expires)."""
        return self.filter(state__in=UNSTARTED, expires_at__lte=now)

    def orphaned(self, now: datetime) -> "RunQuerySet":
        """Running runs whose lease has run out because their process did not renew it (index run_lease)."""
        return self.filter(state=State.RUNNING, lease_until__lte=now).order_by("lease_until")

    def move(self, expected: Collection[State], to: State, **changes: Any) -> int:
        """Change the state of the runs whose state is still one of `expected`; returns how many it changed.

        For a single run, 0 means that another process was first: a value, not an error. It refuses terminal states:
        `ledger.outcomes` ends runs.
        """
        if to in TERMINAL:
            raise ValueError(f"A run becomes {to} only through ledger.outcomes, which calls the listeners.")
        moving, values = self._moving(expected, to, **changes)
        return moving.update(**values)

    def conclude(self, expected: Collection[State], to: State, **changes: Any) -> "list[Ended]":
        """Give a terminal state to the runs whose state is still one of `expected`; returns the runs it ended.

        Only `ledger.outcomes` may call it.
        """
        ended = bulk.update_returning(*self._ending(expected, to, **changes), "id", "schedule_id")
        return [Ended(UUID(str(run)), schedule, to) for run, schedule in ended]

    def _moving(self, expected: Collection[State], to: State, **changes: Any) -> "tuple[RunQuerySet, dict[str, Any]]":
        for state in expected:
            if state != to and to not in TRANSITIONS.get(state, frozenset()):
                raise ValueError(f"A run never goes from {state} to {to}.")
        moving = self.filter(state__in=expected)
        if moving.query.count_active_tables() > 1:
            # Django selects the rows in a subquery then, whose condition PostgreSQL does not check again after a wait.
            moving = Run.objects.filter(pk__in=moving.order_by().values("pk"), state__in=expected)
        return moving, {"state": to, **changes}

    def _ending(self, expected: Collection[State], to: State, **changes: Any) -> "tuple[RunQuerySet, dict[str, Any]]":
        return self._moving(expected, to, **changes, finished_at=Now(), lease_until=None)

    def start(self, run_id: UUID, attempt: int, node: str, pid: int, sent: "Sent | None" = None) -> bool:
        """Claim an attempt for this process; False if it was already started, expired, cancelled or rescued.

        `sent` is the content of the message. False also if it differs from the run.
        """
        values = {"run_id": run_id, "attempt": attempt, "node": node, "pid": pid, "lease": lease()}
        if sent is None:
            return bool(_START(**values))
        if sent.args is None:
            return bool(_START_TASK(**values, task=sent.task))
        return bool(_START_SENT(**values, task=sent.task, sent_args=sent.args, sent_kwargs=sent.kwargs))

    def succeed(self, run_id: UUID, attempt: int) -> "list[Ended]":
        """Like `conclude`, for a success without other changes: most runs end so, and the statement is prepared."""
        return [Ended(run_id, schedule, State.SUCCEEDED) for schedule in _SUCCEED.rows(run_id=run_id, attempt=attempt)]


def _starting(
    run_id: Any, attempt: Any, node: Any, pid: Any, lease: Any, **sent: Any
) -> tuple[RunQuerySet, dict[str, Any]]:
    fresh = Q(expires_at__isnull=True) | Q(expires_at__gt=Now())
    # A sender has published this attempt, or holds it for `SENDING`. So no message starts a run before its time.
    is_sent = Q(state=State.QUEUED) | Q(sends__gt=0) | Q(not_before__lte=Now() + Value(SENDING))
    same = {COLUMN_OF.get(name, name): value for name, value in sent.items()}
    mine = Run.objects.filter(fresh, is_sent, id=run_id, attempt=attempt, **same)
    changes = {"started_at": Now(), "lease_until": Now() + lease, "node": node, "pid": pid, "reason": ""}
    changes["sends"] = Greatest(F("sends"), 1)  # its sender may not have counted this message yet
    return mine._moving(UNSTARTED, State.RUNNING, **changes)


def _succeeding(run_id: Any, attempt: Any) -> tuple[RunQuerySet, dict[str, Any]]:
    return Run.objects.filter(id=run_id, attempt=attempt)._ending({State.RUNNING}, State.SUCCEEDED, reason="")


_ATTEMPT: dict[str, Any] = {"run_id": models.UUIDField(), "attempt": models.IntegerField()}
PROCESS: dict[str, Any] = {"node": models.CharField(), "pid": models.IntegerField(), "lease": models.DurationField()}
COLUMN_OF = {"sent_args": "args", "sent_kwargs": "kwargs"}
_TASK: dict[str, Any] = {"task": models.CharField()}
_SENT: dict[str, Any] = {"sent_args": AsJSON(), "sent_kwargs": AsJSON()}
_START = Update(_starting, _ATTEMPT | PROCESS)
_START_TASK = Update(_starting, _ATTEMPT | PROCESS | _TASK)
_START_SENT = Update(_starting, _ATTEMPT | PROCESS | _TASK | _SENT)
_SUCCEED = UpdateReturning(_succeeding, _ATTEMPT, "schedule_id")


class Executed(models.Model):
    """A row that a worker process executes or has executed."""

    node = models.CharField(max_length=LONGEST_NAME, blank=True, help_text="The worker.")
    pid = models.PositiveIntegerField(null=True, help_text="Its process.")

    class Meta:
        abstract = True

    @property
    def worker(self) -> str:
        """The worker and its process as text; empty before the start."""
        return worker_text(self.node, self.pid)


def worker_text(node: str, pid: int | None) -> str:
    """A worker and its process as one text."""
    return f"{node} ({pid})" if node and pid else node


class Run(Executed):
    """One due moment or one request, and its whole life. Its id is the id of its Celery task."""

    id = RunIdField(primary_key=True, editable=False)
    schedule = models.ForeignKey(PeriodicTask, models.SET_NULL, null=True, related_name="runs", db_index=False)
    schedule_name = models.CharField(max_length=LONGEST_NAME)
    task = models.CharField(max_length=LONGEST_NAME)
    args = models.JSONField(default=list)
    kwargs = models.JSONField(default=dict)
    queue = models.CharField(max_length=LONGEST_NAME, blank=True)
    priority = models.PositiveSmallIntegerField(null=True)
    options = models.JSONField(default=dict, help_text="Other options of the message, as for apply_async.")

    trigger = models.CharField(max_length=20, choices=Trigger.choices, default=Trigger.SCHEDULE)
    key = models.CharField(
        max_length=LONGEST_NAME, null=True, help_text="Only the first request with a key makes a run."
    )
    actor = models.CharField(max_length=LONGEST_ACTOR, blank=True, help_text="Who requested it; empty: its schedule.")
    backfill = models.ForeignKey("jobs.Backfill", models.SET_NULL, null=True, related_name="runs", db_index=False)
    parent = models.ForeignKey(
        "self", models.SET_NULL, null=True, db_index=False, help_text="The run that this one repeats."
    )
    due_at = models.DateTimeField()
    last_due_at = models.DateTimeField(
        help_text="The last due moment of this row; it differs from due_at for a stretch of skipped moments."
    )
    window_start = models.DateTimeField(
        null=True,
        help_text="The start of its data window; year 2: it has none. Empty: it follows from the runs before.",
    )
    count = models.PositiveIntegerField(default=1, help_text="The number of due moments in this row.")
    not_before = models.DateTimeField(
        null=True,
        help_text="When an unstarted run is sent to Celery, or sent again; empty: after an earlier run has ended.",
    )
    expires_at = models.DateTimeField(null=True)

    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    reason = models.TextField(blank=True, help_text="Why it is in this state, in one sentence.")
    attempt = models.PositiveSmallIntegerField(default=1)
    sends = models.PositiveSmallIntegerField(default=0, help_text="How often this attempt was sent to Celery.")
    queued_at = models.DateTimeField(null=True)  # of the last message; None again if a worker gave it back
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    lease_until = models.DateTimeField(
        null=True,
        help_text="When its process counts as dead unless it renews the lease; empty: it waits for its steps.",
    )
    cancel_reason = models.TextField(blank=True, help_text="Why it was asked to end; empty if it was not.")
    progress_done = models.PositiveBigIntegerField(default=0)
    progress_total = models.PositiveBigIntegerField(null=True)
    progress_message = models.CharField(max_length=LONGEST_NAME, blank=True)
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
            models.Index("parent", name="run_parent", condition=Q(parent__isnull=False)),
            models.Index("backfill", name="run_backfill", condition=Q(backfill__isnull=False)),
            models.Index("finished_at", name="run_finished", condition=Q(finished_at__isnull=False)),
        ]
        constraints = [
            # Also the index of all runs of a schedule, so runs that no due moment made are told apart by their id.
            models.UniqueConstraint(
                "schedule",
                "due_at",
                Case(
                    When(trigger=Trigger.SCHEDULE, then=Value(UUID(int=0))),
                    default="id",
                    output_field=models.UUIDField(),
                ),
                name="run_one_per_occurrence",
            ),
            models.UniqueConstraint(fields=["key"], condition=Q(key__isnull=False), name="run_one_per_key"),
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

    def return_to_waiting(
        self, outcome: str, delay: timedelta, *, among: RunQuerySet | None = None, **changes: Any
    ) -> bool:
        """End this attempt but not the run: record an `Attempt`, and start the next one after `delay`.

        Returns False if the run is no longer running in this attempt, was asked to end, or is not in `among`.
        """
        mine = (Run.objects.all() if among is None else among).filter(
            id=self.id, attempt=self.attempt, cancel_reason=""
        )
        error = {name: changes.pop(name) for name in ("error_class", "error_text") if name in changes}
        changes |= NOT_STARTED | {"attempt": self.attempt + 1, "not_before": Now() + delay}
        with transaction.atomic():
            if not mine.move({State.RUNNING}, State.WAITING, **changes):
                return False
            self.attempts.create(
                number=self.attempt,
                outcome=outcome,
                reason=changes["reason"],
                started_at=self.started_at,
                node=self.node,
                pid=self.pid,
                **error,
            )
        return True
