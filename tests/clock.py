"""The clock of PostgreSQL, wrong for the sessions that begin while a test says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connection

FUNCTIONS = """
CREATE SCHEMA wrong;
CREATE TABLE wrong.clock (ahead interval);
INSERT INTO wrong.clock VALUES ('0');
CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM wrong.clock';
CREATE FUNCTION wrong.statement_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.statement_timestamp() + ahead FROM wrong.clock';
"""


@contextmanager
def adjustable_clock() -> Iterator[Callable[[str], None]]:
    """Yields a function that sets how far the clock is ahead: an interval as SQL writes it."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])

    def execute(sql: str, *values: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql, values or None)

    execute(FUNCTIONS)
    execute(f"ALTER DATABASE {name} SET search_path = wrong, pg_catalog, public")
    try:
        yield lambda ahead: execute("UPDATE wrong.clock SET ahead = %s", ahead)
    finally:
        execute(f"ALTER DATABASE {name} RESET search_path")
        execute("DROP SCHEMA wrong CASCADE")
