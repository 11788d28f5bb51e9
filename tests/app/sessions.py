"""Tasks that look at their database session, or leave it in another state than they found it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import IsolationLevel

LOOK = """
SELECT current_setting('search_path'), current_setting('lock_timeout'), current_setting('TimeZone'),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
       (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_prepared_statements),
       (SELECT count(*) FROM pg_cursors WHERE name <> '')
"""


def look(wrapper: BaseDatabaseWrapper) -> list[Any]:
    """The state of a session, as far as jobs change it."""
    with wrapper.cursor() as cursor:
        cursor.execute(LOOK)
        found = list(cursor.fetchone())
    raw: Any = wrapper.connection
    return [*found, raw.isolation_level and raw.isolation_level.name, raw.read_only, raw.autocommit]


def backend(wrapper: BaseDatabaseWrapper) -> int:
    """The server's process behind a connection."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _executing(statement: str) -> Callable[[Any], object]:
    return lambda wrapper: wrapper.cursor().execute(statement)


def _isolate(wrapper: Any) -> None:
    wrapper.connection.isolation_level = IsolationLevel.SERIALIZABLE


def _turn_off_autocommit(wrapper: Any) -> None:
    wrapper.set_autocommit(False)


# Ways to leave a session in another state. Each gets a connection that is open.
SPOILERS: dict[str, Callable[[Any], object]] = {
    "setting": _executing("SET lock_timeout = '7s'"),
    "search path": _executing("SET search_path TO pg_catalog"),
    "time zone": _executing("SET TIME ZONE 'Asia/Tokyo'"),
    "temporary table": _executing("CREATE TEMP TABLE jobs_run (id uuid)"),
    "advisory lock": _executing("SELECT pg_advisory_lock(4711)"),
    "listen": _executing("LISTEN everything"),
    "prepared": _executing("PREPARE it AS SELECT 1"),
    "cursor": _executing("DECLARE it CURSOR WITH HOLD FOR SELECT 1"),
    "transaction": _executing("BEGIN; SET lock_timeout = '8s'"),
    "psycopg's own cursor": lambda wrapper: wrapper.connection.execute("SET lock_timeout = '9s'"),
    "isolation": _isolate,
    "autocommit": _turn_off_autocommit,
}


@shared_task(name="tests.look", bind=True)
def look_into(self: Task, path: str, alias: str = "default") -> None:
    """Write the state and the process of a session into a file named after this task's id."""
    wrapper = connections[alias]
    Path(path, self.request.id).write_text(json.dumps([look(wrapper), backend(wrapper)]))


@shared_task(name="tests.spoil")
def spoil(how: str) -> None:
    """Leave the session in another state."""
    connection.ensure_connection()
    SPOILERS[how](connection)
