"""What do jobs keep as files, and who may fetch them? Each is a `StoredFile` row and a file in Django's storage.

Its one rule: the row is written first, deleted last, and names the path. So whenever a process dies, the storage holds
no file without a row. A run that is tried again replaces the file that it kept under the same name. No path contains a
name that a user chose. A link is signed, expires after LINK_DAYS, and opens that one file for anyone who has it.
Backups have no link, because they contain everybody's secrets.

Limits: if the caller's transaction rolls back, the row is gone and the file stays.
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
from django.db import transaction
from django.db.models import QuerySet
from django.urls import reverse

from jobs.models import LONGEST_NAME, Act, Actor, Kind, Run, StoredFile
from jobs.models.audit import Changed, note
from jobs.rules.errors import Forbidden
from jobs.secrets import head
from jobs.worker import context

log = logging.getLogger(__name__)

LINK_DAYS = 7
TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}(; ?charset=[\w-]{1,15})?")
LARGEST_UPLOAD = 100_000_000  # bytes
BACKING_UP = "jobs.backup_database"  # the job whose right it takes to delete a backup
_SALT = "jobs.files"


class NoFileError(LookupError):
    """The file does not exist, or no longer exists. The message says what to do."""


def keep(name: str, content: IO[Any], kind: StoredFile.Kind, content_type: str = "") -> StoredFile:
    """Store `content`, from its current position on, under a name for people. Raises OSError of the storage."""
    execution = context.of_caller()
    run_id = execution.run_id if execution else None
    key = uuid5(run_id, f"{kind} {name}") if run_id else uuid4()
    made: dict[str, Any] = {"kind": kind, "name": _printable(name), "run_id": run_id, "size": None}
    made["content_type"] = content_type if TYPE.fullmatch(content_type) else "application/octet-stream"
    made["file"] = f"{kind}/{key}-{uuid4().hex}"  # two processes never write into one file
    _delete_previous(key)
    row, _ = StoredFile.objects.update_or_create(id=key, defaults=made)
    size = default_storage.size(default_storage.save(made["file"], File(content)))
    if StoredFile.objects.filter(id=key, file=made["file"]).update(size=size):
        row.size = size
    else:  # another process has kept the same name meanwhile
        default_storage.delete(made["file"])
    return row


def too_large() -> str:
    """The sentence about an upload that is larger than `LARGEST_UPLOAD`."""
    return f"The file is larger than {LARGEST_UPLOAD:,} bytes: upload a smaller one."


def find(key: UUID) -> StoredFile:
    """The stored file with that id, if it is complete. Raises `NoFileError`."""
    row = StoredFile.objects.filter(id=key, size__isnull=False).first()
    if row is None:
        raise NoFileError(f"There is no file {key}: it was deleted, or is incomplete. Upload or create it again.")
    return row


def link(row: StoredFile) -> str:
    """A URL from which anyone may fetch the file for `LINK_DAYS`."""
    return settings.SITE_URL + reverse("download", args=[signing.dumps(str(row.id), salt=_SALT)])


def of_link(token: str) -> StoredFile:
    """The file of a link's token. Raises `NoFileError` for a link that is expired, forged, or to a backup."""
    try:
        row = find(UUID(signing.loads(token, salt=_SALT, max_age=timedelta(days=LINK_DAYS))))
    except (signing.BadSignature, ValueError):
        row = None
    if row is None or row.kind == StoredFile.Kind.BACKUP:
        raise NoFileError(f"This link is invalid, or older than {LINK_DAYS} days: ask for a new one.")
    return row


def seen(rows: QuerySet[StoredFile], actor: Actor) -> QuerySet[StoredFile]:
    """The files among these that the actor's token may see: a limited one sees those that its runs have made."""
    runs = Run.objects.all()
    limited = actor.limit(runs)
    return rows if limited is runs else rows.filter(run_id__in=limited.values("id"))


def remove(row: StoredFile) -> None:
    """Delete the file, then its row."""
    default_storage.delete(str(row.file.name))
    row.delete()


def delete(rows: QuerySet[StoredFile], actor: Actor | str) -> int:
    """Delete these files; returns how many. Raises `Forbidden`, also for a backup without the right for its job."""
    actor = Actor.of(actor)
    actor.check_act(Kind.FILE, Act.DELETE)
    chosen = list(rows)
    if rows.exclude(pk__in=seen(rows, actor).values("pk")).exists():
        raise Forbidden("This token is limited to the files that its runs have made: use one that is not.")
    if any(row.kind == StoredFile.Kind.BACKUP for row in chosen):
        actor.check_may(BACKING_UP)
    for row in chosen:
        with transaction.atomic():
            note(actor, Kind.FILE, Act.DELETE, [Changed(row.pk, row.name, {"kind": row.kind, "size": row.size})])
            remove(row)
    return len(chosen)


def delete_older_than(before: datetime, kinds: Collection[StoredFile.Kind]) -> Iterator[int]:
    """Delete files of these kinds that were created before a moment. Yields 1 for each deleted file."""
    old = StoredFile.objects.filter(kind__in=kinds, created_at__lt=before).order_by("created_at")
    for key in list(old.values_list("id", flat=True)):
        for row in StoredFile.objects.filter(id=key):
            try:
                remove(row)
            except OSError as error:  # the next ones can still be deleted
                log.warning("%s was not deleted: its file cannot be removed: %s", key, error.strerror)
            else:
                yield 1


def _delete_previous(key: UUID) -> None:
    """Delete the file of an earlier attempt, once its row says that it is incomplete."""
    former = StoredFile.objects.filter(id=key)
    if former.update(size=None):
        for row in former:
            default_storage.delete(str(row.file.name))


def _printable(name: str) -> str:
    """The name without secrets, and in characters that every database and HTTP header can hold."""
    return head("".join(filter(str.isprintable, name)), LONGEST_NAME) or "file"
