"""How does a process keep its executions alive in the ledger? One thread looks after all of them.

It renews leases, saves progress and log lines, and interrupts executions that should end. Its one rule: it only changes
rows that are still in the attempt that this process started, so it never takes a rescued run back. An execution that is
shorter than `QUIET`, logs nothing and reports no progress costs nothing here.

Limit: code that holds the interpreter for a whole lease (a C extension that never releases it) also stops this thread,
and its run is rescued while it works.
"""

import ctypes
import logging
import os
import signal
import threading
import time
from contextlib import closing

from billiard.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.db import Error, connection
from django.db.models import Q
from django.db.models.functions import Now

from jobs.models import Run, State, Step, lease
from jobs.rules.errors import logged
from jobs.worker import context
from jobs.worker.context import Execution
from jobs.worker.loops import is_pool_child

log = logging.getLogger(__name__)

QUIET = 5.0  # seconds an execution may last before its first pulse
NEWS_EVERY = 1.0  # seconds between two saves of progress and log lines

_executions: dict[int, Execution] = {}  # by id(): two threads may execute the same run, an old attempt and a new one
_thread: threading.Thread | None = None
_lock = threading.Lock()


def watch(execution: Execution) -> None:
    """Look after this execution until `release`."""
    global _thread  # noqa: PLW0603 - one thread per process, made when the first run starts
    _executions[id(execution)] = execution
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_beat, name="pulse", daemon=True)
            _thread.start()


def release(execution: Execution) -> None:
    """Stop looking after it."""
    _executions.pop(id(execution), None)


def _beat() -> None:
    while True:
        if context.news.wait(_pause()):
            time.sleep(NEWS_EVERY)
            context.news.clear()
        if executions := list(_executions.values()):
            with logged(log, "The pulse of this process failed; it goes on with the next round."):
                _look_after(executions)


def _pause() -> float:
    return min(QUIET, lease().total_seconds() / 4)


def _look_after(executions: list[Execution]) -> None:
    """One round. If the database is unavailable, the next rounds try again: the lease leaves three more chances."""
    now = time.monotonic()
    old = [each for each in executions if now - each.started_at >= _pause()]
    due = [each for each in old if now - each.renewed_at >= lease().total_seconds() / 4]
    try:
        with closing(connection):
            _renew(due)
            for each in executions:
                each.write_news()
            unwanted = _unwanted(old)
    except Error:
        log.warning("The leases of %d executions could not be renewed.", len(due), exc_info=True)
        return
    for each in due:
        each.renewed_at = now
    for each in unwanted:
        if id(each) in _executions:
            _end(each)


def _renew(due: list[Execution]) -> None:
    if runs := [each for each in due if not each.is_step]:
        executing = Run.objects.filter(_any_of(runs), state=State.RUNNING, lease_until__isnull=False)
        executing.update(lease_until=Now() + lease())
    for each in due:
        if each.is_step:
            mine = Step.objects.filter(id=each.step, run=each.run_id, attempt=each.attempt, state=Step.State.RUNNING)
            mine.update(lease_until=Now() + lease())


def _unwanted(old: list[Execution]) -> list[Execution]:
    """Executions whose run was asked to end, and steps of attempts that are over."""
    if not old:
        return []
    running = Run.objects.filter(_any_of(old), state=State.RUNNING)
    asked = {
        (run, attempt): bool(reason) for run, attempt, reason in running.values_list("id", "attempt", "cancel_reason")
    }
    return [each for each in old if asked.get((each.run_id, each.attempt), each.is_step)]


def _any_of(executions: list[Execution]) -> Q:
    return Q(*(Q(id=each.run_id, attempt=each.attempt) for each in executions), _connector=Q.OR)


def _end(execution: Execution) -> None:
    """Ask the task to end, and after `CANCEL_GRACE_SECONDS` end it by force."""
    now = time.monotonic()
    extra = {**execution.keys, "action": "cancel"}
    if execution.interrupted_at is None:
        execution.interrupted_at = now
        log.info("Run %s is asked to end.", execution.run_id, extra=extra)
        _interrupt(execution)
    elif now - execution.interrupted_at >= settings.CANCEL_GRACE_SECONDS:
        log.warning("Run %s did not end when asked to.", execution.run_id, extra=extra)
        _kill(execution)


def _interrupt(execution: Execution) -> None:
    """Raise `SoftTimeLimitExceeded` in the task, as its time limit would, so that it may clean up.

    In the prefork pool the signal interrupts even a blocking call. In the threads and solo pools the exception comes
    with the next Python instruction, or where an `async def` job waits.
    """
    if is_pool_child():
        os.kill(os.getpid(), signal.SIGUSR1)
    elif execution.interrupt is not None:
        execution.interrupt()
    else:
        exception = ctypes.py_object(SoftTimeLimitExceeded)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(execution.thread), exception)


def _kill(execution: Execution) -> None:
    """Kill this child process. In a pool without children, give the run up in the ledger instead.

    Later changes by the task then no longer count.
    """
    if is_pool_child():
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        release(execution)
        execution.mute()
        Run.objects.filter(_any_of([execution]), state=State.RUNNING).update(lease_until=Now())


def _reset_after_fork() -> None:
    """Start anew in a forked child: the runs and the thread are its parent's."""
    global _thread, _lock
    _executions.clear()
    _thread, _lock = None, threading.Lock()
    context.reset_after_fork()


os.register_at_fork(after_in_child=_reset_after_fork)
