"""Statements that Django compiles once and that a process executes many times, each time with other values.

Starting and ending a run are one statement each. Compiled each time, a statement takes about five times the CPU
(`python -m benchmarks --only statements`).

The SQL is Django's own, for either database; a `Slot` marks each place for a value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import connection, transaction
from django.db.models import Expression, Field

from jobs.models.bulk import returning, update_query


class Slot(Expression):
    """A placeholder in a statement; each execution gives its value."""

    def __init__(self, name: str, output_field: "Field[Any, Any]") -> None:
        super().__init__(output_field=output_field)
        self.name = name

    def as_sql(self, *_: Any, **__: Any) -> tuple[str, Any]:
        return "%s", [self]


class _Statement:
    def __init__(self, make: Callable[..., Any], fields: "Mapping[str, Field[Any, Any]]") -> None:
        """`make` gets a `Slot` for each of `fields`, by name."""
        self._make, self._fields = make, fields
        self._compiled: tuple[str, Sequence[Any]] | None = None

    def _execute(self, cursor: Any, values: Mapping[str, Any]) -> None:
        if self._compiled is None:
            slots = {name: Slot(name, field) for name, field in self._fields.items()}
            self._compiled = self._compile(**slots)
        sql, params = self._compiled
        stored = {name: field.get_db_prep_value(values[name], connection) for name, field in self._fields.items()}
        with transaction.mark_for_rollback_on_error():
            cursor.execute(sql, [stored[each.name] if isinstance(each, Slot) else each for each in params])

    def _compile(self, **slots: Slot) -> Any:
        raise NotImplementedError


class Update(_Statement):
    """An UPDATE. `make` returns the queryset to update and the new values."""

    def __call__(self, **values: Any) -> int:
        """Execute it; returns how many rows were changed."""
        with connection.cursor() as cursor:
            self._execute(cursor, values)
            return int(cursor.rowcount)

    def _compile(self, **slots: Slot) -> Any:
        return update_query(*self._make(**slots)).get_compiler(connection=connection).as_sql()


class UpdateReturning(Update):
    """An UPDATE that also returns one column of each changed row."""

    def __init__(self, make: Callable[..., Any], fields: "Mapping[str, Field[Any, Any]]", column: str) -> None:
        super().__init__(make, fields)
        self._column = column

    def rows(self, **values: Any) -> list[Any]:
        """Execute it; returns that column of each changed row."""
        with connection.cursor() as cursor:
            self._execute(cursor, values)
            return [row[0] for row in cursor.fetchall()]

    def _compile(self, **slots: Slot) -> Any:
        sql, params = super()._compile(**slots)
        return returning(sql, self._column), params


class Exist(_Statement):
    """Checks whether the queryset that `make` returns has any row."""

    def __call__(self, **values: Any) -> bool:
        with connection.cursor() as cursor:
            self._execute(cursor, values)
            return cursor.fetchone() is not None

    def _compile(self, **slots: Slot) -> Any:
        return self._make(**slots).query.exists().get_compiler(connection=connection).as_sql()
