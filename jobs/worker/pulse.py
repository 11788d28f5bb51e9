"""Keeps the runs of this process alive in the ledger: one thread looks after all that executes here.

It renews leases, writes progress and log lines down, and passes on that a run is to end. Its one rule: it only touches
what is still in the attempt this process started; a run that was rescued meanwhile stays lost to it. What is shorter
than `QUIET`, logs nothing and tells of no progress costs nothing here. Code that holds the interpreter for a whole
lease (a C extension that never releases it) silences this thread too, and its run is rescued while it still works.
"""

import ctypes
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import soft_timeout_sighandler
from celery._state import _task_stack  # type: ignore[attr-defined] # no public way shows what called what
from django.conf import settings
from django.db import DataError, Error, IntegrityError, connection
from django.db.models import Q
from django.db.models.functions import Now

from jobs.models import Run, RunLog, State, Step, lease

log = logging.getLogger(__name__)

QUIET = 5.0  # seconds a run may last before its first pulse
NEWS_EVERY = 1.0  # seconds between two writings of progress and log lines
REFUSED = (DataError, IntegrityError)  # what a database will not take later, either; all else passes: read-only, locked
FARTHEST_AHEAD = 1_000_000  # characters of log that wait for the database; of more, the oldest are dropped


@dataclass(slots=True)
class Held:
    """An attempt of a run, or a step of one, that this process executes."""

    task_id: str
    run_id: UUID
    attempt: int
    is_step: bool = False
    has_steps: bool = False
    replaced: bool = False  # whether this step was sent again, by a retry or with something else in its place
    replacing: bool = False  # whether it has called `self.replace()`
    uncommitted: set[str] = field(default_factory=set)  # steps that wait for the end of a transaction
    started_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=threading.get_ident)
    interrupted_at: float | None = None
    lines: deque[str] = field(default_factory=deque)  # of log, to be written down
    progress: dict[str, Any] = field(default_factory=dict)
    retry: Callable[[], Any] | None = None  # does what the task asked for by `self.retry()`, once it is over

    def take_lines(self) -> str:
        """The lines that were logged since they were taken last."""
        taken = []
        with suppress(IndexError):  # one by one: the job may be logging another, or somebody else taking them
            while True:
                taken.append(self.lines.popleft())
        return "".join(taken)[-FARTHEST_AHEAD:]


_held: dict[int, Held] = {}  # by id(): two threads may hold the same run, an old attempt and a new one
_thread: threading.Thread | None = None
_lock = threading.Lock()
_news = threading.Event()


def hold(held: Held) -> None:
    """Look after this attempt from now on, until `release`."""
    global _thread  # noqa: PLW0603 - one thread per process, made when the first run starts
    _held[id(held)] = held
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_beat, name="pulse", daemon=True)
            _thread.start()


def of(request: Any) -> Held | None:
    """What the execution behind a task's request holds; None for a task that is no run."""
    return getattr(request, "held", None)


def current() -> Held | None:
    """What the task that calls belongs to; None outside a run."""
    task = holder() if _held else None
    return of(task.request) if task else None


def holder() -> Any:
    """The innermost task of this thread that belongs to a run, whatever it calls in its own process."""
    return next((task for task in reversed(_task_stack.stack) if of(task.request)), None)


def release(held: Held) -> None:
    """Stop looking after it."""
    _held.pop(id(held), None)


def tell() -> None:
    """Somebody has logged or told of progress: write it down soon."""
    _news.set()


def _beat() -> None:
    while True:
        if _news.wait(_pause()):
            time.sleep(NEWS_EVERY)
            _news.clear()
        if helds := list(_held.values()):
            try:
                _look_after(helds)
            except Exception:  # without its pulse a process would lose every later run
                log.exception("The runs of this process could not be looked after.")


def _pause() -> float:
    return min(QUIET, lease().total_seconds() / 4)


def _look_after(helds: list[Held]) -> None:
    """A database that is away is asked again in a moment: the lease has three more chances."""
    now = time.monotonic()
    old = [held for held in helds if now - held.started_at >= _pause()]
    due = [held for held in old if now - held.renewed_at >= lease().total_seconds() / 4]
    try:
        with closing(connection):
            _renew(due)
            for held in helds:
                write_news(held)
            unwanted = _unwanted(old)
    except Error:
        log.warning("The leases of %d runs could not be renewed.", len(due), exc_info=True)
        return
    for held in due:
        held.renewed_at = now
    for held in unwanted:
        if id(held) in _held:
            _end(held)


def _renew(due: list[Held]) -> None:
    if runs := [held for held in due if not held.is_step]:
        executing = Run.objects.filter(_any_of(runs), state=State.RUNNING, lease_until__isnull=False)
        executing.update(lease_until=Now() + lease())
    for held in due:
        if held.is_step:
            mine = Step.objects.filter(id=held.task_id, attempt=held.attempt, state=Step.State.RUNNING)
            mine.update(lease_until=Now() + lease())


def write_news(held: Held) -> None:
    """Write down what the run has logged, and how far it is. What a database does not take is still news."""
    write_log(held)
    if told := held.progress:
        Run.objects.filter(_any_of([held]), state=State.RUNNING).update(**told)
        if held.progress is told:  # else it told more meanwhile
            held.progress = {}


def write_log(held: Held) -> None:
    """Write down the lines that were not yet; a database that is away is given them again."""
    text = held.take_lines()
    try:
        if text:
            RunLog.append(held.run_id, held.attempt, text)
    except Error as error:
        if not isinstance(error, REFUSED):
            held.lines.appendleft(text)
        raise


def _unwanted(old: list[Held]) -> list[Held]:
    """Those whose run is to end, and steps of attempts that are over."""
    if not old:
        return []
    running = Run.objects.filter(_any_of(old), state=State.RUNNING)
    asked = {
        (run, attempt): bool(reason) for run, attempt, reason in running.values_list("id", "attempt", "cancel_reason")
    }
    return [held for held in old if asked.get((held.run_id, held.attempt), held.is_step)]


def _any_of(helds: list[Held]) -> Q:
    return Q(*(Q(id=held.run_id, attempt=held.attempt) for held in helds), _connector=Q.OR)


def _end(held: Held) -> None:
    """Raise `SoftTimeLimitExceeded` in the task, as its time limit would, so that it may clean up; later, kill.

    In the prefork pool the signal interrupts even a blocking call, and a child can be killed. In the threads and solo
    pools the exception comes with the next instruction of Python, and nothing can be killed but the whole worker: there
    the ledger lets go of the run, and what the task still does no longer counts.
    """
    in_child = signal.getsignal(signal.SIGUSR1) is soft_timeout_sighandler
    now = time.monotonic()
    if held.interrupted_at is None:
        held.interrupted_at = now
        log.info("Run %s is asked to end.", held.run_id, extra={"action": "cancel", "run": str(held.run_id)})
        if in_child:
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            exception = ctypes.py_object(SoftTimeLimitExceeded)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(held.thread), exception)
    elif now - held.interrupted_at >= settings.CANCEL_GRACE_SECONDS:
        log.warning(
            "Run %s did not end when asked to.", held.run_id, extra={"action": "cancel", "run": str(held.run_id)}
        )
        if in_child:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            release(held)
            Run.objects.filter(_any_of([held]), state=State.RUNNING).update(lease_until=Now())


def _forget() -> None:
    """In a forked child: the parent's runs are not its own, and threads do not survive a fork."""
    global _thread, _lock, _news
    _held.clear()
    _thread, _lock, _news = None, threading.Lock(), threading.Event()


os.register_at_fork(after_in_child=_forget)
