"""Which rows of a source can be loaded, and the reason for each dropped row."""

from datetime import UTC, datetime, timedelta

import pytest

from jobs.toolkit import rows
from jobs.toolkit.rows import Cell, Columns, UnreadableSourceError, parse
from tests.forking import forks
from tests.memory import appetite

START = datetime(2026, 3, 1, tzinfo=UTC)
END = START + timedelta(days=1)
COLUMNS = Columns("station", "at", ["celsius", "hPa"])
GOOD = "north,2026-03-01T04:00:00Z,1.5,1013"


def table(*rows: str) -> bytes:
    return "\n".join(["station,at,celsius,hPa", *rows]).encode()


def parse_table(*rows: str):
    return parse(table(*rows), "csv", COLUMNS, START, END)


def test_it_reads_each_number_of_a_row():
    parsed = parse_table(GOOD, "south,2026-03-01T06:00:00+02:00,-2,999.5")
    at = datetime(2026, 3, 1, 4, tzinfo=UTC)
    assert parsed.rows == 2
    assert parsed.reasons == []
    assert parsed.cells == [
        Cell("north", at, "celsius", 1.5),
        Cell("north", at, "hPa", 1013),
        Cell("south", at, "celsius", -2),
        Cell("south", at, "hPa", 999.5),
    ]


def test_it_reads_json_lines_as_it_reads_a_table():
    lines = b"""{"station": "north", "at": "2026-03-01T04:00:00", "celsius": 1.5, "hPa": "1013"}\n\n"""
    assert parse(lines, "jsonl", COLUMNS, START, END) == parse_table(GOOD)


def test_it_accepts_numbers_as_keys():
    lines = b"""{"station": 0, "at": "2026-03-01", "celsius": 1, "hPa": 2}"""
    assert [cell.key for cell in parse(lines, "jsonl", COLUMNS, START, END).cells] == ["0", "0"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",2026-03-01T04:00:00Z,1,1", "'station' is empty, too long or unprintable"),
        (f"{'x' * 201},2026-03-01T04:00:00Z,1,1", "'station' is empty, too long or unprintable"),
        ("a\0b,2026-03-01T04:00:00Z,1,1", "'station' is empty, too long or unprintable"),
        ("north,yesterday,1,1", "'at' is not an ISO 8601 time"),
        ("north", "'at' is not an ISO 8601 time"),
        ("north,2026-03-02T00:00:00Z,1,1", "'at' is outside the window"),
        ("north,2026-02-28T23:59:59Z,1,1", "'at' is outside the window"),
        ("north,0001-01-01T00:00:00+14:00,1,1", "'at' is outside the window"),
        ("north,2026-03-01T04:00:00Z,,1", "'celsius' is not a number"),
        ("north,2026-03-01T04:00:00Z,1,nan", "'hPa' is not a number"),
        ("north,2026-03-01T04:00:00Z,1,1e999", "'hPa' is not a number"),
        ("north,2026-03-01T04:00:00Z,one,1", "'celsius' is not a number"),
        ("last,2026-03-01T05:00:00+01:00,7,8", "an earlier row has the same key and time"),
    ],
)
def test_it_drops_a_row_with_the_reason_when_it_cannot_be_loaded(row, reason):
    parsed = parse_table("last,2026-03-01T04:00:00Z,1,1", row, GOOD)
    assert (parsed.rows, len(parsed.cells), parsed.reasons) == (3, 4, [f"row 2: {reason}"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("7", "it is not a JSON object"),
        ('{"station": "\\ud800"}', "'station' is empty, too long or unprintable"),
        ('{"station": ["a"]}', "'station' is empty, too long or unprintable"),
        ('{"station": "a"}', "'at' is not an ISO 8601 time"),
        ('{"station": "a", "at": "2026-03-01", "celsius": true, "hPa": 1}', "'celsius' is not a number"),
        ('{"station": "a", "at": "2026-03-01", "celsius": NaN, "hPa": 1}', "'celsius' is not a number"),
        (f'{{"station": "a", "at": "2026-03-01", "celsius": 1{"0" * 400}, "hPa": 1}}', "'celsius' is not a number"),
        ('{"station": "a", "at": "2026-03-01", "celsius": [], "hPa": 1}', "'celsius' is not a number"),
    ],
)
def test_it_drops_a_line_with_the_reason_when_it_is_not_a_row(line, reason):
    good = '{"station": "north", "at": "2026-03-01", "celsius": 1, "hPa": 2}'
    parsed = parse(f"{line}\n{good}".encode(), "jsonl", COLUMNS, START, END)
    assert (len(parsed.cells), parsed.reasons) == (2, [f"row 1: {reason}"])


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "The source is empty"),
        (b" \n ", "The source is empty"),
        (b"time\n", "needs exactly one column 'station', but its columns are: time"),
        (b"station,time\n", "needs exactly one column 'at', but its columns are: station, time"),
        (
            table("north,2026-03-01,1,1").replace(b"celsius", b"hPa", 1),
            "needs exactly one column 'celsius'|needs exactly one column 'hPa'",
        ),
        (table("north,2026-03-01,12,5,1013"), "row 1: it has more cells than columns"),
        (table("north,2026-03-01,1_0,1013"), "is not a number"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        (table('"north"x,2026-03-01,1,1'), r"not CSV: .* \(after line 1\)"),
        (
            table("north,soon,1,1", "south,later,1,1"),
            "None of 2 rows can be loaded; row 1: 'at' is not an ISO 8601 time",
        ),
    ],
)
def test_it_refuses_a_source_when_no_row_can_be_loaded(raw, sentence):
    with pytest.raises(UnreadableSourceError, match=sentence):
        parse(raw, "csv", COLUMNS, START, END)


