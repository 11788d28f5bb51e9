"""How does an upload become a run? The file is kept first, then a run of a job for it is requested.

A view that takes files names the permission that its users need (`accepts_uploads`). The site then refuses all other
files before it reads them (project/uploads.py). A view that takes larger bodies without a file
says so (`accepts_body`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import DatabaseError, transaction

from jobs.ledger.requests import RunOptions, start
from jobs.models import Run, StoredFile
from jobs.models.audit import Act, Actor, Changed, Kind, note
from jobs.rules.errors import Invalid
from jobs.toolkit import files

View = TypeVar("View", bound=Callable[..., Any])


def accepts_uploads(*permissions: str) -> Callable[[View], View]:
    """Mark a view to which users with all of these permissions may send files."""

    def mark(view: View) -> View:
        view.upload_permissions = permissions  # type: ignore[attr-defined]
        return view

    return mark


def accepts_body(size: int) -> Callable[[View], View]:
    """Mark a view that takes bodies of so many bytes also from clients without a session, such as a webhook.

    Other requests of such clients may have 64,000 bytes. Raises ValueError for more than Django reads into memory.
    """
    if size > (most := settings.DATA_UPLOAD_MAX_MEMORY_SIZE or size):  # None: Django reads any
        raise ValueError(f"accepts_body allows at most {most:,} bytes: take more as a file (accepts_uploads).")

    def mark(view: View) -> View:
        view.largest_body = size  # type: ignore[attr-defined]
        return view

    return mark


def largest_body(view: Callable[..., Any] | None) -> int:
    """The bytes that the view takes from every client; 0 if it says nothing."""
    return int(getattr(view, "largest_body", 0))


def takes_files(view: Callable[..., Any] | None) -> bool:
    """Whether the view takes files at all."""
    return bool(getattr(view, "upload_permissions", ()))


def may_upload(actor: Actor, view: Callable[..., Any] | None) -> bool:
    """Whether the actor may send files to the view."""
    return takes_files(view) and all(map(actor.may, view.upload_permissions))  # type: ignore[union-attr]


def keep_upload(upload: UploadedFile[bytes], actor: Actor | str) -> StoredFile:
    """Keep an upload for later, without a run. Raises `Invalid` for a file that is too large, or `Forbidden`."""
    actor = Actor.of(actor)
    row = _kept(upload, actor)
    try:
        with transaction.atomic():
            note(actor, Kind.FILE, Act.UPLOAD, [Changed(row.pk, row.name, None, {"size": row.size})])
    except DatabaseError:
        files.remove(row)
        raise
    return row


def take_upload(
    upload: UploadedFile[bytes], actor: Actor | str, key: str | None = None, job: str = "jobs.process_upload"
) -> tuple[Run, bool]:
    """Keep an upload and run a job for the file. Returns the run, and whether it is new, as `start` does.

    A process that dies between the two leaves a file without a run, which `jobs.cleanup` removes. Raises `Invalid` for
    a file that is too large, and as `start` does.
    """
    actor = Actor.of(actor)
    row = _kept(upload, actor)
    try:
        run, is_new = start(job, {"file": str(row.id)}, actor, RunOptions(key=key))
    except Invalid:
        files.remove(row)
        raise
    if not is_new:
        files.remove(row)
    return run, is_new


def _kept(upload: UploadedFile[bytes], actor: Actor) -> StoredFile:
    actor.check_act(Kind.FILE, Act.UPLOAD)
    if upload.size is None or upload.size > files.LARGEST_UPLOAD:
        raise Invalid(files.too_large())
    return files.keep(str(upload.name), upload, StoredFile.Kind.UPLOAD, str(upload.content_type or ""))
