"""A program sends files, and gets one run for each key. The site checks its right before it writes a byte."""

import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client

from jobs.models import Run, StoredFile, database_now
from jobs.models.audit import AuditEntry
from jobs.toolkit import files
from tests.api import Caller, checked, make_caller, make_token
from tests.database.test_uploads import TYPE, Body, body
from tests.making import make_run
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

SENDER = ("jobs.add_storedfile", "jobs.add_run")
ALL = (*SENDER, "jobs.view_storedfile", "jobs.delete_storedfile")


@pytest.fixture(autouse=True)
def _folders(settings, tmp_path):
    settings.MEDIA_ROOT, settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "files", tmp_path / "temp"
    for folder in (settings.MEDIA_ROOT, settings.FILE_UPLOAD_TEMP_DIR):
        folder.mkdir()


def table(name="table.csv"):
    return SimpleUploadedFile(name, b"a,b\n1,2\n", "text/csv")


def send(client, content, settings, **headers):
    stream = Body(content, settings.FILE_UPLOAD_TEMP_DIR)
    request = {"CONTENT_TYPE": TYPE, "CONTENT_LENGTH": str(len(content)), "wsgi.input": stream, **headers}
    return client.generic("POST", "/api/uploads", **request), stream


def test_it_keeps_an_upload_and_starts_its_run():
    tom = make_caller("tom", *SENDER)
    answer = tom.upload({"file": table("../../etc/tab\u202ele\0.csv")})
    row, run = StoredFile.objects.get(), Run.objects.get()
    assert answer["status"] == f"/api/runs/{run.id}"
    assert answer["run"]["id"] == str(run.id)
    assert (run.task, run.kwargs, run.actor) == ("jobs.process_upload", {"file": str(row.id)}, "tom")
    assert (row.name, row.size, row.content_type) == ("table.csv", 8, "text/csv")
    assert row.name not in row.file.name
    assert list(AuditEntry.objects.order_by("id").values_list("kind", "act", "door").exclude(kind="token")) == [
        ("run", "start", "api"),
    ]
    other = tom.upload({"file": table(), "job": "jobs.thumbnails"})
    assert other["run"]["job"] == "jobs.thumbnails"


def test_it_refuses_uploads_that_no_job_takes_and_keeps_no_file(settings):
    tom = make_caller("tom", *SENDER)
    for fields, words in [
        ({"file": table(), "job": "no.such"}, "No job is named"),
        ({"file": table(), "job": "jobs.heartbeat"}, "do not fit"),
        ({"file": table(), "job": "a\0b"}, "No job is named"),
        ({"file": table(), "job": "x" * 201}, "200 characters"),
        ({"job": "jobs.process_upload"}, "file/file: Field required"),
        ({"file": "a text"}, "file/file: Field required"),
    ]:
        assert words in tom.upload(fields, 422)["detail"]
    eve = make_caller("eve", *SENDER)
    assert "Can schedule and start" in eve.upload({"file": table(), "job": "jobs.cleanup"}, 403)["detail"]
    assert not StoredFile.objects.exists()
    assert not Run.objects.exists()
    assert not list(settings.MEDIA_ROOT.rglob("*.*"))


