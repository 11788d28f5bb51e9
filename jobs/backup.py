"""Could we get our data back from this copy? Copies the default database, restores the copy, and looks into it.

On PostgreSQL by pg_dump and pg_restore into a scratch database, which its user must be allowed to create; on SQLite by
its own online backup. Its one rule: a copy is good when it was restored, holds every table, and as many applied
migrations as there are. Limits: what else a server holds, such as roles, is not in it.
"""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connection


class BackupError(Exception):
    """There is no backup of which we know that it can be restored. The message says why."""


def copy_to(path: Path) -> None:
    """Write a copy of the database into a new file. Raises BackupError."""
    if connection.vendor == "postgresql":
        _run("pg_dump", "--format=custom", "--no-owner", f"--file={path}", database=connection.settings_dict["NAME"])
        return
    connection.ensure_connection()
    with closing(sqlite3.connect(path)) as copy:
        connection.connection.backup(copy)


def verify(path: Path) -> None:
    """Restore the copy beside the database, and compare the two. Raises BackupError."""
    with restored(path) as copy:
        _check(copy)


@contextmanager
def restored(path: Path) -> Iterator[Any]:
    """A connection to the copy, restored, for as long as it is looked at. Raises BackupError."""
    if connection.vendor != "postgresql":
        with _opened(path) as copy:
            yield copy
        return
    with _scratch() as name:
        _run("pg_restore", "--exit-on-error", "--no-owner", "--no-privileges", str(path), database=name)
        with _opened(name) as copy:
            yield copy


def _check(copy: Any) -> None:
    """Whether the restored copy holds what the database does. Raises BackupError."""
    try:
        there, here = (_tables(each) for each in (copy, connection))
        if missing := here.keys() - there.keys():
            raise BackupError(f"The copy lacks {', '.join(sorted(missing))}.")
        if there["django_migrations"] != here["django_migrations"]:
            raise BackupError("The copy is of another state of the tables: were migrations applied meanwhile?")
    except DatabaseError as error:
        raise BackupError(f"The copy cannot be read: {error}") from error


def _tables(database: Any) -> dict[str, int]:
    """The names of all tables, and the number of rows of those that change with migrations only."""
    with database.cursor() as cursor:
        names = dict.fromkeys(database.introspection.table_names(cursor), 0)
        cursor.execute("SELECT count(*) FROM django_migrations")
        return names | {"django_migrations": cursor.fetchone()[0]}


@contextmanager
def _scratch() -> Iterator[str]:
    """The name of a database that is made for this, and dropped after it."""
    name = f"punctual_verify_{uuid4().hex}"
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        except DatabaseError as error:
            raise BackupError(f"There is no database to restore the copy into: {error} Grant CREATEDB.") from error
    try:
        yield name
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _run(program: str, *options: str, database: str) -> None:
    """Run one of PostgreSQL's programs on a database of our server; the password goes by the environment."""
    settings = {**connection.settings_dict, "NAME": database}
    (_, *place, _), environment = connection.client.settings_to_cmd_args_env(settings, [])
    command = [program, *place, f"--dbname={database}", "--no-password", *options]
    environment = {**os.environ, **(environment or {})}
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603 - all our own
    except FileNotFoundError:
        raise BackupError(f"{program} is not installed here: install PostgreSQL's client programs.") from None
    except subprocess.CalledProcessError as error:
        raise BackupError(f"{program} failed: {error.stderr.strip()[-500:]}") from error


@contextmanager
def _opened(name: object) -> Iterator[Any]:
    """The database of that name, by a connection of its own with the same settings."""
    copy = connection.copy(DEFAULT_DB_ALIAS)
    copy.settings_dict = {**connection.settings_dict, "NAME": str(name)}
    with closing(copy):
        yield copy
