"""A statement that Django makes once, and that is executed with other values each time.

Making a statement costs several times what sending it does, and a few of them are all that a run or a step costs its
worker. The statement itself is Django's own, for whichever database; its settings are those of the first execution.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import UUIDField
from django.db.models.sql import UpdateQuery

_MARKS: dict[type, Callable[[int], Any]] = {
    UUID: lambda number: UUID(int=0x5EED << 64 | number),
    int: lambda number: 32_000 + number,  # a smallint, too
    str: lambda number: f"\ue000{number}",
}


class _Statement:
    """A statement of Django's, and where in it the values stand."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._sql = ""
        self._params: list[Any] = []
        self._places: list[int] = []

    def _bound(self, values: tuple[Any, ...]) -> tuple[str, list[Any]]:
        """The statement with these values, as a cursor executes it."""
        if not self._sql:
            self._prepare([_MARKS[type(value)](number) for number, value in enumerate(values)])
        params = self._params.copy()
        for place, value in zip(self._places, values, strict=True):
            params[place] = _stored(value)
        return self._sql, params

    def _prepare(self, marks: list[Any]) -> None:
        sql, params = self._query(marks).get_compiler(connection=connection).as_sql()
        self._params = list(params)
        self._places = [self._params.index(_stored(mark)) for mark in marks]
        self._sql = sql

    def _query(self, marks: list[Any]) -> Any:
        raise NotImplementedError


class Update(_Statement):
    """What `make(*values)` returns, a queryset and its new values, with values of the same types as at first."""

    def __call__(self, *values: Any) -> int:
        """Execute it; returns how many rows were changed."""
        with connection.cursor() as cursor:
            cursor.execute(*self._bound(values))
            return int(cursor.rowcount)

    def _query(self, marks: list[Any]) -> Any:
        queryset, changes = self._make(*marks)
        query = queryset.query.chain(UpdateQuery)
        query.add_update_values(changes)
        return query


class Exist(_Statement):
    """Whether the queryset that `make(*values)` returns has any row, with values of the same types as at first."""

    def __call__(self, *values: Any) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(*self._bound(values))
            return cursor.fetchone() is not None

    def _query(self, marks: list[Any]) -> Any:
        return self._make(*marks).query.exists()


def _stored(value: Any) -> Any:
    return UUIDField().get_db_prep_value(value, connection) if isinstance(value, UUID) else value
