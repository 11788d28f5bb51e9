"""An upload becomes a file and a run, once for each key; and the run describes the file."""

import codecs
import hashlib
import io
import threading
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.urls import reverse
from kombu import Queue

from jobs.ledger import requests
from jobs.ledger.requests import RunOptions, run_job
from jobs.models import Run, State, StoredFile, Trigger
from jobs.rules.errors import Invalid
from jobs.tasks.process_upload import PIECE, process_upload
from jobs.toolkit import files, uploads
from tests.database.test_admin import text
from tests.database.test_thumbnails import picture, png

pytestmark = pytest.mark.django_db
FILES = reverse("admin:jobs_storedfile_changelist")


def process(content: bytes, name: str = "upload.bin") -> dict[str, Any]:
    return process_upload(str(files.keep(name, io.BytesIO(content), StoredFile.Kind.UPLOAD).id))


def upload(content: bytes = b"a,b\n1,2\n", name: str = "table.csv") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content, "text/csv")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", {"kind": "text", "lines": 0, "encoding": "utf-8"}),
        ("grün\nund blau".encode(), {"kind": "text", "lines": 2, "encoding": "utf-8"}),
        (codecs.BOM_UTF8 + b"a\n", {"kind": "text", "lines": 1, "encoding": "utf-8-sig"}),
        ("a;b\n1;2\n".encode("utf-16"), {"kind": "table", "columns": 2, "lines": 2, "encoding": "utf-16"}),
        (b'a,b,c\n1,"2,5",3\n', {"kind": "table", "columns": 3, "lines": 2, "encoding": "utf-8"}),
        (b"a\tb\r\n1\t2", {"kind": "table", "columns": 2, "lines": 2, "encoding": "utf-8"}),
        (b"one, two\nthree\n", {"kind": "text", "lines": 2, "encoding": "utf-8"}),
        (b"caf\xe9\n", {"kind": "data"}),
        (b"a\0b\n", {"kind": "data"}),
        (b"half \xc3", {"kind": "data"}),
        (b"%PDF-1.7\n", {"kind": "PDF"}),
        (b"PK\x03\x04", {"kind": "ZIP"}),
        (picture(), {"kind": "JPEG", "width": 300, "height": 150}),
        (picture(form="WEBP"), {"kind": "WEBP", "width": 300, "height": 150}),
        (png(20_000, 20_000), {"kind": "data"}),
    ],
)
def test_it_describes_a_file_by_its_content(content, found):
    digest = hashlib.sha256(content).hexdigest()
    assert process(content) == {"name": "upload.bin", "bytes": len(content), "sha256": digest, **found}


