"""Files that people upload and jobs make: a row and a file each, fetched by a link that expires."""

import io
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError
from django.urls import reverse

from jobs.models import StoredFile, database_now
from jobs.toolkit import files, uploads
from jobs.worker import context
from tests.database.test_api_base import failing
from tests.database.test_current import inside
from tests.making import make_run

pytestmark = pytest.mark.django_db

FILES = reverse("admin:jobs_storedfile_changelist")
NEW = reverse("admin:jobs_storedfile_add")
Kind = StoredFile.Kind


@pytest.fixture(autouse=True)
def _folder(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path


def keep(
    text: bytes = b"a,b\n", name: str = "report.csv", kind: Kind = Kind.REPORT, type_: str = "text/csv"
) -> StoredFile:
    return files.keep(name, io.BytesIO(text), kind, type_)


def stored(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_it_serves_the_file_to_anyone_with_the_link(client, settings):
    row = keep(b"a,b\n1,2\n")
    address = files.link(row)
    assert address.startswith(f"{settings.SITE_URL}/files/")
    response = client.get(address.removeprefix(settings.SITE_URL))
    assert b"".join(response.streaming_content) == b"a,b\n1,2\n"
    assert response["content-disposition"] == 'attachment; filename="report.csv"'
    assert (response["content-type"], response["x-content-type-options"]) == ("text/csv", "nosniff")
    assert "no-store" in response["cache-control"]


@pytest.mark.parametrize("token", ["x", "x:y:z", "é", "%00", "a" * 5000])
def test_it_answers_404_when_the_link_is_forged(client, token):
    response = client.get(f"/files/{token}")
    assert response.status_code == 404
    assert "This link is invalid, or older than 7 days: ask for a new one." in response.content.decode()


def test_it_answers_404_when_the_link_is_too_old_or_the_file_is_gone(client, settings, monkeypatch):
    row = keep()
    path = files.link(row).removeprefix(settings.SITE_URL)
    monkeypatch.setattr(files, "LINK_DAYS", -1)
    assert client.get(path).status_code == 404
    monkeypatch.undo()
    assert b"".join(client.get(path).streaming_content) == b"a,b\n"
    default_storage.delete(row.file.name)
    assert "cannot be read at present" in client.get(path).content.decode()
    files.remove(row)
    assert "Upload or create it again" in client.get(path).content.decode()


def test_it_replaces_the_file_when_a_run_keeps_it_again(tmp_path):
    run = make_run()
    with inside(run):
        first = keep(b"half")
        second = keep(b"whole")
        other = keep(b"other", name="other.csv")
    assert (first.id, second.run_id) == (second.id, run.id)
    assert other.id != first.id
    assert stored(tmp_path) == [b"other", b"whole"]
    keep(b"by hand")
    keep(b"by hand")
    assert StoredFile.objects.count() == 4


def test_it_uses_no_part_of_the_name_in_the_path(tmp_path):
    row = keep(name="../../etc/passwd\x00" + "x" * 300)
    assert Path(default_storage.path(row.file.name)).is_relative_to(tmp_path)
    assert "passwd" not in row.file.name
    assert len(row.name) <= 200


def test_it_finds_only_complete_files():
    row = keep()
    assert files.find(row.id) == row
    StoredFile.objects.filter(id=row.id).update(size=None)
    for key in (row.id, uuid4()):
        with pytest.raises(files.NoFileError, match="Upload or create it again"):
            files.find(key)


def test_it_leaves_a_row_for_the_file_when_it_dies_while_writing(tmp_path):
    class Dying(io.BytesIO):
        def read(self, *_: int) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.keep("a", Dying(b"abc"), Kind.DATA)
    assert StoredFile.objects.get().size is None
    assert list(files.delete_older_than(database_now() + timedelta(1), {Kind.DATA})) == [1]
    assert (StoredFile.objects.count(), stored(tmp_path)) == (0, [])


def test_it_deletes_old_files_of_the_given_kinds(tmp_path):
    old, young, backup = keep(b"old"), keep(b"young"), keep(b"backup", kind=Kind.BACKUP)
    now = database_now()
    StoredFile.objects.filter(id__in=[old.id, backup.id]).update(created_at=now - timedelta(days=31))
    assert list(files.delete_older_than(now - timedelta(days=30), {Kind.REPORT, Kind.UPLOAD})) == [1]
    assert set(StoredFile.objects.all()) == {young, backup}
    assert stored(tmp_path) == [b"backup", b"young"]


def test_it_accepts_uploads_in_the_admin_and_offers_no_editing(admin_client, tmp_path):
    upload = SimpleUploadedFile("Käse.txt", b"hello", content_type="text/plain")
    assert admin_client.post(NEW, {"file": upload}).status_code == 302
    row = StoredFile.objects.get()
    assert (row.name, row.kind, row.size, row.content_type) == ("Käse.txt", Kind.UPLOAD, 5, "text/plain")
    page = admin_client.get(reverse("admin:jobs_storedfile_change", args=[row.pk]))
    assert b'type="file"' not in page.content
    assert files.link(row)[:30].encode() in page.content
    admin_client.post(FILES, {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"})
    assert (StoredFile.objects.count(), stored(tmp_path)) == (0, [])


def test_it_refuses_uploads_that_are_empty_too_large_or_missing(admin_client, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_UPLOAD", 4)
    for data in ({}, {"file": ""}, {"file": SimpleUploadedFile("a", b"")}):
        assert admin_client.post(NEW, data).status_code == 200
    refused = admin_client.post(NEW, {"file": SimpleUploadedFile("a", b"12345")})
    assert (refused.status_code, refused.content) == (413, b"The file is larger than 4 bytes: upload a smaller one.\n")
    assert not StoredFile.objects.exists()


def test_it_shows_files_only_to_users_with_the_permission(client):
    row = keep()
    user = User.objects.create_user("eve", is_staff=True)
    client.force_login(user)
    assert client.get(FILES).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename="view_storedfile"))
    assert row.name in client.get(FILES).content.decode()
    assert client.get(NEW).status_code == 403


def test_it_shows_a_file_as_incomplete_until_it_is_written(admin_client):
    StoredFile.objects.filter(id=keep().id).update(size=None)
    page = admin_client.get(FILES).content.decode()
    assert "incomplete" in page
    assert "/files/" not in page


def test_it_stores_no_run_for_a_file_made_outside_a_run():
    assert context.current() is None
    assert keep().run_id is None


def test_it_gives_no_link_to_a_backup(client, settings, admin_client):
    row = keep(kind=Kind.BACKUP)
    assert client.get(files.link(row).removeprefix(settings.SITE_URL)).status_code == 404
    page = admin_client.get(FILES).content.decode()
    assert f"no link, because a backup contains secrets; copy {row.file.name} from FILES_DIR" in page
    assert "/files/" not in page


def test_it_keeps_files_from_other_users_of_the_machine():
    path = Path(default_storage.path(keep().file.name))
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_it_deletes_the_next_file_when_one_cannot_be_removed(tmp_path):
    stuck, other = keep(), keep()
    default_storage.delete(stuck.file.name)
    Path(default_storage.path(stuck.file.name)).mkdir()
    (Path(default_storage.path(stuck.file.name)) / "x").touch()
    assert list(files.delete_older_than(database_now() + timedelta(1), {Kind.REPORT})) == [1]
    assert list(StoredFile.objects.all()) == [stuck]
    assert not Path(default_storage.path(other.file.name)).exists()


def test_it_replaces_a_content_type_that_is_too_long(admin_client):
    upload = SimpleUploadedFile("a", b"x", content_type="text/" + "x" * 200)
    assert admin_client.post(NEW, {"file": upload}).status_code == 302
    assert StoredFile.objects.get().content_type == "application/octet-stream"


def test_it_keeps_no_upload_whose_audit_entry_cannot_be_written(settings):
    full = failing("jobs_auditentry", OperationalError("the disk is full"))
    with full, pytest.raises(OperationalError):
        uploads.keep_upload(SimpleUploadedFile("a.txt", b"text"), "test")
    assert not StoredFile.objects.exists()
    assert stored(Path(settings.MEDIA_ROOT)) == []
