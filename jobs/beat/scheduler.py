"""When does beat wake up, and what does it call, in which order? It decides and stores nothing itself.

Its one rule: no failed tick ends beat. If the database or the broker is unavailable, the next tick comes a little
later; nothing is lost, because due moments wait in `Policy.next_due_at` and claimed ones in the ledger. Any number of
beats may run at once. Beat saves nothing at shutdown, so a signal can interrupt it anywhere.
"""

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import beat
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, close_old_connections, connection
from django.db.models import Min
from django_celery_beat.models import PeriodicTasks

from jobs.alerts import watching
from jobs.beat import claim, release, rescue
from jobs.ledger import outbox
from jobs.messages.dispatch import BrokerUnavailableError
from jobs.models import UNSTARTED, ChangedTiming, Node, Policy, Release, Run, database_now, installation
from jobs.monitoring import nodes
from jobs.rules.errors import hidden
from jobs.schedules import calendar, entries, recheck
from jobs.worker import guard

log = logging.getLogger(__name__)

LONGEST_SLEEP = 1.0  # seconds; so beat soon finds a requested run whose sender died
SHORTEST_SLEEP = 0.005
STILL_DUE_SLEEP = 0.1  # after a pass that left due work behind
WAITING_TURN_SLEEP = 0.2  # while a run waits for another one to end
CHANGES_EVERY = 1.5  # seconds between searches for changes that sent no signal
SWEEP_EVERY = 300.0  # seconds between comparisons of all schedules, in case a search missed a change
RESCUE_EVERY = 2.0  # seconds
INSTALL_EVERY = 5.0  # seconds between attempts, until the entries are installed
REFUSED_SLEEP = 2.0  # seconds between looks at a database of another installation
LONGEST_BACKOFF = 15.0  # seconds between ticks while the database is unavailable
STANDS_BACK = (
    "Beats of a newer release are there: %s. This beat leaves CELERY_BEAT_SCHEDULE to them, and installs its own"
    " entries once they have gone. If they belong to another project, give each its own PROJECT."
)