def test_it_reads_a_large_file_in_pieces_and_loses_nothing_between_them():
    line = "äöü,1\n".encode()
    content = b"x" * 7 + line * (2 * PIECE // len(line))  # so that pieces end in letters, and the sample in a cell
    found = process(content)
    assert (found["kind"], found["columns"], found["lines"]) == ("table", 2, content.count(b"\n"))
    assert (found["bytes"], found["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_it_logs_its_findings(caplog):
    caplog.set_level("INFO", "jobs.tasks.process_upload")
    process(b"a,b\n", "table.csv")
    digest = hashlib.sha256(b"a,b\n").hexdigest()
    assert caplog.messages == [
        f"name: table.csv, kind: table, bytes: 4, sha256: {digest}, columns: 2, lines: 1, encoding: utf-8"
    ]


def test_it_says_so_when_the_file_is_gone():
    with pytest.raises(files.NoFileError, match="Upload or create it again"):
        process_upload(str(uuid4()))


# --- From an upload to a run ----------------------------------------------------------------------------------------


def test_it_creates_a_file_and_a_run_from_an_upload():
    run, is_new = uploads.take_upload(upload(), "ada")
    row = StoredFile.objects.get()
    assert is_new
    assert (run.task, run.kwargs, run.state) == ("jobs.process_upload", {"file": str(row.id)}, State.WAITING)
    assert (run.trigger, run.actor, run.schedule) == (Trigger.CODE, "ada", None)
    assert (row.name, row.content_type, row.size) == ("table.csv", "text/csv", 8)


def test_it_creates_one_file_and_one_run_when_the_key_is_repeated():
    first, _ = uploads.take_upload(upload(), "ada", key="form 7")
    again, is_new = uploads.take_upload(upload(), "ada", key="form 7")
    assert (again.id, is_new) == (first.id, False)
    assert (Run.objects.count(), StoredFile.objects.count()) == (1, 1)
    assert uploads.take_upload(upload(), "ada", key="form 8")[1]


@pytest.mark.django_db(transaction=True)
def test_it_keeps_the_file_of_the_run_when_several_clients_ask_at_once():
    barrier, made = threading.Barrier(4), []

    def take() -> None:
        try:
            barrier.wait()
            made.append(uploads.take_upload(upload(), "ada", key="form 7"))
        finally:
            connection.close()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(is_new for _, is_new in made) == [False, False, False, True]
    run = Run.objects.get()
    assert {each.id for each, _ in made} == {run.id}
    with files.find(UUID(run.kwargs["file"])).file.open("rb") as content:
        assert content.read() == b"a,b\n1,2\n"
    assert StoredFile.objects.count() == 1


def test_it_refuses_an_upload_that_is_too_large():
    large = upload()
    large.size = files.LARGEST_UPLOAD + 1
    with pytest.raises(Invalid, match="larger than 100,000,000 bytes: upload a smaller one"):
        uploads.take_upload(large, "ada")
    assert not StoredFile.objects.exists()


@pytest.mark.parametrize(
    ("job", "arguments", "sentence"),
    [
        ("jobs.process_uplaod", {}, "Did you mean 'jobs.process_upload'"),
        ("jobs.process_upload", {}, "missing a required argument: 'file'"),
        ("jobs.process_upload", {"file": "7"}, "file: Input should be a valid UUID"),
        ("jobs.thumbnails", {"file": str(UUID(int=1)), "sizes": [1]}, "greater than or equal to 16"),
        ("jobs.fan_out", {"chunk": 0}, "greater than or equal to 1"),
    ],
)
def test_it_creates_no_run_that_could_not_run(job, arguments, sentence):
    with pytest.raises(Invalid, match=sentence):
        requests.start(job, arguments, "ada")
    assert not Run.objects.exists()


# --- In the admin ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("action", "job"), [("process", "jobs.process_upload"), ("make_thumbnails", "jobs.thumbnails")]
)
def test_it_starts_a_run_for_each_selected_file(admin_client, redis, action, job):
    rows = [files.keep(name, io.BytesIO(b"x"), StoredFile.Kind.UPLOAD) for name in ("one.png", "two.png")]
    response = admin_client.post(FILES, {"action": action, "_selected_action": [row.pk for row in rows]}, follow=True)
    runs = {run.kwargs["file"]: run for run in Run.objects.filter(task=job, actor="admin", state=State.QUEUED)}
    assert set(runs) == {str(row.id) for row in rows}
    assert redis.llen("celery") == 2
    for row in rows:
        link = f'<a href="{reverse("admin:jobs_run_change", args=[runs[str(row.id)].pk])}">{row.name}</a>'
        assert link in response.content.decode()


def test_it_starts_no_run_for_users_who_may_only_view(client):
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_storedfile"))
    client.force_login(user)
    row = files.keep("one.png", io.BytesIO(b"x"), StoredFile.Kind.UPLOAD)
    page = text(client.post(FILES, {"action": "process", "_selected_action": [row.pk]}, follow=True))
    assert "one.png" in page
    assert "Process" not in page
    assert not Run.objects.exists()


class Zoneless(tzinfo):
    """A time zone that knows no offset."""

    def utcoffset(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0", "\ud800"])
def test_it_refuses_an_invalid_key_and_keeps_no_file(key):
    with pytest.raises(Invalid, match="The key of a request is text"):
        uploads.take_upload(upload(), "ada", key=key)
    assert not StoredFile.objects.exists()


def test_it_returns_no_run_of_another_job_for_the_same_key():
    requests.start("tests.nothing", {}, "ada", RunOptions(key="form 7"))
    with pytest.raises(Invalid, match=r"was for tests\.nothing: choose another key"):
        uploads.take_upload(upload(), "ada", key="form 7")
    assert not StoredFile.objects.exists()


@pytest.mark.parametrize("value", ["\0", "\ud800", float("nan"), uuid4(), "x" * 20_000])
def test_it_refuses_arguments_that_no_schedule_could_have(value):
    with pytest.raises(Invalid, match="The arguments"):
        requests.start("jobs.import_feed", {"url": value}, "ada")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"priority": 2.5}, "The priority of a run is a number"),
        ({"priority": True}, "The priority of a run is a number"),
        ({"priority": "3"}, "The priority of a run is a number"),
        ({"key": 7}, "The key of a request is text"),
        ({"priority": 3.0}, "The priority of a run is a number"),
        ({"priority": [3]}, "The priority of a run is a number"),
        ({"priority": -1}, "The priority of a run is a number"),
        ({"key": b"7"}, "The key of a request is text"),
        ({"key": ""}, "The key of a request is text"),
        ({"delay": 5}, r"The delay of a run is a timedelta, not int: write timedelta\(seconds=\.\.\.\)"),
        ({"delay": 0}, "The delay of a run is a timedelta, not int"),
        ({"delay": True}, "The delay of a run is a timedelta, not bool"),
        ({"delay": "5 minutes"}, "The delay of a run is a timedelta, not str"),
        ({"delay": timedelta(seconds=-1)}, "a delay is positive"),
        ({"delay": timedelta.max}, "A run starts at the latest 3,650 days after its request"),
        ({"at": date(2099, 1, 1)}, "The moment to start at is a datetime, not date: write datetime"),
        ({"at": "2099-01-01T00:00:00Z"}, "The moment to start at is a datetime, not str"),
        ({"at": 4_000_000_000}, "The moment to start at is a datetime, not int"),
        ({"at": datetime(2099, 1, 1)}, "The moment to start at has no time zone"),  # noqa: DTZ001 - refused
        ({"at": datetime(2099, 1, 1, tzinfo=Zoneless())}, "The moment to start at has no time zone"),
        ({"at": datetime.max.replace(tzinfo=UTC)}, "A run starts at the latest"),
        ({"at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))}, "A run starts at the latest"),
        ({"at": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))}, "A run starts at the latest"),
        ({"at": datetime(2099, 1, 1, tzinfo=UTC), "delay": timedelta(1)}, "a delay or a moment to start at, not both"),
        ({"queue": 5}, "The queue of a run is a name, not int"),
        ({"queue": Queue("letters")}, "The queue of a run is a name, not Queue"),
        ({"queue": ["letters"]}, "The queue of a run is a name, not list"),
        ({"queue": "a b"}, "its name is not plain"),
    ],
)
def test_it_refuses_options_that_the_database_would_change_or_refuse(options, sentence):
    with pytest.raises(Invalid, match=sentence):
        run_job("tests.nothing", RunOptions(**options))
    assert not Run.objects.exists()


