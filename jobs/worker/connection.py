"""In which state does a task find its database connections, and how does a worker write to the ledger?

Its one rule: each task begins with connections that work and with sessions as new, whatever the task before it did.
Where one thread executes all tasks (prefork, solo), a connection is kept as long as its CONN_MAX_AGE says. Elsewhere it
is closed after each task, or returned to psycopg's pool. CELERY_DB_REUSE_MAX turns off Celery's own closing.

A session is reset only after a task used it: that takes a round trip or two, a new connection thirty times as long.
Limits: connections that a task opens in threads of its own are the task's. Behind a pooler such as PgBouncer a session
belongs to one transaction only, and so what a task sets may meet other clients.
"""

import logging
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from celery import signals
from celery._state import _task_stack  # type: ignore[attr-defined] # Celery has no public name for it
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.db.backends.signals import connection_created
from psycopg import Connection
from psycopg import Error as DriverError
from psycopg.pq import TransactionStatus

from jobs.models import lease
from jobs.worker.context import REFUSED
from jobs.worker.loops import outside_loop

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two tries
TRUSTED = 1.0  # seconds for which a silent connection counts as good; a network may forget one without a word


def patiently(write: Callable[[], T]) -> T:
    """Write to the ledger; while the database is unavailable, try again for the length of a lease.

    A run whose end is not recorded would be executed again, or end as lost. Raises `django.db.Error`.
    """
    if _is_in_place():
        return write()
    until, pause = time.monotonic() + lease().total_seconds(), FIRST_PAUSE
    while True:
        try:
            return on_good_connection(write)
        except DatabaseError as error:
            if isinstance(error, REFUSED) or time.monotonic() > until:
                raise
            log.warning("A run waits for the ledger: %s", str(error).strip(), extra={"action": "finish"})
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def on_good_connection(write: Callable[[], T]) -> T:
    """Write to the ledger in a session without a task's transaction or settings; once more if the connection broke."""
    if _is_in_place():
        return write()
    with outside_loop():
        _clean(connections[DEFAULT_DB_ALIAS])
        try:
            return write()
        except DatabaseError:
            connections[DEFAULT_DB_ALIAS].close()
            return write()
        finally:
            _Watch.over(connections[DEFAULT_DB_ALIAS].connection)  # the ledger leaves a session as it is


def _is_in_place() -> bool:
    """Whether Celery executes the task in the process that sends it (CELERY_TASK_ALWAYS_EAGER): connection and
    transaction are the sender's, and stay as they are.
    """
    task = _task_stack.top
    return bool(task and task.request.is_eager)


def tend(sender: Any = None, **_: Any) -> None:
    """Check, clean and, where they must not stay, close the connections of this thread, for the next task."""
    if sender is not None and sender.request.is_eager:  # it is executed within other code
        return
    with outside_loop():
        for wrapper in connections.all(initialized_only=True):
            _tend(wrapper)


def _tend(wrapper: Any) -> None:
    kept = _is_kept(wrapper)
    if kept or _has_pool(wrapper) or has_open_transaction(wrapper):
        _clean(wrapper)
    if wrapper.connection is not None and not (kept and _is_alive(wrapper)):
        wrapper.close()


class _Watch:
    """Stands in for the method `wait` of a psycopg connection, which every statement passes, until the first comes."""

    def __init__(self, raw: Any) -> None:
        self.since, self._raw = time.monotonic(), raw

    @classmethod
    def over(cls, raw: Any) -> None:
        """From now on, notice whether this connection is used; drivers other than psycopg 3 count as used."""
        if isinstance(raw, Connection):
            raw.wait = cls(raw)  # type: ignore[method-assign]

    def __call__(self, *args: Any, **options: Any) -> Any:
        del self._raw.wait
        return self._raw.wait(*args, **options)


def _unused(wrapper: Any) -> _Watch | None:
    """The watch over a connection that no task has used since it was clean."""
    watch = getattr(wrapper.connection, "wait", None)
    return watch if isinstance(watch, _Watch) else None


def _clean(wrapper: Any) -> None:
    """Give the session the state of a new one, or end it, if a task has used it."""
    if has_open_transaction(wrapper):
        _drop(wrapper)
    elif wrapper.connection is not None and not _unused(wrapper):
        if wrapper.vendor != "postgresql" or _has_own_settings(wrapper):
            wrapper.close()
        else:
            _reset(wrapper)


def _reset(wrapper: Any) -> None:
    raw = wrapper.connection
    try:
        raw.execute("DISCARD ALL")
        wrapper._configure_connection(raw)
        if not _has_pool(wrapper):  # else Django sends the signal again when it takes the connection from the pool
            connection_created.send(sender=type(wrapper), connection=wrapper)
    except (DatabaseError, DriverError):
        _drop(wrapper)
    else:
        _Watch.over(raw)


def _drop(wrapper: Any) -> None:
    """End a session in any state, also that of Django's wrapper, with all settings that a task made on it."""
    with suppress(DatabaseError, DriverError):
        if _has_pool(wrapper):
            wrapper.connection.close()  # the pool replaces it
        wrapper._close()
    wrapper.connection = None
    del connections[wrapper.alias]


def _has_own_settings(wrapper: Any) -> bool:
    """Whether a task has set how psycopg begins transactions."""
    raw, usual = wrapper.connection, wrapper.settings_dict["OPTIONS"].get("isolation_level")
    return (raw.isolation_level, raw.read_only, raw.deferrable) != (usual, None, None)


def _is_kept(wrapper: Any) -> bool:
    """Whether a connection may wait here for the next task: where one thread executes all tasks, it is the main thread.

    With a pool of connections, a kept one would be missing elsewhere.
    """
    in_time = wrapper.close_at is None or time.monotonic() < wrapper.close_at
    return in_time and threading.current_thread() is threading.main_thread() and not _has_pool(wrapper)


def _has_pool(wrapper: Any) -> bool:
    return bool(wrapper.settings_dict["OPTIONS"].get("pool"))


def _is_alive(wrapper: Any) -> bool:
    """Whether the server answers. Within `TRUSTED` seconds it is not asked: a closed connection has news of its end."""
    watch = _unused(wrapper)
    if watch and time.monotonic() - watch.since < TRUSTED and not _has_news(wrapper.connection):
        return True
    alive = wrapper.is_usable()
    _Watch.over(wrapper.connection)
    return bool(alive)


def _has_news(raw: Any) -> bool:
    looking = select.poll()
    looking.register(raw.fileno(), select.POLLIN)
    return bool(looking.poll(0))


def has_open_transaction(wrapper: Any) -> bool:
    """Whether this connection is inside a transaction, also one that Django does not manage."""
    raw = wrapper.connection
    if raw is None:
        return False
    if wrapper.in_atomic_block or not wrapper.get_autocommit():
        return True
    if wrapper.vendor == "sqlite":
        return bool(raw.in_transaction)
    if wrapper.vendor != "postgresql":
        return False
    return bool(raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR))


def connect() -> None:
    """Tend the connections as each task starts, and when the last receiver has recorded its end."""
    signals.task_prerun.connect(tend, dispatch_uid="jobs.worker.connection.prerun")
    signals.task_postrun.connect(tend, dispatch_uid="jobs.worker.connection.postrun")
