"""Writes many rows in one statement, like Django's bulk methods, at a fraction of their cost for wide tables.

Its one rule: it only writes, without signals, validation or returned rows. A row is any object that has the columns as
attributes. PostgreSQL gets each column as one array, or as one value if all rows agree; SQLite, which has no arrays,
gets the rows one by one through one prepared statement.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection, transaction
from django.db.models import Field, JSONField, Model, QuerySet
from django.db.models.constants import OnConflict
from django.db.models.signals import post_delete, pre_delete
from django.db.models.sql import InsertQuery, UpdateQuery


def insert(model: type[Model], rows: Sequence[Any], names: Collection[str] | None = None) -> int:
    """Insert these rows; missing columns get the field's default. Returns how many were inserted.

    Skips each row that would violate a unique constraint. With `names`, it writes only these fields, and the database
    gives the others their values.
    """
    if not rows:
        return 0
    fields = [field for field in model._meta.concrete_fields if names is None or field.name in names]
    into = f"INTO {_name(model._meta.db_table)} ({', '.join(_name(field.column) for field in fields)})"
    if connection.vendor == "postgresql":
        source, values = _source(rows, fields)
        return _execute(f"INSERT {into} SELECT * FROM {source} AS new ON CONFLICT DO NOTHING", values)
    marks = ", ".join(["%s"] * len(fields))
    return _execute_each(f"INSERT {into} VALUES ({marks}) ON CONFLICT DO NOTHING", rows, fields)


def insert_new(row: Model) -> bool:
    """Insert this row, whose columns may be expressions. False if it would violate a unique constraint."""
    query = InsertQuery(type(row), on_conflict=OnConflict.IGNORE)
    query.insert_values(row._meta.concrete_fields, [row])
    ((statement, params),) = query.get_compiler(connection=connection).as_sql()
    with transaction.mark_for_rollback_on_error():
        return bool(_execute(statement, params))


def hold(model: type[Model], keys: Collection[Any]) -> set[Any]:
    """Those of these keys that exist. No other transaction deletes their rows until this transaction ends."""
    if not keys:
        return set()
    key: Any = model._meta.pk
    if connection.vendor != "postgresql":  # SQLite has one writer at a time
        return set(model._default_manager.filter(pk__in=keys).values_list("pk", flat=True))
    with connection.cursor() as cursor:
        table, column = _name(model._meta.db_table), _name(key.column)
        cursor.execute(f"SELECT {column} FROM {table} WHERE {column} = ANY(%s) FOR KEY SHARE", [list(keys)])
        return {found for (found,) in cursor.fetchall()}


def update(model: type[Model], rows: Sequence[Any], names: Collection[str]) -> None:
    """Write the fields `names` of these rows, each found by its primary key."""
    if not rows:
        return
    key: Any = model._meta.pk
    fields = [field for field in model._meta.concrete_fields if field.name in names]
    if connection.vendor == "postgresql":
        source, values = _source(rows, [*fields, key])
        new = ", ".join(f"{_name(field.column)} = new.{_name(field.column)}" for field in fields)
        table, column = _name(model._meta.db_table), _name(key.column)
        _execute(f"UPDATE {table} SET {new} FROM {source} AS new WHERE {table}.{column} = new.{column}", values)
    else:
        new = ", ".join(f"{_name(field.column)} = %s" for field in fields)
        _execute_each(
            f"UPDATE {_name(model._meta.db_table)} SET {new} WHERE {_name(key.column)} = %s", rows, [*fields, key]
        )


def delete(model: type[Model], keys: Sequence[Any]) -> None:
    """Delete the rows with these keys and all that belongs to them. PostgreSQL follows our foreign keys itself."""
    if connection.vendor == "postgresql" and not _is_watched(model):
        key: Any = model._meta.pk
        _execute(f"DELETE FROM {_name(model._meta.db_table)} WHERE {_name(key.column)} = ANY(%s)", [list(keys)])
    else:
        model._default_manager.filter(pk__in=keys).delete()


def _is_watched(model: type[Model]) -> bool:
    """Whether another app refers to these rows, or wants to hear of their deletion: Django takes care of that."""
    ours = model._meta.app_label
    referred = any(each.related_model._meta.app_label != ours for each in model._meta.related_objects)
    return referred or pre_delete.has_listeners(model) or post_delete.has_listeners(model)


def update_query(queryset: QuerySet[Any], values: Mapping[str, Any]) -> Any:
    """The query that `queryset.update(**values)` would execute."""
    query: Any = queryset.query.chain(UpdateQuery)
    query.add_update_values(dict(values))
    return query


def update_returning(queryset: QuerySet[Any], values: Mapping[str, Any], *columns: str) -> list[Any]:
    """Like `queryset.update(**values)`, but returns these columns of each changed row."""
    try:
        sql, params = update_query(queryset, values).get_compiler(connection=connection).as_sql()
    except EmptyResultSet:
        return []
    with transaction.mark_for_rollback_on_error(), connection.cursor() as cursor:
        cursor.execute(returning(sql, *columns), params)
        return list(cursor.fetchall())


def returning(sql: str, *columns: str) -> str:
    """The UPDATE statement, extended to return these columns of the changed rows."""
    return f"{sql} RETURNING {', '.join(map(_name, columns))}"


def _source(rows: Sequence[Any], fields: "Sequence[Field[Any, Any]]") -> tuple[str, list[Any]]:
    """A subquery that yields these columns of the rows, and its parameters."""
    selected, arrays, single_values, array_values = [], [], [], []
    for field in fields:
        values, column = _values(rows, field), _name(field.column)
        kind = _kind(field)
        if len(values) == 1 and len(rows) > 1:
            selected.append(f"%s::{kind} AS {column}")
            single_values += values
        else:
            selected.append(f"each.{column}::{kind}")
            arrays.append((column, kind))
            array_values.append(values)
    unnested = ", ".join(f"%s::{kind}[]" for _, kind in arrays)
    columns = ", ".join(column for column, _ in arrays)
    return f"(SELECT {', '.join(selected)} FROM unnest({unnested}) AS each({columns}))", single_values + array_values


@cache  # it takes longer than the rest of a statement for one row
def _kind(field: "Field[Any, Any]") -> str:
    """The type of a column in PostgreSQL, without its length: a cast to varchar(9) would cut silently."""
    return str(field.db_type(connection)).partition("(")[0]


def _values(rows: Sequence[Any], field: "Field[Any, Any]") -> list[Any]:
    """The values of one column; a single value if all rows agree."""
    if not hasattr(rows[0], field.attname):
        values = [field.get_default()]
    else:
        values = [getattr(row, field.attname) for row in rows]
    if isinstance(field, JSONField):  # compared as text: in Python, 1, 1.0 and True are equal
        values = [None if value is None else json.dumps(value) for value in values]
    return values[:1] if values.count(values[0]) == len(values) else values


def _execute(statement: str, values: Sequence[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


def _execute_each(statement: str, rows: Sequence[Any], fields: "Sequence[Field[Any, Any]]") -> int:
    defaults = {field: field.get_default() for field in fields if not hasattr(rows[0], field.attname)}
    values = [
        [
            field.get_db_prep_save(defaults[field] if field in defaults else getattr(row, field.attname), connection)
            for field in fields
        ]
        for row in rows
    ]
    with connection.cursor() as cursor:
        cursor.executemany(statement, values)
        return int(cursor.rowcount)


def _name(name: str | None) -> str:
    return connection.ops.quote_name(str(name))
