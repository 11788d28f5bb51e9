"""`jobs.backup_database` and `jobs.run_command`: the real programs, on the database of this test."""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.core.management import CommandError
from django.db import connection
from django.utils import timezone

from jobs.models import FeedEntry, StoredFile
from jobs.tasks.backup_database import backup_database
from jobs.tasks.run_command import run_command
from jobs.toolkit import backup
from jobs.toolkit.backup import BackupError
from tests.servers import Servers


@pytest.fixture(autouse=True)
def _folder(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "files"


@pytest.fixture
def programs(transactional_db: None, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump and pg_restore of the server's version, if this test run has started the server."""
    if connection.vendor == "postgresql" and servers.binaries:
        monkeypatch.setenv("PATH", f"{servers.binaries}{os.pathsep}{os.environ['PATH']}")


def scratch_databases() -> list[str]:
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE 'punctual_verify%%'")
        return [name for (name,) in cursor]


@pytest.fixture
def _tidy(programs: None) -> Iterator[None]:
    yield
    assert scratch_databases() == []


@pytest.mark.usefixtures("_tidy")
def test_it_keeps_a_backup_that_was_restored_once(tmp_path: Path) -> None:
    FeedEntry.objects.create(feed="/feed", guid="1", title="kept")
    result = backup_database()
    row = StoredFile.objects.get()
    assert (row.kind, row.size, result["removed"]) == ("backup", result["bytes"], 0)
    with backup.restored(Path(default_storage.path(row.file.name))) as copy, copy.cursor() as cursor:
        cursor.execute("SELECT title FROM jobs_feedentry")
        assert cursor.fetchall() == [("kept",)]


@pytest.mark.usefixtures("_tidy")
def test_it_keeps_the_newest_backups_and_no_other_files() -> None:
    StoredFile.objects.create(kind="upload", name="mine", file="none", size=1)
    for _ in range(3):
        result = backup_database(keep=2)
    assert result["removed"] == 1
    assert StoredFile.objects.filter(kind="backup").count() == 2
    assert StoredFile.objects.filter(kind="upload").exists()


@pytest.mark.usefixtures("_tidy")
@pytest.mark.parametrize("content", [b"", b"PGDMP garbage", b"\0" * 4096])
def test_it_refuses_a_copy_that_cannot_be_restored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "copy"
    path.write_bytes(content)
    with pytest.raises(BackupError):
        backup.verify(path, backup.survey(connection))


@pytest.mark.usefixtures("_tidy")
def test_it_refuses_a_copy_that_lacks_a_table(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    backup.copy_to(path)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE came_later (id integer)")
    try:
        with pytest.raises(BackupError, match=r"The copy lacks the tables came_later\."):
            backup.verify(path, backup.survey(connection))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE came_later")


@pytest.mark.usefixtures("_tidy")
def test_it_accepts_a_copy_that_was_made_after_a_table_was_emptied(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    FeedEntry.objects.create(feed="/feed", guid="1", title="old")
    before = backup.survey(connection)
    FeedEntry.objects.all().delete()
    backup.copy_to(path)
    backup.verify(path, before)


@pytest.mark.usefixtures("_tidy")
def test_it_refuses_a_copy_whose_table_has_lost_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    backup.copy_to(path)
    FeedEntry.objects.create(feed="/feed", guid="1", title="lost")
    with pytest.raises(BackupError, match=r"The copy has no rows in the tables jobs_feedentry\."):
        backup.verify(path, backup.survey(connection))


@pytest.mark.usefixtures("_tidy")
def test_it_refuses_a_copy_with_damaged_pages(tmp_path: Path) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("pg_dump reads every row and fails by itself.")
    path = tmp_path / "copy"
    FeedEntry.objects.create(feed="/feed", guid="1", title="x" * 400)
    before = backup.survey(connection)
    backup.copy_to(path)
    with closing(sqlite3.connect(path)) as copy:
        size = copy.execute("PRAGMA page_size").fetchone()[0]
        index = "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_feedentry'"
        page = copy.execute(index).fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size + size // 2)
        file.write(b"\xff" * (size // 2))
    with pytest.raises(BackupError, match=r"damaged|cannot be read"):
        backup.verify(path, before)


@pytest.mark.usefixtures("_tidy")
def test_it_counts_only_complete_backups_and_deletes_leftovers_of_dead_processes(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    two_days_ago = timezone.now() - timedelta(days=2)
    old_copy = tmp_path / "punctual-backup-x"
    old_copy.mkdir()
    os.utime(old_copy, (two_days_ago.timestamp(),) * 2)
    for name in ("half, long ago", "half, at present"):
        StoredFile.objects.create(kind="backup", name=name, file="none", size=None)
    StoredFile.objects.filter(name="half, long ago").update(created_at=two_days_ago)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE punctual_verify_{int(two_days_ago.timestamp())}_x")
    backup_database(keep=2)
    backup_database(keep=2)
    whole = StoredFile.objects.filter(kind="backup", size__isnull=False)
    assert whole.count() == 2
    assert [row.name for row in StoredFile.objects.filter(size=None)] == ["half, at present"]
    assert not old_copy.exists()


@pytest.mark.django_db
def test_it_leaves_older_backups_alone_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite is backed up without another program.")
    StoredFile.objects.create(kind="backup", name="old", file="none", size=1)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackupError, match="pg_dump is not installed here: install PostgreSQL's client programs"):
        backup_database(keep=1)
    assert StoredFile.objects.get().name == "old"


# --- run_command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _commands(settings: Any) -> None:
    settings.RUN_COMMANDS = ["check", "speak"]


@pytest.mark.django_db
@pytest.mark.usefixtures("_commands")
def test_it_logs_the_output_of_the_command(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jobs.tasks.run_command")
    run_command("speak", ["one", "two"])
    assert caplog.messages == ["one", "two", "to stderr", "without an end"]


@pytest.mark.django_db
@pytest.mark.usefixtures("_commands")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--exit=3"], "speak exited with 3: the log of this run says why"),
        (["--fail"], "it could not"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_it_fails_when_the_command_fails(arguments: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        run_command("speak", arguments)


@pytest.mark.usefixtures("_commands")
@pytest.mark.parametrize("name", ["flush", "", "speak ", "shell"])
def test_it_runs_no_command_that_is_not_allowed(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not allowed\. Allowed: check, speak; the setting RUN_COMMANDS lists them"
    ):
        run_command(name)


@pytest.mark.django_db
@pytest.mark.usefixtures("_commands")
def test_it_succeeds_when_the_command_exits_with_zero() -> None:
    run_command("speak", ["--exit=0"])
