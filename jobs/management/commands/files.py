"""`manage.py files list|show|link|delete`: what users have uploaded and runs have made."""

from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError, CommandParser

from jobs.management import reading
from jobs.management.terminal import FAILED, ShellCommand, add_yes, counted
from jobs.models import Actor, StoredFile
from jobs.toolkit import files
from jobs.web.api import files as shapes

MOST_LISTED = 10_000  # files
COLUMNS = ("id", "name", "kind", "bytes", "created", "run")
FILE = "the id of a file, or its beginning or end, such as the 12 characters that `files list` shows"


class Command(ShellCommand):
    help = "Lists, shows, links and deletes stored files. `manage.py runs start JOB --file PATH` stores one for a job."

    def add_arguments(self, parser: CommandParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        listing = self.act(acts, "list", self.list, "List stored files, the newest first.")
        listing.add_argument("--kind", action="append", choices=StoredFile.Kind.values, help="repeatable")
        listing.add_argument("--run", help="the id of the run that made them, or its beginning or end")
        listing.add_argument("--limit", type=reading.between(1, MOST_LISTED), default=20, metavar="N")
        self.act(acts, "show", self.show, "Show a stored file, without its content.").add_argument("file", help=FILE)
        link = self.act(acts, "link", self.link, "Print a download link, which needs no login and expires.")
        link.add_argument("file", help=FILE)
        delete = self.act(acts, "delete", self.delete, "Delete stored files.")
        delete.add_argument("files", nargs="+", metavar="file", help=FILE)
        add_yes(delete)

    def list(self, *, kind: Sequence[str] | None, run: str | None, limit: int) -> None:
        rows = StoredFile.objects.order_by("-created_at", "-id")
        rows = rows.filter(kind__in=kind) if kind else rows
        rows = rows if run is None else rows.filter(run_id=reading.run_of(run).id)
        found = list(rows[:limit])
        if self.terminal.as_json:
            self.terminal.json([shapes.shown(each) for each in found])
        elif found:
            self.terminal.table(COLUMNS, map(line, found))
        else:
            self.terminal.note("No file matches.")

    def show(self, *, file: str) -> None:
        found = file_of(file)
        if self.terminal.as_json:
            self.terminal.json(shapes.shown(found))
            return
        self.terminal.record(properties(found))

    def link(self, *, file: str) -> None:
        found = file_of(file)
        if found.size is None:
            raise CommandError("This file is not complete yet: ask again in a moment.", returncode=FAILED)
        linked = shapes.linked(found)
        if self.terminal.as_json:
            self.terminal.json(linked)
            return
        self.terminal.say(linked["link"])
        self.terminal.note(f"Anyone may fetch the file from this address for {counted(linked['days'], 'day')}.")

    def delete(self, *, files: Sequence[str], yes: bool) -> None:
        found = list({row.pk: row for row in map(file_of, files)}.values())
        self.confirm(f"Delete {counted(len(found), 'file')}: {', '.join(row.name for row in found)}?", yes=yes)
        number = delete_files(found)
        if self.terminal.as_json:
            self.terminal.json({"deleted": number})
        self.terminal.say(f"Deleted {counted(number, 'file')}.")


def file_of(word: str) -> StoredFile:
    """The file with this id. Raises `MissingError` or `UsageError`."""
    row: StoredFile = reading.row_of(word, StoredFile.objects.all(), "file")
    return row


def delete_files(rows: Sequence[StoredFile]) -> int:
    """Delete these files; returns how many there were. Raises CommandError if the storage refuses one."""
    try:
        return files.delete(StoredFile.objects.filter(pk__in=[row.pk for row in rows]), Actor.of_shell())
    except OSError as error:
        raise CommandError(f"A file could not be deleted: {error.strerror}.", returncode=FAILED) from error


def line(row: StoredFile) -> list[Any]:
    size = "incomplete" if row.size is None else f"{row.size:,}"
    return [str(row.id)[-12:], row.name, row.kind, size, row.created_at, row.run_id and str(row.run_id)[-12:]]


def properties(row: StoredFile) -> dict[str, Any]:
    """What a person wants to know about a file, in order."""
    return {
        **{name: getattr(row, name) for name in ("id", "name", "kind")},
        "content type": row.content_type,
        "bytes": "incomplete" if row.size is None else f"{row.size:,}",
        "path": row.file.name,
        "created": row.created_at,
        "run": row.run_id,
    }
