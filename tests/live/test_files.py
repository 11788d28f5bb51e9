"""The jobs that use files and steps, as runs on a real worker."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from uuid import UUID

import pytest
from celery.result import AsyncResult
from django.core.files.uploadedfile import SimpleUploadedFile

from jobs.admin.runs import RunAdmin
from jobs.ledger import outbox, requests
from jobs.models import Measurement, Run, RunLog, State, Step, StoredFile
from jobs.toolkit import files, uploads
from tests.database.test_thumbnails import picture
from tests.making import ends, make_run, make_schedule, run_now
from tests.web import Web, serving

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing")]


@pytest.fixture(scope="module")
def source() -> Iterator[Web]:
    """The server that the worker calls as this site."""
    with serving({}) as web:
        yield web


@pytest.fixture(scope="module", autouse=True)
def worker(standing, source) -> None:
    standing.start_worker(env={"SITE_URL": source.address})


def progress_of(run: Run) -> str:
    return RunAdmin.progress(None, run)


def files_of(run: Run) -> set[UUID]:
    return set(StoredFile.objects.filter(run_id=run.id).values_list("id", flat=True))


def test_it_processes_uploads_in_runs_and_their_steps(eventually):
    photo = files.keep("photo.jpg", BytesIO(picture()), StoredFile.Kind.UPLOAD)
    page = files.keep("page.html", BytesIO(b"<html>"), StoredFile.Kind.UPLOAD)
    table, _ = uploads.take_upload(SimpleUploadedFile("table.csv", b"a,b\n1,2\n", "text/csv"), "ada")
    small, _ = requests.start("jobs.thumbnails", {"file": str(photo.id), "sizes": [64]}, "ada")
    all_sizes, _ = requests.start("jobs.thumbnails", {"file": str(photo.id)}, "ada")
    refused, _ = requests.start("jobs.thumbnails", {"file": str(page.id)}, "ada")
    fan, _ = requests.start("jobs.fan_out", {"items": 1_050, "chunk": 100}, "ada")
    runs = [table, small, all_sizes, refused, fan]
    for run in runs:
        eventually(partial(ends, run))

    assert (table.state, progress_of(table)) == (State.SUCCEEDED, "8 of 8, reading")
    assert AsyncResult(str(table.id)).get()["columns"] == 2
    assert "kind: table" in RunLog.objects.get(run=table).text

    assert (all_sizes.state, progress_of(all_sizes)) == (State.SUCCEEDED, "4 of 4 steps")
    made = StoredFile.objects.filter(run_id=all_sizes.id)
    with made.get(name="photo-thumbnails.json").file.open("rb") as content:
        listed = json.load(content)["thumbnails"]
    assert [(each["width"], each["height"]) for each in listed] == [(64, 32), (256, 128), (300, 150)]
    assert [each["file"] for each in listed] == [
        str(made.get(name=f"photo-{size}.webp").id) for size in (64, 256, 1024)
    ]
    assert (small.state, StoredFile.objects.filter(run_id=small.id).count()) == (State.SUCCEEDED, 2)

    assert (refused.state, refused.steps.count()) == (State.FAILED, 0)
    assert refused.reason.endswith("This file is not a JPEG, PNG or WebP picture: upload one of these.")

    assert (fan.state, progress_of(fan)) == (State.SUCCEEDED, "12 of 12 steps")
    total = fan.steps.get(task="jobs.fan_out.total")
    assert AsyncResult(total.id).get() == 105
    assert "105 of 1,050 numbers have the right check digit" in RunLog.objects.get(run=fan).text


def test_it_replaces_the_files_of_an_earlier_attempt(eventually):
    photo = files.keep("photo.jpg", BytesIO(picture()), StoredFile.Kind.UPLOAD)
    schedule = make_schedule("thumbnails", task="jobs.thumbnails", kwargs={"file": str(photo.id)})
    run = run_now(schedule)
    eventually(lambda: ends(run))
    before = files_of(run)
    Run.objects.filter(id=run.id).update(state=State.WAITING, attempt=2, finished_at=None)  # as a rescue leaves it
    outbox.send([Run.objects.get(id=run.id)])
    eventually(lambda: Step.objects.filter(run=run, attempt=2).exists() and ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 2)
    assert files_of(run) == before


def test_it_leaves_the_same_table_when_two_runs_load_a_window(eventually, source):
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    end = midnight + timedelta(days=1)
    arguments = {"source": "/data?from={start}&to={end}", "dataset": "weather", "key": "station", "time": "at"}
    schedule = make_schedule(
        "weather", task="jobs.etl", kwargs={**arguments, "values": ["hPa"]}, cron={"minute": "0", "hour": "0"}
    )
    make_run(schedule, State.SUCCEEDED, due_at=midnight, last_due_at=midnight)
    due = {"due_at": end, "last_due_at": end, "task": "jobs.etl", "kwargs": json.loads(schedule.kwargs)}
    run = make_run(schedule, **due)
    rows = [f"s{number},2026-03-01T{number:02}:00:00Z,{number}" for number in range(20)]
    page = "/data?from=2026-03-01T00:00:00Z&to=2026-03-02T00:00:00Z"
    source.pages[page] = "\n".join(["station,at,hPa", *rows, "s1,soon,7"]).encode()
    tables = []
    outbox.send([run])
    for _ in range(2):
        eventually(partial(ends, run))
        assert (run.state, progress_of(run)) == (State.SUCCEEDED, "3 of 3 steps, 3 of 3, 20 numbers loaded")
        assert "21 extracted, 1 dropped, 20 loaded, 0 removed" in RunLog.objects.get(run=run).text
        tables.append(list(Measurement.objects.order_by("pk").values_list("pk", "key", "at", "value")))
        run = requests.retry([run], "ada").runs[0]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 20
    assert source.asked == [f"GET {page}"] * 2
