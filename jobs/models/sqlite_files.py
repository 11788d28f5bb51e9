"""Who may read an SQLite database? Only the user whose process creates it, whatever the umask is.

Its one rule: only a new and empty database is changed. So an operator may let a group use an existing one. SQLite gives
the files beside it (-wal, -shm) the rights of the database.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

OTHERS = 0o077  # the rights of all other users
FILES = ("", "-wal", "-shm")  # what follows the name of the database


def install() -> None:
    connection_created.connect(_close_new, dispatch_uid="jobs.models.sqlite_files")


def _close_new(connection: Any, **_: Any) -> None:
    if connection.vendor != "sqlite":
        return
    with suppress(sqlite3.Error):  # locked: another process uses it, so it is not new
        (version,) = connection.connection.execute("PRAGMA schema_version").fetchone()
        if version == 0:
            for ending in FILES:
                _close_to_others(Path(f"{connection.settings_dict['NAME']}{ending}"))


def _close_to_others(path: Path) -> None:
    with suppress(OSError):  # such as a database in memory
        path.chmod(path.stat().st_mode & 0o777 & ~OTHERS)
