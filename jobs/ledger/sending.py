"""When are requested runs sent? As soon as they are committed, by a thread of the same process.

Its one rule: a request does not wait for the broker. The thread sends the runs of all requests together while there are
any, and then ends. Beat sends what the thread cannot send: because the broker is unavailable, because the process ends,
or because more than `MOST` runs wait.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from celery import current_app
from django.db import connection, transaction

from jobs.ledger import outbox
from jobs.messages.dispatch import BATCH, BrokerUnavailableError
from jobs.messages.envelope import Sendable
from jobs.models import SENDING
from jobs.rules.errors import logged

log = logging.getLogger(__name__)

MOST = 2_000  # runs
LINGER = 0.2  # seconds that the thread waits for further runs, with its connection to the database
FRESH = SENDING.total_seconds() / 2  # seconds; after that a run is left to beat, which may begin to send it


class _Sender:
    """The runs that this process has yet to send, and the thread that sends them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs: deque[tuple[float, Sendable]] = deque()
        self._thread: threading.Thread | None = None
        self._is_sending = False

    def add(self, runs: Sequence[Sendable]) -> None:
        now = time.monotonic()
        with self._changed:
            self._runs += [(now, run) for run in runs[: max(MOST - len(self._runs), 0)]]
            if self._thread is None:
                thread = threading.Thread(target=self._send_all, name="sending")
                thread.start()
                self._thread = thread
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._runs and not self._is_sending, seconds)

    def _send_all(self) -> None:
        try:
            with closing(connection):
                while self._has_work():
                    if connection.errors_occurred:  # its session may be over: the next query opens another
                        connection.close()
                    with logged(log, "Requested runs are not sent yet; beat sends them."):
                        self._send(self._take())
        finally:
            self._end()

    def _end(self) -> None:
        """Let the next run start a thread, unless it has found this one at its end and has started one already."""
        with self._changed:
            if self._thread is threading.current_thread():
                self._thread, self._is_sending = None, False
                self._changed.notify_all()

    def _has_work(self) -> bool:
        """Wait for runs; False if none came for a while, and then the thread ends."""
        with self._changed:
            self._is_sending = False
            self._changed.notify_all()
            self._is_sending = self._changed.wait_for(lambda: bool(self._runs), LINGER)
            if not self._is_sending:
                self._thread = None
            return self._is_sending

    def _take(self) -> Sequence[Sendable]:
        since = time.monotonic() - FRESH
        with self._changed:
            taken = [self._runs.popleft() for _ in range(min(BATCH, len(self._runs)))]
        return [run for at, run in taken if at > since]

    def _send(self, runs: Sequence[Sendable]) -> None:
        if not _send(runs):
            with self._changed:
                self._runs.clear()  # each further attempt could take as long


_sender = _Sender()


def _renew() -> None:
    global _sender  # noqa: PLW0603 - a forked child has no thread, and its parent sends the parent's runs
    _sender = _Sender()


os.register_at_fork(after_in_child=_renew)


def send_after_commit(runs: Sequence[Sendable]) -> None:
    """Send these new runs once the transaction is committed."""
    if runs:
        transaction.on_commit(partial(_add, runs))


def wait(seconds: float) -> bool:
    """Wait until this process has sent its requested runs, or could not; False if it takes longer than that."""
    return _sender.wait(seconds)


def _add(runs: Sequence[Sendable]) -> None:
    with logged(log, "Requested runs are not sent yet; beat sends them."):  # an exiting process starts no thread
        if current_app.conf.task_always_eager:
            _send(runs)
        else:
            _sender.add(runs)


def _send(runs: Sequence[Sendable]) -> bool:
    """Whether the broker was available."""
    try:
        outbox.send(runs)
    except BrokerUnavailableError as error:
        log.warning("%s", error, extra={"action": "dispatch"})
        return False
    return True
