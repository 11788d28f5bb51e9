"""Which rows of a source can be loaded, and why not the rest?

Its one rule: a row is loaded whole or dropped. The first dropped rows have a reason. It names the row's number and the
column, never the value. A source without any loadable row is refused. Most likely its columns have changed, and users
would believe an empty table.

Limits: numbers are written as in Python, with a point. A time without a zone counts as UTC. The parser reads row by
row. So besides the source itself, only the numbers take memory, however long a line is and however many rows there are.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LONGEST_KEY = 200  # characters
MOST_CELLS = 1_000_000  # numbers; they are held in memory, about 150 bytes each
MOST_ROWS = 1_000_000  # with dropped ones; each takes a few microseconds
LONGEST_ROW = 1_000_000  # characters; parsing may take fifty times as many bytes
EXPLAINED = 5  # dropped rows that get a reason
NAMED = 20  # columns that a sentence names


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
    """The result: the numbers of rows, the cells of loadable rows, and reasons for the first dropped rows."""

    rows: int = 0
    dropped: int = 0
    cells: list[Cell] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        self.dropped += 1
        if len(self.reasons) < EXPLAINED:
            self.reasons.append(f"row {self.rows}: {reason}")


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
            parsed.drop(str(error))
        if number > MOST_ROWS:
            raise UnreadableSourceError(f"The source has more than {MOST_ROWS:,} rows: choose a shorter window.")
        if len(parsed.cells) > MOST_CELLS:
            raise UnreadableSourceError(f"The source has more than {MOST_CELLS:,} numbers: choose a shorter window.")
    if parsed.reasons and not parsed.cells:
        raise UnreadableSourceError(f"None of {parsed.rows:,} rows can be loaded; {parsed.reasons[0]}.")
    return parsed


def _read(raw: bytes, form: str, columns: Columns) -> Iterator[Any]:
    """The rows: a dict for each row of a table, or a line of JSON."""
    lines = _Lines(raw, "" if form == "csv" else "\n")
    try:
        for row in _read_table(lines, columns) if form == "csv" else filter(str.strip, lines):
            yield row
            lines.begin_row()
    except UnicodeDecodeError:
        raise UnreadableSourceError("The source is not UTF-8: request it in UTF-8.") from None


class _Lines(Iterator[str]):
    """The lines of a source. Raises `UnreadableSourceError` for a row of too many characters in one or more lines."""

    def __init__(self, raw: bytes, newline: str) -> None:
        self._text = io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline=newline)
        self._length = 0

    def __next__(self) -> str:
        line = self._text.readline(LONGEST_ROW + 1)
        self._length += len(line)
        if self._length > LONGEST_ROW:
            raise UnreadableSourceError(
                f"A row of the source is longer than {LONGEST_ROW:,} characters: check that this is the format."
            )
        if not line:
            raise StopIteration
        return line

    def begin_row(self) -> None:
        self._length = 0


def _read_table(lines: Iterator[str], columns: Columns) -> Iterator[dict[str, str]]:
    table = csv.DictReader(lines, strict=True)
    try:
        there = table.fieldnames or ()
        for name in (columns.key, columns.time, *columns.values):
            if there.count(name) != 1:
                raise UnreadableSourceError(
                    f"The source needs exactly one column {name!r}, but its columns are: {_named(there)}."
                )
        yield from table
    except csv.Error as error:
        raise UnreadableSourceError(f"The source is not CSV: {error} (after line {table.line_num}).") from error


def _named(columns: Sequence[str]) -> str:
    """The first columns as text, each cut."""
    more = [f"{len(columns) - NAMED:,} more"] if len(columns) > NAMED else []
    return ", ".join([*(name[:LONGEST_KEY] for name in columns[:NAMED]), *more]) or "none"


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
    value = row.get(name)
    try:  # str() of a deeply nested list would raise RecursionError
        moment = datetime.fromisoformat(str(value).strip() if isinstance(value, str | int) else "")
    except ValueError:
        raise ValueError(f"{name!r} is not an ISO 8601 time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    try:
        number = math.nan if "_" in text else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name!r} is not a number")
    return number
