"""What do jobs keep as files, and who may fetch them? Each is a row, `StoredFile`, and a file in Django's storage.

Its one rule: the row comes first and goes last, and it says where the file is, so nothing lies in the storage that no
row knows, whenever a process dies. A run that is tried again replaces what it kept under the same name. No path holds
a name that somebody chose. A link is signed and ends after LINK_DAYS; who has it may fetch that file, and no other.
There is no link to a backup: it holds everybody's secrets.

Limits: a transaction of the caller's that is undone takes the row with it and leaves the file.
"""

import logging
import re
from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import IO, Any
from uuid import UUID, uuid4, uuid5

from django.conf import settings
from django.core import signing
from django.core.files import File
from django.core.files.storage import default_storage
from django.urls import reverse

from jobs.models import StoredFile
from jobs.worker import context

log = logging.getLogger(__name__)

LINK_DAYS = 7
TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}(; ?charset=[\w-]{1,15})?")
LARGEST_UPLOAD = 100_000_000  # bytes
_SALT = "jobs.files"


class NoFileError(LookupError):
    """There is no such file, or not any more. The message says what to do."""


def keep(name: str, content: IO[Any], kind: StoredFile.Kind, content_type: str = "") -> StoredFile:
    """Store all of `content` from its present place on, under a name for people. Raises OSError of the storage."""
    execution = context.current()
    run_id = execution.run_id if execution else None
    key = uuid5(run_id, f"{kind} {name}") if run_id else uuid4()
    made: dict[str, Any] = {"kind": kind, "name": _printable(name), "run_id": run_id, "size": None}
    made["content_type"] = content_type if TYPE.fullmatch(content_type) else "application/octet-stream"
    made["file"] = f"{kind}/{key}-{uuid4().hex}"  # two at once do not write into one file
    _delete_previous(key)
    row, _ = StoredFile.objects.update_or_create(id=key, defaults=made)
    size = default_storage.size(default_storage.save(made["file"], File(content)))
    if StoredFile.objects.filter(id=key, file=made["file"]).update(size=size):
        row.size = size
    else:  # somebody else was told to keep the same meanwhile
        default_storage.delete(made["file"])
    return row


def find(key: UUID) -> StoredFile:
    """The stored file of that id, all of which is there. Raises `NoFileError`."""
    row = StoredFile.objects.filter(id=key, size__isnull=False).first()
    if row is None:
        raise NoFileError(f"There is no file {key}: it was removed, or is not whole yet. Upload or make it again.")
    return row


def link(row: StoredFile) -> str:
    """An address under which anybody may fetch the file for `LINK_DAYS`."""
    return settings.SITE_URL + reverse("download", args=[signing.dumps(str(row.id), salt=_SALT)])


def of_link(token: str) -> StoredFile:
    """The file that a link leads to. Raises `NoFileError` for a link that is too old, or not one of ours."""
    try:
        row = find(UUID(signing.loads(token, salt=_SALT, max_age=timedelta(days=LINK_DAYS))))
    except (signing.BadSignature, ValueError):
        row = None
    if row is None or row.kind == StoredFile.Kind.BACKUP:
        raise NoFileError(f"This link is wrong, or older than {LINK_DAYS} days: ask for a new one.")
    return row


def remove(row: StoredFile) -> None:
    """Delete the file, then its row."""
    default_storage.delete(str(row.file.name))
    row.delete()


def delete_older_than(before: datetime, kinds: Collection[StoredFile.Kind]) -> Iterator[int]:
    """Remove files of these kinds that were made before a moment; yields 1 for each that is gone."""
    old = StoredFile.objects.filter(kind__in=kinds, created_at__lt=before).order_by("created_at")
    for key in list(old.values_list("id", flat=True)):
        for row in StoredFile.objects.filter(id=key):
            try:
                remove(row)
            except OSError as error:  # the others can be removed all the same
                log.warning("%s stays: its file cannot be removed: %s", key, error.strerror)
            else:
                yield 1


def _delete_previous(key: UUID) -> None:
    """Remove what an earlier attempt kept: the row first says that nothing whole is there."""
    former = StoredFile.objects.filter(id=key)
    if former.update(size=None):
        for row in former:
            default_storage.delete(str(row.file.name))


def _printable(name: str) -> str:
    """As a database stores it, and a header of HTTP carries it."""
    return "".join(filter(str.isprintable, name))[:200] or "file"
