"""Does a report hold the rows of the run's data window, and does each address get it once?"""

import csv
import io
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core import mail as django_mail
from django.urls import reverse

from jobs.messages.arguments import find_task
from jobs.models import FeedEntry, Run, State, StoredFile, database_now
from jobs.tasks.report import _passing, report
from jobs.tasks.send_bulk_email import send_bulk_email
from jobs.toolkit import queries
from jobs.toolkit.documents import MOST_CHARACTERS
from jobs.toolkit.queries import Table, query
from tests.making import inside, make_run, make_schedule
from tests.pure.test_documents import pages_of

pytestmark = pytest.mark.django_db
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
CSV, PDF = "text/csv; charset=utf-8", "application/pdf"
ADA, BOB = "ada@example.org", "bob@example.org"


@pytest.fixture(autouse=True)
def _queries():
    find_task("jobs.report")  # imports the tasks of every app, and so their queries


@pytest.fixture(autouse=True)
def outbox(settings, tmp_path):
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    settings.MEDIA_ROOT = tmp_path
    django_mail.outbox = []
    return django_mail.outbox


def rows_of(file: StoredFile) -> list[list[str]]:
    return list(csv.reader(io.StringIO(Path(file.file.path).read_bytes().decode("utf-8-sig"), newline="")))


def only_file() -> StoredFile:
    return StoredFile.objects.get()


def make_ended(name: str, state: State, end: datetime | None = None, **columns: Any) -> Run:
    """A run that ended then and took a second."""
    end = end or database_now() - SECOND
    times = {"due_at": end, "started_at": end - SECOND, "finished_at": end}
    run = make_run(None, state, **{**times, **columns})
    Run.objects.filter(id=run.id).update(schedule_name=name)
    return run


# --- Rows and files -------------------------------------------------------------------------------------------------


def test_it_counts_runs_by_outcome():
    for state in (State.SUCCEEDED, State.SUCCEEDED, State.FAILED):
        make_ended("nightly", state)
    make_ended("hourly", State.SKIPPED, count=7, started_at=None)
    make_run()
    assert report("runs by outcome") == {"rows": 3, "files": 1, "sent": 0}
    assert rows_of(only_file()) == [
        ["schedule", "state", "runs", "average seconds", "longest seconds"],
        ["hourly", "skipped", "7", "", ""],
        ["nightly", "failed", "1", "1.0", "1.0"],
        ["nightly", "succeeded", "2", "1.0", "1.0"],
    ]


def test_it_lists_failed_and_lost_runs_without_formulas():
    make_ended("good", State.SUCCEEDED)
    run = make_ended("=bad", State.FAILED, reason="ValueError: no\n=1+1", attempt=3)
    make_ended("gone", State.LOST, run.finished_at + SECOND / 2, reason="lost")
    report("failed runs")
    due_at = run.due_at.isoformat(sep=" ", timespec="seconds")
    assert rows_of(only_file())[:2] == [
        ["schedule", "due at", "state", "attempts", "reason"],
        ["'=bad", due_at, "failed", "3", "ValueError: no\n'=1+1"],
    ]
    assert [row[0] for row in rows_of(only_file())[1:]] == ["'=bad", "gone"]


def test_it_covers_the_time_since_the_previous_due_moment():
    due_at = database_now().replace(minute=0, second=0, microsecond=0)
    run = make_run(make_schedule(cron={"minute": "0"}), State.RUNNING, due_at=due_at)
    for name, end in {"before": -HOUR - SECOND, "first": -HOUR, "last": -SECOND, "after": SECOND * 0}.items():
        make_ended(name, State.FAILED, due_at + end)
    with inside(run):
        report("failed runs")
    assert [row[0] for row in rows_of(only_file())[1:]] == ["first", "last"]
    assert only_file().name == f"failed runs {due_at:%Y-%m-%d %H%M}.csv"


def test_it_writes_the_column_names_when_nothing_is_found(outbox):
    assert report("failed runs", "both", [ADA]) == {"rows": 0, "files": 2, "sent": 1}
    pdf, table = StoredFile.objects.order_by("-name")
    assert rows_of(table) == [["schedule", "due at", "state", "attempts", "reason"]]
    assert "0 rows." in pages_of(Path(pdf.file.path))[0]
    assert "nothing was found" in outbox[0].body


