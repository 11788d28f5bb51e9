"""Which rows of a source can be loaded, and why not the rest?

Its one rule: a row is loaded whole or dropped. Each dropped row has a reason. It names the row's number and the column,
never the value. A source without any loadable row is refused. Most likely its columns have changed, and users would
believe an empty table.

Limits: numbers are written as in Python, with a point. A time without a zone counts as UTC.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LONGEST_KEY = 200  # characters
MOST_CELLS = 1_000_000  # numbers; they are held in memory, about 150 bytes each


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns with the key, the time and the numbers."""

    key: str
    time: str
    values: list[str]


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a row that can be loaded."""

    key: str
    at: datetime
    column: str
    value: float


@dataclass(slots=True)
class Parsed:
    """The result: the number of rows, the cells of those that can be loaded, and a reason for each dropped row."""

    rows: int = 0
    cells: list[Cell] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class UnreadableSourceError(ValueError):
    """The source cannot be loaded. The message says why."""


def parse(raw: bytes, form: str, columns: Columns, start: datetime, end: datetime) -> Parsed:
    """Parse a source in `form` ("csv" or "jsonl"). Drops rows before `start`, and from `end` on.

    Raises `UnreadableSourceError`.
    """
    if not raw.strip():
        raise UnreadableSourceError("The source is empty: it has neither column names nor rows.")
    parsed = Parsed()
    seen: set[tuple[str, datetime]] = set()
    for number, row in enumerate(_read(raw, form, columns), 1):
        parsed.rows = number
        try:
            parsed.cells += _cells(row, columns, (start, end), seen)
        except ValueError as error:
            parsed.reasons.append(f"row {number}: {error}")
        if len(parsed.cells) > MOST_CELLS:
            raise UnreadableSourceError(f"The source has more than {MOST_CELLS:,} numbers: choose a shorter window.")
    if parsed.reasons and not parsed.cells:
        raise UnreadableSourceError(f"None of {parsed.rows:,} rows can be loaded; {parsed.reasons[0]}.")
    return parsed


def _read(raw: bytes, form: str, columns: Columns) -> Iterable[Any]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableSourceError("The source is not UTF-8: request it in UTF-8.") from None
    return _read_table(text, columns) if form == "csv" else filter(str.strip, text.split("\n"))


def _read_table(text: str, columns: Columns) -> Iterator[dict[str, str]]:
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        there = table.fieldnames or ()
        for name in (columns.key, columns.time, *columns.values):
            if there.count(name) != 1:
                there_are = ", ".join(there) or "none"
                raise UnreadableSourceError(
                    f"The source needs exactly one column {name!r}, but its columns are: {there_are}."
                )
        yield from table
    except csv.Error as error:
        raise UnreadableSourceError(f"The source is not CSV: {error} (after line {table.line_num}).") from error


def _cells(
    row: Any, columns: Columns, window: tuple[datetime, datetime], seen: set[tuple[str, datetime]]
) -> list[Cell]:
    """The numbers of a row. Raises ValueError with the reason to drop it."""
    row = _read_object(row) if isinstance(row, str) else row
    if None in row:
        raise ValueError("it has more cells than columns")
    key, at = _key(row, columns.key), _moment(row, columns.time)
    if not window[0] <= at < window[1]:
        raise ValueError(f"{columns.time!r} is outside the window")
    if (key, at) in seen:
        raise ValueError("an earlier row has the same key and time")
    cells = [Cell(key, at, name, _number(row, name)) for name in columns.values]
    seen.add((key, at))
    return cells


def _read_object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - all reasons to drop a row are of one kind
    return row


def _key(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    key = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise ValueError(f"{name!r} is empty, too long or unprintable")
    return key


def _moment(row: dict[str, Any], name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(str(row.get(name)).strip())
    except ValueError:
        raise ValueError(f"{name!r} is not an ISO 8601 time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    try:
        number = math.nan if isinstance(value, bool | None) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name!r} is not a number")
    return number