class Scheduler(beat.Scheduler):
    """For `celery beat` (CELERY_BEAT_SCHEDULER or `-S jobs.beat:Scheduler`) and `celery worker -B`."""

    max_interval: float = LONGEST_SLEEP  # type: ignore[assignment] # seconds need not be whole

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if found := guard.fault(self.app):
            raise ImproperlyConfigured(found)
        self.max_interval = min(self.max_interval, LONGEST_SLEEP)
        self._failures = 0
        self._done_at: dict[str, float] = {}
        self._installed = self._stands_back = False
        self._release: Release | None = None
        self._refusal = ""
        self._name = nodes.beat_name()
        self._changes_mark: object = None
        self._rechecked: int | None = 0  # the last schedule that was rechecked; None after all of them
        self._clock: datetime | None = None  # the latest time of the database's clock
        self._last_notice: object = None

    def setup_schedule(self) -> None:
        """Load nothing: the schedules stay in the database."""

    def tick(self, *_: Any, **__: Any) -> float:
        """One pass; returns the seconds until the next."""
        try:
            pause = self._pass()
        except Exception as error:  # noqa: BLE001 - beat never exits: other schedules are due
            # An error of the cleanup after a signal, such as a rollback, may have replaced the exit it asked for.
            if (requested := hidden(error, SystemExit, KeyboardInterrupt)) is not None:
                raise requested from None
            return self._back_off(error)
        self._failures = 0
        watching.note_tick()
        return pause

    def _pass(self) -> float:
        close_old_connections()
        if self._is_refused():
            return REFUSED_SLEEP
        self._look_for_changes()
        if self._is_time_for("heartbeat", nodes.EVERY):
            self._report()
        self._install()
        if self._is_time_for("rescue", RESCUE_EVERY):
            rescue.rescue()
        agenda = _Agenda.read()
        self._look_at_clock(agenda.now)
        if agenda.has_marked:
            calendar.compute_marked()
        if agenda.has_work:
            self._send_due()
            agenda = _Agenda.read()
        return agenda.pause(self.max_interval if self._rechecked is None else STILL_DUE_SLEEP)

    def _look_for_changes(self) -> None:
        if self._is_time_for("sweep", SWEEP_EVERY):
            self._changes_mark, self._rechecked = None, 0
        if self._is_time_for("changes", CHANGES_EVERY) or self._was_notified():
            self._changes_mark = calendar.find_changes(self._changes_mark)
            if ChangedTiming.objects.exists():  # more schedules than one call marks
                self._done_at.pop("changes", None)
        if self._rechecked == 0:
            rescue.shorten_waits()
        if self._rechecked is not None:
            self._rechecked = recheck.recheck(self._rechecked)

    def _look_at_clock(self, now: datetime) -> None:
        """Recheck all that was computed from a clock that has gone back since."""
        if self._clock and now < self._clock - recheck.TOLERANCE:
            log.warning(
                "The database's clock went back from %s to %s: beat rechecks what it decided.", self._clock, now
            )
            self._rechecked = 0
        self._clock = now

    def _report(self) -> None:
        """Send a heartbeat that says which entries this beat knows."""
        if self._release is None:
            self._release = entries.release_of(self.app)
            nodes.at_exit(self._name)
        if self._installed and entries.newer_beats(self._release):  # they change the entries, and may go again
            self._installed = False
        nodes.heartbeat(self._name, kind=Node.Kind.BEAT, release=self._release)

    def _is_refused(self) -> bool:
        """Whether the database belongs to another installation. The first beat adopts it; a refused one looks again."""
        if not self._installed:
            installation.adopt()
        why = installation.refusal()
        if why != self._refusal:
            log.log(logging.ERROR if why else logging.INFO, "%s", why or "This installation has taken over.")
        self._refusal = why
        if why and self._is_time_for("heartbeat", nodes.EVERY):
            nodes.heartbeat(self._name, kind=Node.Kind.BEAT)
        return bool(why)

    def _install(self) -> None:
        """Install CELERY_BEAT_SCHEDULE once, as soon as the database answers and no newer release is there."""
        if self._installed or not self._is_time_for("install", INSTALL_EVERY):
            return
        outcome = entries.install(self.app, self._release)
        for name, reason in outcome.refused.items():
            log.error("The entry %r of CELERY_BEAT_SCHEDULE is not installed: %s", name, reason)
        for name, reason in outcome.flagged.items():
            log.error("The entry %r of CELERY_BEAT_SCHEDULE is installed, but cannot run: %s", name, reason)
        if outcome.newer and not self._stands_back:
            log.warning(STANDS_BACK, ", ".join(outcome.newer))
        self._stands_back, self._installed = bool(outcome.newer), not outcome.newer
        if self._installed and not installation.own_name() and (theirs := installation.adopter()):
            log.warning(
                "This database belongs to %r, but this beat has no name, and runs it: set INSTALLATION.", theirs
            )

    def _was_notified(self) -> bool:
        """Whether django-celery-beat's `PeriodicTasks.update_changed()` was called, for example after a bulk change."""
        notice = PeriodicTasks.last_change()
        is_new = bool(notice != self._last_notice)
        self._last_notice = notice
        return is_new

    def _send_due(self) -> None:
        """Claim first, even if the broker is unavailable: a due moment is recorded at once and sent when possible."""
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


@dataclass(frozen=True, slots=True)
class _Agenda:
    """The work to do and its times, by the database's clock: the only queries of an idle tick."""

    now: datetime
    next_due_at: datetime | None
    next_send_at: datetime | None
    has_waiting_turn: bool
    has_marked: bool

    @classmethod
    def read(cls) -> "_Agenda":
        now, known = database_now(), Policy.objects.aggregate(at=Min("next_due_at"), marked=Min("stale_since"))
        return cls(
            now,
            known["at"],
            Run.objects.filter(state__in=UNSTARTED).aggregate(at=Min("not_before"))["at"],
            Run.objects.waiting_turn().exists(),
            has_marked=known["marked"] is not None,
        )

    @property
    def has_work(self) -> bool:
        moments = (self.next_due_at, self.next_send_at)
        return self.has_waiting_turn or any(moment <= self.now for moment in moments if moment)

    def pause(self, longest: float) -> float:
        """Seconds until there is something to do."""
        waits = [(moment - self.now).total_seconds() for moment in (self.next_due_at, self.next_send_at) if moment]
        wait = min([longest, *waits, *([WAITING_TURN_SLEEP] if self.has_waiting_turn or self.has_marked else [])])
        # Work that is still due is locked elsewhere, or is more than one pass takes: try again soon, but do not spin.
        return max(wait, SHORTEST_SLEEP) if wait > 0 else STILL_DUE_SLEEP