@pytest.mark.parametrize(
    ("formats", "types"),
    [("csv", {CSV}), ("pdf", {PDF}), ("both", {CSV, PDF})],
)
def test_it_stores_only_the_requested_formats(formats, types):
    report("failed runs", formats)
    assert set(StoredFile.objects.values_list("content_type", flat=True)) == types
    assert set(StoredFile.objects.values_list("kind", flat=True)) == {"report"}


def test_it_shows_the_first_rows_in_a_pdf_and_the_number_of_all():
    assert report("test numbers", "pdf")["rows"] == 5_001
    pages = pages_of(Path(only_file().file.path))
    assert "The first 5,000 of 5,001 rows." in pages[-1]
    assert "4999" in pages[-1]


def test_it_holds_only_the_shown_beginnings_of_long_texts():
    first = []
    passed = list(_passing([["x" * 10_000, "a\nb"]], first))
    assert passed == [["x" * 10_000, "a\nb"]]
    assert first == [["x" * MOST_CHARACTERS, "a b"]]


# --- Mail -----------------------------------------------------------------------------------------------------------


def test_it_mails_a_link_to_each_file(client, outbox):
    assert report("failed runs", "both", [ADA, BOB])["sent"] == 2
    assert [letter.to for letter in outbox] == [[ADA], [BOB]]
    links = re.findall(r"http\S+", outbox[0].body)
    csv, pdf = (client.get(urlsplit(link).path).getvalue() for link in links)
    assert csv.decode("utf-8-sig").startswith('"schedule"')
    assert pdf.startswith(b"%PDF")


def test_it_replaces_its_files_and_mails_each_address_once_when_it_is_tried_again(outbox):
    run = make_run(None, State.RUNNING, due_at=database_now())
    with inside(run):
        report("failed runs", "csv", [ADA])
        make_ended("late", State.FAILED, run.due_at - SECOND)
        assert report("failed runs", "csv", [ADA, BOB])["sent"] == 2
    assert [row[0] for row in rows_of(only_file())[1:]] == ["late"]
    assert [letter.to for letter in outbox] == [[ADA], [BOB]]


def test_it_sends_mail_to_the_addresses_of_a_query(outbox):
    for number, address in enumerate([ADA, "", BOB, ADA]):
        FeedEntry.objects.create(feed="it", guid=str(number), title="it", link=address)
    sent = send_bulk_email("Hello", "Text", ["cat@example.org"], "test entries", per_minute=6000)
    assert sent == {"sent": 3, "refused": 0, "in_doubt": 0}
    assert [letter.to for letter in outbox] == [["cat@example.org"], [ADA], [BOB]]


def test_it_names_the_columns_when_the_query_has_no_email(outbox):
    with pytest.raises(queries.UnknownQueryError, match="needs a column 'email', but has number"):
        send_bulk_email("Hello", "Text", [ADA], "test numbers")
    assert outbox == []


# --- Queries --------------------------------------------------------------------------------------------------------


def test_it_refuses_an_unknown_query():
    with pytest.raises(ValueError, match="no query is named 'failed run'; did you mean 'failed runs'"):
        report("failed run")
    with pytest.raises(ValueError, match="there are 'failed runs', 'runs by outcome'"):
        report("x")
    assert not StoredFile.objects.exists()


@pytest.mark.parametrize(
    ("name", "sentence"), [("failed runs", "Two queries"), ("../x", "not a valid name"), ("", "not a valid name")]
)
def test_it_refuses_a_name_that_is_taken_or_invalid(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        query(name)(lambda start, end: Table([], []))


@pytest.mark.parametrize(("task", "nothing"), [("jobs.report", False), ("jobs.send_bulk_email", True)])
def test_it_offers_the_queries_on_the_page_of_a_schedule(admin_client, task, nothing):
    schedule = make_schedule(task=task, kwargs={"subject": "a", "text": "b"} if nothing else {"query": "failed runs"})
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    page = admin_client.get(address).content.decode()
    choices = re.search(r'(?s)<select name="argument_query".*?</select>', page)[0]
    offered = re.findall(r'<option value="([^"]*)"', choices)
    assert offered == [*([""] if nothing else []), *queries.names()]
    assert {"failed runs", "runs by outcome", "test entries"} <= set(offered)
