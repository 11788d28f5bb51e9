"""How does a worker write to the ledger if its database connection is broken, or the database unavailable?

Its one rule: a task may leave its connection in any state, so the worker writes only on a connection that is good.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db import Error as DatabaseError
from psycopg.pq import TransactionStatus

from jobs.models import lease
from jobs.worker.context import REFUSED
from jobs.worker.loops import outside_loop

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two tries


def patiently(write: Callable[[], T]) -> T:
    """Write to the ledger; while the database is unavailable, try again for the length of a lease.

    A run whose end is not recorded would be executed again, or end as lost. Raises `django.db.Error`.
    """
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
    """Write to the ledger, on a new connection if the current one is broken or inside a transaction of the task."""
    with outside_loop():
        if _has_open_transaction():
            connection.connection.close()
            del connections[DEFAULT_DB_ALIAS]  # with all settings that the task made on it
        try:
            return write()
        except DatabaseError:
            connection.close()
            return write()


def _has_open_transaction() -> bool:
    raw: Any = connection.connection
    if raw is None:
        return False
    if connection.in_atomic_block or not connection.get_autocommit():
        return True
    if connection.vendor == "sqlite":
        return bool(raw.in_transaction)
    return bool(raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR))
