"""How does a request wait for the end of a run? In an event, which one thread of the process sets for all of them.

Its one rule: a waiting request holds no connection of the database. The thread asks for all awaited runs in one query,
five times a second, and ends with the last waiting request. At most `MOST` requests wait in a process, which is half of
the threads of a web process; others are answered at once, so waiting never stops a site.
Limits: after an error of the database all waiting requests go on, and meet it themselves.
"""

import logging
import threading
import time
from contextlib import closing
from uuid import UUID

from django.db import connection

from jobs.models import ACTIVE, Run
from jobs.rules.errors import logged

log = logging.getLogger(__name__)

MOST = 4  # waiting requests of a process
EVERY = 0.2  # seconds between two queries

_lock = threading.Lock()
_waiting: dict[threading.Event, UUID] = {}
_watcher: threading.Thread | None = None


def until_over(run: UUID, seconds: float) -> bool:
    """Return when the run is over, or after `seconds`. False at once if too many requests of this process wait.

    It closes the caller's connection, so it must not be called in a transaction.
    """
    over = threading.Event()
    if not _join(over, run):
        return False
    try:
        connection.close()
        over.wait(seconds)
    finally:
        with _lock:
            del _waiting[over]
    return True


def _join(over: threading.Event, run: UUID) -> bool:
    global _watcher  # noqa: PLW0603 - one for the process
    with _lock:
        if len(_waiting) >= MOST:
            return False
        if _watcher is None:
            watcher = threading.Thread(target=_watch, name="waiting", daemon=True)
            watcher.start()  # it needs the lock, so it sees the request
            _watcher = watcher
        _waiting[over] = run
    return True


def _watch() -> None:
    with closing(connection):
        while awaited := _awaited():
            ended = set(awaited.values())  # after an error; a deleted run has ended, too
            with logged(log, "The runs that requests wait for could not be read.", level=logging.WARNING):
                connection.close_if_unusable_or_obsolete()
                ended -= set(Run.objects.filter(id__in=ended, state__in=ACTIVE).values_list("id", flat=True))
            for event, run in awaited.items():
                if run in ended:
                    event.set()
            time.sleep(EVERY)


def _awaited() -> dict[threading.Event, UUID]:
    """The runs of the requests that still wait. Without any, the thread that asks is no longer the watcher."""
    global _watcher  # noqa: PLW0603 - as above
    with _lock:
        awaited = {event: run for event, run in _waiting.items() if not event.is_set()}
        if not awaited:
            _watcher = None
        return awaited