def test_it_returns_no_rows_when_the_source_has_none():
    assert parse(table(), "csv", COLUMNS, START, END).rows == 0


def test_it_stops_before_the_numbers_fill_the_memory(monkeypatch):
    monkeypatch.setattr(rows, "MOST_CELLS", 3)
    with pytest.raises(UnreadableSourceError, match="more than 3 numbers: choose a shorter window"):
        parse(table(*[f"s{number},2026-03-01,1,1" for number in range(9)]), "csv", COLUMNS, START, END)


def test_it_gives_reasons_only_for_the_first_dropped_rows():
    parsed = parse_table(GOOD, *["north,soon,1,1"] * 9)
    assert (parsed.rows, parsed.dropped) == (10, 9)
    assert parsed.reasons == [f"row {number}: 'at' is not an ISO 8601 time" for number in range(2, 7)]


def test_it_stops_after_so_many_rows(monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    with pytest.raises(UnreadableSourceError, match="more than 3 rows: choose a shorter window"):
        parse_table(GOOD, *["north,soon,1,1"] * 3)


@pytest.mark.parametrize("depth", [10, 100, 300, 500, 700, 900, 1_000, 10_000])
@pytest.mark.parametrize("column", ["station", "at", "celsius"])
def test_it_drops_a_line_whose_value_is_nested_however_deeply(depth, column):
    nested = f'{{"station": "a", "at": "2026-03-01", "celsius": 1, "hPa": 2, "{column}": {"[" * depth}{"]" * depth}}}'
    good = '{"station": "north", "at": "2026-03-01", "celsius": 1, "hPa": 2}'
    parsed = parse(f"{nested}\n{good}".encode(), "jsonl", COLUMNS, START, END)
    assert (len(parsed.cells), parsed.dropped) == (2, 1)


HEAD = b"station,at,celsius,hPa\n"
HOSTILE = {
    "short lines": ("jsonl", b"{}\n" * 900_000),
    "short rows": ("csv", HEAD + b",,,\n" * 900_000),
    "blank lines": ("jsonl", b"\n" * 5_000_000),
    "one long line": ("jsonl", b'{"a": [' + b"[]," * 6_000_000 + b"[]]}"),
    "one row of many cells": ("csv", HEAD + b"," * 19_000_000),
    "one row of many lines": ("csv", HEAD + b'"\n",' * 4_000_000),
    "a head of many columns": ("csv", b"," * 19_000_000),
    "an open quote": ("csv", HEAD + b'"' + b"a\n" * 9_000_000),
}


@forks
@pytest.mark.parametrize("name", HOSTILE)
def test_it_takes_little_memory_for_a_hostile_source(name):
    form, raw = HOSTILE[name]
    assert appetite(lambda: parse(raw, form, COLUMNS, START, END)) < 80


@pytest.mark.parametrize("head", [b"," * 500_000, b"x" * 100_000 + b",y"])
def test_it_names_some_columns_of_a_hostile_source(head):
    with pytest.raises(UnreadableSourceError, match="needs exactly one column 'station'") as refused:
        parse(head, "csv", COLUMNS, START, END)
    assert len(str(refused.value)) < 500
