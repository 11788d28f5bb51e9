"""Keeps the runs of this process alive in the ledger: one thread renews the leases of all that execute here.

Its one rule: it only renews what is still in the attempt this process started; a run that was rescued meanwhile stays
lost to it. A run shorter than `QUIET` costs nothing here. Code that holds the interpreter for a whole lease (a C
extension that never releases it) silences this thread too, and its run is rescued while it still works.
"""

import logging
import os
import signal
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from uuid import UUID

from billiard.pool import soft_timeout_sighandler
from django.db import Error, connection
from django.db.models import Q
from django.db.models.functions import Now

from jobs.models import Run, RunQuerySet, State, lease

log = logging.getLogger(__name__)

QUIET = 5.0  # seconds a run may last before its first pulse


@dataclass(slots=True)
class Held:
    """An attempt that this process executes."""

    run_id: UUID
    attempt: int
    started_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=time.monotonic)
    interrupted: bool = False

    @property
    def task_id(self) -> str:
        return str(self.run_id)


_held: dict[str, Held] = {}  # by task id, which is the run's id as text
_thread: threading.Thread | None = None
_lock = threading.Lock()


def hold(run_id: UUID, attempt: int) -> None:
    """Renew this attempt's lease from now on, until `release`."""
    global _thread  # noqa: PLW0603 - one thread per process, made when the first run starts
    _held[str(run_id)] = Held(run_id, attempt)
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_beat, name="pulse", daemon=True)
            _thread.start()


def find(task_id: str | None) -> Held | None:
    """What this process executes under that task id; None for a task that is no run, or somebody else's."""
    return _held.get(task_id or "")


def release(task_id: str) -> Held | None:
    """Stop renewing; returns what was held."""
    return _held.pop(task_id, None)


def _beat() -> None:
    while True:
        time.sleep(_pause())
        if old := [held for held in list(_held.values()) if time.monotonic() - held.started_at >= _pause()]:
            _look_after(old)


def _pause() -> float:
    return min(QUIET, lease().total_seconds() / 4)


def _look_after(old: list[Held]) -> None:
    """Two statements for all. A database that is away is asked again in a moment: the lease has three more chances."""
    due = [held for held in old if time.monotonic() - held.renewed_at >= lease().total_seconds() / 4]
    try:
        with closing(connection):
            if due:
                _running(due).update(lease_until=Now() + lease())
            unwanted = set(_running(old).exclude(cancel_reason="").values_list("id", flat=True))
    except Error:
        log.warning("The leases of %d runs could not be renewed.", len(due), exc_info=True)
        return
    for held in due:
        held.renewed_at = time.monotonic()
    for held in old:
        if held.run_id in unwanted and find(held.task_id) is held and not held.interrupted:
            held.interrupted = True
            _interrupt(held)


def _running(helds: list[Held]) -> RunQuerySet:
    attempts = Q(*(Q(id=held.run_id, attempt=held.attempt) for held in helds), _connector=Q.OR)
    return Run.objects.filter(attempts, state=State.RUNNING)


def _interrupt(held: Held) -> None:
    """Raise `SoftTimeLimitExceeded` in the task, as its time limit would: it may clean up. Prefork pools only."""
    if signal.getsignal(signal.SIGUSR1) is soft_timeout_sighandler:
        log.info("Run %s is asked to end.", held.run_id, extra={"action": "cancel", "run": held.task_id})
        os.kill(os.getpid(), signal.SIGUSR1)
    else:
        log.warning("Run %s is to end, but this pool cannot interrupt it.", held.run_id, extra={"run": held.task_id})


def _forget() -> None:
    """In a forked child: the parent's runs are not its own, and threads do not survive a fork."""
    global _thread, _lock
    _held.clear()
    _thread, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
