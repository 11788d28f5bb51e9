"""What do jobs keep as files, and who may fetch them? Each is a row, `StoredFile`, and a file in Django's storage.

Its one rule: the row comes first and goes last, and it says where the file is, so nothing lies in the storage that no
row knows, whenever a process dies. A run that is tried again replaces what it kept under the same name. No path holds
a name that somebody chose. A link is signed and ends after LINK_DAYS; who has it may fetch that file, and no other.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import IO, Any
from uuid import UUID, uuid4, uuid5

from django.conf import settings
from django.core import signing
from django.core.files import File
from django.core.files.storage import default_storage
from django.urls import reverse

from jobs import pulse
from jobs.models import StoredFile

LINK_DAYS = 7
LARGEST_UPLOAD = 100_000_000  # bytes
BATCH = 100  # files removed at a time
_SALT = "jobs.files"


class NoFileError(LookupError):
    """There is no such file, or not any more. The message says what to do."""


def keep(name: str, content: IO[Any], kind: StoredFile.Kind, content_type: str = "") -> StoredFile:
    """Store all of `content` from its present place on, under a name for people. Raises OSError of the storage."""
    held = pulse.current()
    run_id = held.run_id if held else None
    key = uuid5(run_id, name) if run_id else uuid4()
    made: dict[str, Any] = {"kind": kind, "name": _printable(name), "run_id": run_id, "size": None}
    made |= {"file": f"{kind}/{key}", "content_type": content_type or "application/octet-stream"}
    row, _ = StoredFile.objects.update_or_create(id=key, defaults=made)
    default_storage.delete(made["file"])  # of an earlier attempt
    stored_as = default_storage.save(made["file"], File(content))
    row.file.name, row.size = stored_as, default_storage.size(stored_as)
    row.save(update_fields=["file", "size"])
    return row


def find(key: UUID) -> StoredFile:
    """The stored file of that id, all of which is there. Raises `NoFileError`."""
    row = StoredFile.objects.filter(id=key, size__isnull=False).first()
    if row is None:
        raise NoFileError(f"There is no file {key}: it was removed, or never uploaded. Upload it again.")
    return row


def link(row: StoredFile) -> str:
    """An address under which anybody may fetch the file for `LINK_DAYS`."""
    return settings.SITE_URL + reverse("download", args=[signing.dumps(str(row.id), salt=_SALT)])


def of_link(token: str) -> StoredFile:
    """The file that a link leads to. Raises `NoFileError` for a link that is too old, or not one of ours."""
    try:
        return find(UUID(signing.loads(token, salt=_SALT, max_age=timedelta(days=LINK_DAYS))))
    except (signing.BadSignature, ValueError):
        raise NoFileError(f"This link is wrong, or older than {LINK_DAYS} days: ask for a new one.") from None


def remove(row: StoredFile) -> None:
    """Delete the file, then its row."""
    default_storage.delete(str(row.file.name))
    row.delete()


def forget(before: datetime, kinds: Collection[StoredFile.Kind]) -> Iterator[int]:
    """Remove files of these kinds that were made before a moment; yields how many in each batch."""
    old = StoredFile.objects.filter(kind__in=kinds, created_at__lt=before).order_by("created_at")
    while batch := list(old[:BATCH]):
        for row in batch:
            with suppress(StoredFile.DoesNotExist):
                remove(row)
        yield len(batch)


def _printable(name: str) -> str:
    """As a database stores it, and a header of HTTP carries it."""
    return "".join(filter(str.isprintable, name))[:200] or "file"