@pytest.mark.parametrize("options", [{"key": "7"}, 5, "", timedelta(1)])
def test_it_refuses_options_of_another_kind(options):
    with pytest.raises(Invalid, match=r"The options of a run are RunOptions, not \w+: write RunOptions\(key="):
        run_job("tests.nothing", options)


def test_it_takes_no_queue_for_the_queue_of_the_job():
    assert run_job("tests.nothing", RunOptions(queue=None)).queue == ""


@pytest.mark.parametrize("job", [None, 5, len])
def test_it_says_that_something_is_no_job(job):
    with pytest.raises(Invalid, match="is no job: give a task or its name"):
        run_job(job)


def test_it_keeps_no_secret_in_the_key_and_the_name_of_a_requester(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    first, second = (
        requests.start("tests.nothing", {}, "ada canary-1234", RunOptions(key="pay canary-1234")) for _ in range(2)
    )
    assert (first[0].id, first[1], second[1]) == (second[0].id, True, False)
    assert "canary" not in f"{first[0].key} {first[0].actor}"


def test_it_takes_no_user_object_for_code(django_user_model):
    with pytest.raises(TypeError, match=r"Actor\.of_user"):
        requests.start("tests.nothing", {}, django_user_model.objects.create_user("eve"))


def test_it_refuses_a_request_with_a_password_in_a_url():
    with pytest.raises(Invalid, match="A URL contains a password"):
        requests.start("jobs.import_feed", {"url": "https://ada:hunter2@example.org/feed"}, "ada")
    assert not Run.objects.exists()


def test_it_shortens_an_actor_that_is_too_long_for_the_column():
    assert requests.start("tests.nothing", {}, "a" * 300)[0].actor == "a" * 253 + "…"
