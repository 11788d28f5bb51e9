"""A repeatable import: extract, clean and load, called one after the other as a chain calls them."""

import logging
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from pydantic import ValidationError

from jobs.models import Measurement
from jobs.tasks.etl import clean, etl, extract, load
from jobs.toolkit import files, http
from jobs.toolkit.rows import UnreadableSourceError
from tests.web import Web

pytestmark = pytest.mark.django_db

START, END = "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"
COLUMNS = {"key": "station", "time": "at", "values": ["celsius", "hPa"]}
ARGUMENTS = {"dataset": "weather", **COLUMNS}
HEADER = "station,at,celsius,hPa"


def run_steps(web: Web, *rows: str, dataset: str = "weather") -> dict[str, int]:
    """Run the steps on a source with these rows."""
    web.pages["/data"] = "\n".join([HEADER, *rows]).encode()
    raw = extract("/data", dataset, "csv")
    return load(clean(raw, "csv", COLUMNS, START, END), dataset, START, END)


def table() -> list[tuple[Any, ...]]:
    rows = Measurement.objects.order_by("dataset", "key", "at", "column")
    return list(rows.values_list("dataset", "key", "at", "column", "value"))


def test_it_loads_each_number_of_the_window_and_counts_the_rows(web):
    counts = run_steps(web, "north,2026-03-01T04:00:00Z,1.5,1013", "south,soon,1,2", "west,2026-03-02,1,2")
    assert counts == {"extracted": 3, "dropped": 2, "loaded": 2, "removed": 0}
    at = datetime(2026, 3, 1, 4, tzinfo=UTC)
    assert table() == [("weather", "north", at, "celsius", 1.5), ("weather", "north", at, "hPa", 1013.0)]


def test_it_leaves_the_same_table_when_the_same_window_is_loaded_again(web):
    rows = [f"s{number},2026-03-01T{number % 24:02}:00:00Z,{number},{number / 2}" for number in range(2_000)]
    run_steps(web, *rows)
    before, keys = table(), set(Measurement.objects.values_list("pk", flat=True))
    assert run_steps(web, *rows) == {"extracted": 2_000, "dropped": 0, "loaded": 4_000, "removed": 0}
    assert table() == before
    assert set(Measurement.objects.values_list("pk", flat=True)) == keys


def test_it_follows_the_source_when_a_window_is_loaded_again(web):
    for dataset in ("weather", "other"):
        run_steps(web, "north,2026-03-01T04:00:00Z,1,2", "south,2026-03-01T04:00:00Z,3,4", dataset=dataset)
    yesterday = Measurement.objects.create(
        dataset="weather",
        key="north",
        at="2026-02-28T23:00:00Z",
        column="hPa",
        value=9,
        loaded_at="2026-02-28T23:30:00Z",
    )
    counts = run_steps(web, "north,2026-03-01T04:00:00Z,1,7", "west,2026-03-01T05:00:00Z,5,6")
    assert counts == {"extracted": 2, "dropped": 0, "loaded": 4, "removed": 2}
    found = Measurement.objects.filter(dataset="weather").exclude(pk=yesterday.pk).order_by("key", "column")
    assert list(found.values_list("key", "value")) == [("north", 1), ("north", 7), ("west", 5), ("west", 6)]
    assert Measurement.objects.filter(pk=yesterday.pk).exists()
    assert Measurement.objects.filter(dataset="other").count() == 4


def test_it_leaves_the_table_alone_when_the_source_cannot_be_loaded(web):
    run_steps(web, "north,2026-03-01T04:00:00Z,1,2")
    before = table()
    with pytest.raises(UnreadableSourceError, match="None of 1 rows"):
        run_steps(web, "north,2026-03-01T04:00:00Z,one,two")
    with pytest.raises(http.UnexpectedStatus, match="/none answered 404"):
        extract("/none", "weather", "csv")
    assert table() == before


def test_it_logs_why_it_dropped_the_first_rows(web, caplog):
    caplog.set_level(logging.WARNING, "jobs.tasks.etl")
    run_steps(web, "north,2026-03-01T04:00:00Z,1,2", *["s3cret,never,1,2"] * 9)
    assert caplog.messages == [
        f"weather.csv: dropped row {number}: 'at' is not an ISO 8601 time" for number in range(2, 7)
    ]


def test_it_stores_the_response_unchanged(web):
    web.pages["/data"] = b"\xffraw"
    raw = files.find(UUID(extract("/data", "weather", "csv")))
    with raw.file.open("rb") as content:
        assert content.read() == b"\xffraw"
    assert (raw.name, raw.kind) == ("weather.csv", "data")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"values": []}, "at least 1 item"),
        ({"form": "xml"}, "'csv' or 'jsonl'"),
        ({"dataset": ""}, "at least 1 character"),
        ({"source": "/" + "x" * 2000}, "at most 2000 characters"),
    ],
)
def test_it_refuses_arguments_that_do_not_fit(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        etl(**{"source": "/data", **ARGUMENTS, **wrong})


@pytest.mark.django_db(transaction=True)
def test_it_holds_one_of_two_concurrent_loads_and_never_both():
    together, done = threading.Barrier(2), []

    def one(name: str) -> None:
        rows = [{"key": f"{name}{number}", "at": START, "column": "v", "value": 1.0} for number in range(3_000)]
        with closing(connection):
            together.wait()
            done.append(Measurement.objects.replace("both", START, END, iter(rows)))

    loads = [threading.Thread(target=one, args=[name]) for name in "ab"]
    for each in loads:
        each.start()
    for each in loads:
        each.join()
    assert sorted(done) == [(3_000, 0), (3_000, 3_000)]
    assert Measurement.objects.count() == 3_000


@pytest.mark.parametrize(
    "arguments",
    [{"source": "nonsense"}, {"dataset": " "}, {"values": []}, {"key": ""}],
)
def test_it_refuses_arguments_that_could_load_nothing(arguments):
    with pytest.raises(ValidationError):
        etl(**({"source": "/data"} | ARGUMENTS | arguments))
