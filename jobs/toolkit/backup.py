"""Could we get our data back from this copy? Copies the default database, restores the copy, and checks it.

PostgreSQL: pg_dump, then pg_restore into a scratch database, which the database user must be allowed to create.
SQLite: its online backup. Its one rule: a copy is good once it was restored, with no table missing and none that has
lost all of its rows. Limits: rows are not compared one by one. Other objects of a server, such as roles, are not
copied.
"""

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import DatabaseError, connection

from jobs.toolkit import direct

SCRATCH = "punctual_verify_"  # the prefix of scratch databases
STALE_AFTER = 86_400  # seconds after which no process can still use one


class BackupError(Exception):
    """No backup was made that can be restored. The message says why."""


def make(path: Path) -> None:
    """Write a copy of the database into a new file, and restore it once. Raises BackupError or PoolerError."""
    with direct.session():
        before = survey(connection)
        copy_to(path)
        verify(path, before)


def survey(database: Any) -> dict[str, bool]:
    """The names of all tables, and whether they have rows."""
    with database.cursor() as cursor:
        names = database.introspection.table_names(cursor)
        return {name: _has_rows(cursor, database.ops.quote_name(name)) for name in names}


def copy_to(path: Path) -> None:
    """Write a copy of the database into a new file. Raises BackupError."""
    if connection.vendor == "postgresql":
        _run("pg_dump", "--format=custom", "--no-owner", f"--file={path}", database=connection.settings_dict["NAME"])
        return
    connection.ensure_connection()
    with closing(sqlite3.connect(path)) as copy:
        connection.connection.backup(copy)


def verify(path: Path, before: dict[str, bool]) -> None:
    """Restore the copy beside the database, and compare it with a survey made before. Raises BackupError."""
    with restored(path) as copy:
        try:
            there = survey(copy)
            _check_pages(copy)
        except DatabaseError as error:
            raise BackupError(f"The copy cannot be read: {error}") from error
    if missing := [name for name in before if name not in there]:
        raise BackupError(f"The copy lacks the tables {', '.join(missing)}.")
    if emptied := {name for name, has_rows in before.items() if has_rows and not there[name]}:
        here = survey(connection)  # a table that was emptied before the copy is no loss
        if lost := sorted(name for name in emptied if here.get(name)):
            raise BackupError(f"The copy has no rows in the tables {', '.join(lost)}.")


@contextmanager
def restored(path: Path) -> Iterator[Any]:
    """A connection to the restored copy, for the `with` block. Raises BackupError."""
    if connection.vendor != "postgresql":
        with _opened(path) as copy:
            yield copy
        return
    with _scratch() as name:
        _run("pg_restore", "--exit-on-error", "--no-owner", "--no-privileges", str(path), database=name)
        with _opened(name) as copy:
            yield copy


def _has_rows(cursor: Any, table: str) -> bool:
    cursor.execute(f"SELECT 1 FROM {table} LIMIT 1")  # noqa: S608 - the name comes from the database
    return cursor.fetchone() is not None


def _check_pages(copy: Any) -> None:
    """Check SQLite's pages, because its backup copies damaged ones, too. PostgreSQL's pg_restore has read every row."""
    if copy.vendor != "sqlite":
        return
    with copy.cursor() as cursor:
        cursor.execute("PRAGMA integrity_check")
        if (found := cursor.fetchone()[0]) != "ok":
            raise BackupError(f"The database itself is damaged, and so is the copy: {found}")


@contextmanager
def _scratch() -> Iterator[str]:
    """The name of a new database, which is dropped after the `with` block."""
    name = f"{SCRATCH}{int(time.time())}_{uuid4().hex}"
    with connection.cursor() as cursor:
        _drop_leftovers(cursor)
        try:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        except DatabaseError as error:
            raise BackupError(
                f"Cannot create a database to restore the copy into: {error} Grant CREATEDB to the database user."
            ) from error
    try:
        yield name
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _drop_leftovers(cursor: Any) -> None:
    """Drop the scratch databases of killed processes. Their names tell their age."""
    cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{SCRATCH}%"])
    for (name,) in cursor.fetchall():
        made_at = name.removeprefix(SCRATCH).partition("_")[0]
        if made_at.isdecimal() and int(made_at) < time.time() - STALE_AFTER:
            cursor.execute(f"DROP DATABASE IF EXISTS {connection.ops.quote_name(name)} WITH (FORCE)")


def _run(program: str, *options: str, database: str) -> None:
    """Run a PostgreSQL program on a database of our server. The password goes through the environment."""
    settings = {**connection.settings_dict, "NAME": database}
    (_, *place, _), environment = connection.client.settings_to_cmd_args_env(settings, [])
    command = [program, *place, f"--dbname={database}", "--no-password", *options]
    environment = {**os.environ, **(environment or {})}
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603 - our own arguments
    except FileNotFoundError:
        raise BackupError(f"{program} is not installed here: install PostgreSQL's client programs.") from None
    except subprocess.CalledProcessError as error:
        raise BackupError(f"{program} failed: {error.stderr.strip()[-500:]}") from error


@contextmanager
def _opened(name: object) -> Iterator[Any]:
    """A separate connection to the database of that name, with the same settings."""
    with closing(direct.separate({"NAME": str(name)})) as copy:
        yield copy
