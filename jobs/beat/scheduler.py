"""The beat: wakes when something is due and calls, in order, what has to happen. It decides and stores nothing itself.

Its one rule: no tick ever ends it. The database or the broker away means that the next tick comes a little later;
nothing is lost, because due moments wait in `Policy.next_due_at` and claimed ones in the ledger. Any number of beats
may run at once. Nothing is saved at shutdown, so a signal can interrupt it anywhere.
"""

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import beat
from django.db import Error, close_old_connections, connection
from django.db.models import Min
from django_celery_beat.models import PeriodicTasks

from jobs.beat import claim, release, rescue
from jobs.ledger import outbox
from jobs.messages.dispatch import BrokerUnavailableError
from jobs.models import UNSTARTED, Node, Policy, Run, database_now
from jobs.monitoring import nodes
from jobs.schedules import calendar, entries

log = logging.getLogger(__name__)

LONGEST_SLEEP = 1.0  # seconds; a run that a person asked for waits no longer, even if its sender died
SHORTEST_SLEEP = 0.005
LOCKED_SLEEP = 0.1
HELD_SLEEP = 0.2  # while a run waits for another one to end
LOOK_EVERY = 1.5  # seconds between looks for changes that no signal told of
SWEEP_EVERY = 300.0  # seconds between looks at everything, should a look ever have missed something
RESCUE_EVERY = 2.0  # seconds
LONGEST_BACKOFF = 15.0  # seconds between ticks while the database is away


class Scheduler(beat.Scheduler):
    """For `celery beat` (CELERY_BEAT_SCHEDULER or `-S jobs.beat.scheduler:Scheduler`) and `celery worker -B`."""

    max_interval: float = LONGEST_SLEEP  # type: ignore[assignment] # seconds need not be whole

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_interval = min(self.max_interval, LONGEST_SLEEP)
        self._failures = 0
        self._done_at: dict[str, float] = {}
        self._installed = False
        self._name = nodes.beat_name()
        self._looked: object = None
        self._told_at: object = None

    def setup_schedule(self) -> None:
        """Nothing is loaded: the schedules stay in the database."""

    def tick(self, *_: Any, **__: Any) -> float:
        """One pass; returns the seconds until the next."""
        try:
            pause = self._pass()
        except Exception as error:  # noqa: BLE001 - beat never exits: whatever this was, other schedules are due
            if end := _asked_to_end(error):
                raise end from None
            return self._back_off(error)
        self._failures = 0
        return pause

    def _pass(self) -> float:
        close_old_connections()
        self._install()
        if self._is_time_for("sweep", SWEEP_EVERY):
            self._looked = None
        if self._is_time_for("look", LOOK_EVERY) or self._was_told():
            self._looked = calendar.look(self._looked)
        if self._is_time_for("node", nodes.EVERY):
            nodes.tell(self._name, kind=Node.Kind.BEAT)
        if self._is_time_for("rescue", RESCUE_EVERY):
            rescue.rescue()
        agenda = _Agenda.look()
        if agenda.has_work:
            self._send_due()
            agenda = _Agenda.look()
        return agenda.pause(self.max_interval)

    def _install(self) -> None:
        """Once, in the first pass that reaches the database."""
        if self._installed:
            return
        for name, reason in entries.install(self.app).refused.items():
            log.error("The entry %r of CELERY_BEAT_SCHEDULE is not installed: %s", name, reason)
        self._installed = True
        nodes.at_exit(self._name)

    def _was_told(self) -> bool:
        """Whether somebody called django-celery-beat's `PeriodicTasks.update_changed()` after a change in bulk."""
        told_at = PeriodicTasks.last_change()
        news = bool(told_at != self._told_at)
        self._told_at = told_at
        return news

    def _send_due(self) -> None:
        """Claim first, whatever the broker does: a moment is written down when it is due, and sent when that works."""
        try:
            for runs in claim.claim_due():
                outbox.send(runs)
            release.release()
            outbox.send_waiting()
        except BrokerUnavailableError as error:
            for _ in claim.claim_due():
                pass
            log.warning("%s", error, extra={"action": "dispatch"})

    def _is_time_for(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now - self._done_at.get(what, -every) < every:
            return False
        self._done_at[what] = now
        return True

    def _back_off(self, error: Exception) -> float:
        self._failures += 1
        connection.close()
        pause = min(0.5 * (1 << min(self._failures, 10)), LONGEST_BACKOFF)
        log.error("This tick failed, the next comes in %.1f s: %s", pause, error, exc_info=not isinstance(error, Error))
        return pause


def _asked_to_end(error: BaseException | None) -> BaseException | None:
    """The end that a signal asked for: what tidied up after it, such as a rollback, may have failed in its place."""
    while error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
        error = error.__context__
    return error


@dataclass(frozen=True, slots=True)
class _Agenda:
    """What there is to do and when, by the database's clock: all that an idle tick asks."""

    now: datetime
    next_due_at: datetime | None
    next_send_at: datetime | None
    holds_runs: bool

    @classmethod
    def look(cls) -> "_Agenda":
        return cls(
            database_now(),
            Policy.objects.aggregate(at=Min("next_due_at"))["at"],
            Run.objects.filter(state__in=UNSTARTED).aggregate(at=Min("not_before"))["at"],
            Run.objects.waiting_turn().exists(),
        )

    @property
    def has_work(self) -> bool:
        return self.holds_runs or any(moment <= self.now for moment in (self.next_due_at, self.next_send_at) if moment)

    def pause(self, longest: float) -> float:
        """Seconds until there is something to do."""
        waits = [(moment - self.now).total_seconds() for moment in (self.next_due_at, self.next_send_at) if moment]
        wait = min([longest, *waits, *([HELD_SLEEP] if self.holds_runs else [])])
        # What is still due is locked by somebody, or has more moments than a pass takes: look soon, but do not spin.
        return max(wait, SHORTEST_SLEEP) if wait > 0 else LOCKED_SLEEP