def test_it_makes_one_run_and_keeps_one_file_for_a_key(settings):
    tom = make_caller("tom", *SENDER)
    first = tom.upload({"file": table()}, **{"Idempotency-Key": "form 7"})
    again = tom.upload({"file": table()}, 200, **{"Idempotency-Key": "form 7"})
    assert first["run"]["id"] == again["run"]["id"]
    assert (
        "choose another key"
        in tom.upload({"file": table(), "job": "jobs.thumbnails"}, 409, **{"Idempotency-Key": "form 7"})["detail"]
    )
    at_once = threading.Barrier(4)

    def upload(_):
        at_once.wait(DEADLINE)
        try:
            client = Caller(tom.secret).client
            return client.post("/api/uploads", {"file": table()}, headers={"Idempotency-Key": "form 8"})
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(upload, range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
    assert Run.objects.count() == StoredFile.objects.count() == 2
    assert len([path for path in settings.MEDIA_ROOT.rglob("*") if path.is_file()]) == 2


def test_it_reads_no_file_of_a_sender_without_the_right(settings):
    user = User.objects.create_superuser("ada")
    senders = [
        (Client(headers={"Authorization": "Bearer wrong"}), 401),
        (Client(), 401),
        (make_caller("reader", "jobs.view_run").client, 403),
        (make_caller("half", "jobs.add_storedfile").client, 403),
        (Caller(make_token(user, "jobs.add_run")).client, 403),
    ]
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(user)
    browser.cookies["csrftoken"] = "a" * 32
    for client, status in [*senders, (browser, 403)]:
        answer, stream = send(client, body(300_000), settings)
        checked(answer, status)
        assert stream.seen == 0, client
        assert stream.left > 0 or status == 403
    assert not StoredFile.objects.exists()


def test_it_takes_a_file_of_a_token_without_a_csrf_token_and_stops_at_the_limit(settings, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_UPLOAD", 150_000)
    tom = make_caller("tom", *SENDER)
    answer, stream = send(tom.client, body(100_000), settings)
    assert (answer.status_code, StoredFile.objects.get().size) == (202, 100_000)
    assert stream.seen > 0
    answer, stream = send(tom.client, body(1_000_000), settings)
    assert "larger than 150,000 bytes" in checked(answer, 413)["detail"]
    assert 0 < stream.seen <= 150_000
    answer, stream = send(tom.client, body(1_200_000), settings)
    assert "larger than 150,000 bytes" in checked(answer, 413)["detail"]
    assert stream.left == stream.size
    assert not list(settings.FILE_UPLOAD_TEMP_DIR.iterdir())
    broken = tom.client.generic("POST", "/api/uploads", b"--b\r\n", "multipart/form-data")
    assert checked(broken, 400)["detail"]


def test_it_takes_an_upload_of_a_session_with_its_csrf_token(settings):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("ada"))
    page = browser.get("/api/docs").content.decode()
    right = page.partition('data-csrf-token="')[2].partition('"')[0]
    checked(browser.post("/api/uploads", {"file": BytesIO(b"x")}), 403)
    checked(browser.post("/api/uploads", {"file": BytesIO(b"x")}, headers={"X-CSRFToken": right}), 202)
    assert Run.objects.get().actor == "ada"


def test_it_lists_links_and_deletes_files(settings):
    tom = make_caller("tom", *ALL)
    run = make_run()
    for number in range(3):
        tom.upload({"file": table(f"{number}.csv")})
    StoredFile.objects.filter(name="0.csv").update(run_id=run.id, kind="report")
    first = tom.get("/api/files?limit=2")
    rows = first["items"] + tom.get(first["next"])["items"]
    assert [row["name"] for row in rows] == ["2.csv", "1.csv", "0.csv"]
    for query in (f"run={run.id}", "kind=report"):
        assert [row["name"] for row in tom.get(f"/api/files?{query}")["items"]] == ["0.csv"]
    key = rows[0]["id"]
    assert tom.get(f"/api/files/{key}") == rows[0]
    link = tom.post(f"/api/files/{key}/link")["link"]
    download = Client().get(link.removeprefix(settings.SITE_URL))
    assert b"".join(download.streaming_content) == b"a,b\n1,2\n"
    reader = make_caller("reader", "jobs.view_storedfile")
    checked(reader.client.delete(f"/api/files/{key}"), 403)
    tom.delete(f"/api/files/{key}")
    tom.delete(f"/api/files/{key}", 404)
    assert not StoredFile.objects.filter(id=key).exists()
    entry = AuditEntry.objects.get(kind="file", act="delete")
    assert (entry.actor, entry.key, entry.name) == ("tom", key, "2.csv")
    for path in ("", f"/{uuid4()}"):
        make_caller(f"stranger{path[:3]}", "jobs.view_run").get(f"/api/files{path}", 403)
    tom.get(f"/api/files/{uuid4()}", 404)


def test_it_neither_links_to_nor_deletes_a_backup():
    tom = make_caller("tom", *ALL)
    tom.upload({"file": table()})
    row = StoredFile.objects.get()
    StoredFile.objects.update(kind="backup")
    assert "secrets" in tom.post(f"/api/files/{row.id}/link", status=403)["detail"]
    assert "jobs.backup_database" in tom.delete(f"/api/files/{row.id}", 403)["detail"]
    StoredFile.objects.update(kind="upload", size=None, created_at=database_now())
    tom.post(f"/api/files/{row.id}/link", status=404)
    assert StoredFile.objects.exists()


def test_it_hides_the_files_of_other_runs_from_a_token_that_is_limited():
    mine, theirs = make_run(task="billing.report"), make_run(task="crm.report")
    for name, run in (("mine", mine.id), ("theirs", theirs.id), ("upload", None)):
        StoredFile.objects.create(name=name, file=f"report/{name}", size=1, run_id=run)
    keys = {row.name: row.id for row in StoredFile.objects.all()}
    limited = make_caller("limited", *ALL, jobs=["billing.*"])
    assert [row["name"] for row in limited.get("/api/files")["items"]] == ["mine"]
    for name in ("theirs", "upload"):
        limited.get(f"/api/files/{keys[name]}", 404)
        limited.post(f"/api/files/{keys[name]}/link", status=404)
        limited.delete(f"/api/files/{keys[name]}", 404)
    limited.post(f"/api/files/{keys['mine']}/link")
    assert StoredFile.objects.count() == 3
    limited.delete(f"/api/files/{keys['mine']}")
    assert [row["name"] for row in make_caller("tom", *ALL).get("/api/files")["items"]] == ["upload", "theirs"]
