"""How does a job get a database session of its own, where a pooler such as PgBouncer stands before the database?

A pooler gives each transaction another session: a cursor is gone with its transaction, and what pg_dump sets meets
another client. Its one rule: code that needs one session runs in `session`, and behind a pooler without
DATABASE_DIRECT_URL it is refused before it does anything.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connection, connections


class PoolerError(Exception):
    """The database is reached through a pooler, and nothing says how to reach it without."""

    def __init__(self) -> None:
        super().__init__(
            "This needs a database session of its own, but DATABASE_URL leads to a pooler such as PgBouncer, which may "
            "give each transaction another one. Set DATABASE_DIRECT_URL to the address of the database itself."
        )


@contextmanager
def session() -> Iterator[None]:
    """For the block, the default database of this thread is reached directly. Raises PoolerError.

    It must not begin within a transaction, which would stay on the other connection.
    """
    direct: dict[str, Any] | None = getattr(settings, "DATABASE_DIRECT", None)
    if direct is None:
        if _is_pooled():
            raise PoolerError
        yield
        return
    connection.validate_no_atomic_block()
    pooled = connections[DEFAULT_DB_ALIAS]
    with closing(separate(direct)) as own:
        connections[DEFAULT_DB_ALIAS] = own
        try:
            yield
        finally:
            connections[DEFAULT_DB_ALIAS] = pooled


def separate(changes: dict[str, Any]) -> Any:
    """Another connection in place of the default one, with these settings changed, and outside of any pool."""
    other: Any = connection.copy(DEFAULT_DB_ALIAS)
    other.settings_dict = {**connection.settings_dict, **changes}
    options = other.settings_dict["OPTIONS"]
    other.settings_dict["OPTIONS"] = {name: options[name] for name in options if name != "pool"}
    return other


def _is_pooled() -> bool:
    """Whether the process that executes statements is another one than the one that the connection was made to."""
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone()[0] != connection.connection.info.backend_pid)
