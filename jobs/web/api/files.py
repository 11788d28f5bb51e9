"""Which files are stored, and how does a program send one? An upload is kept, and a run of a job for it begins.

Its one rule: the site checks right and size before it writes a byte (project/uploads.py). The same Idempotency-Key
makes one run, and leaves one file.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import Field, File, Form, Query, Router, Schema, Status
from ninja.files import UploadedFile

from jobs.models import LONGEST_NAME, StoredFile
from jobs.rules.errors import Forbidden
from jobs.toolkit import files
from jobs.toolkit.uploads import take_upload
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import MissingError, actor_of, needs
from jobs.web.api.runs import KeyHeader, address_of, scoped
from jobs.web.api.shapes import RunOut, whole

UPLOADERS = ("jobs.add_storedfile", "jobs.add_run")

router = Router(tags=["files"])
uploading = Router(tags=["files"])


class FileOut(Schema):
    id: UUID
    name: str
    kind: StoredFile.Kind
    content_type: str
    size: int | None = Field(description="In bytes; null until the file is complete.")
    run: UUID | None = Field(description="The run that made it.")
    created_at: datetime


class LinkOut(Schema):
    link: str = Field(description="An address from which anyone may fetch the file.")
    days: int = Field(description="How long it is valid.")


class UploadOut(Schema):
    run: RunOut
    status: str = Field(description="The address of the run: GET it, with ?wait= until it has ended.")


class FileFilters(Schema):
    kind: list[StoredFile.Kind] = []
    run: UUID | None = Field(None, description="The run that made it.")


@router.get("", response=Page[FileOut])
@needs("jobs.view_storedfile")
def list_files(request: HttpRequest, filters: Query[FileFilters], paging: Query[Paging]) -> Any:
    """Stored files, newest first. A limited token sees those that its runs have made."""
    rows = files.seen(StoredFile.objects.all(), actor_of(request))
    if filters.kind:
        rows = rows.filter(kind__in=filters.kind)
    if filters.run:
        rows = rows.filter(run_id=filters.run)
    return page(request, rows, paging, ["-created_at", "-id"], shown)


@router.get("/{file}", response=FileOut)
@needs("jobs.view_storedfile")
def get_file(request: HttpRequest, file: UUID) -> Any:
    """One stored file, without its content."""
    return shown(_file_of(request, file))


@router.post("/{file}/link", response=LinkOut)
@needs("jobs.view_storedfile")
def make_link(request: HttpRequest, file: UUID) -> Any:
    """A download link, which needs no login and expires. Backups have none, because they contain all secrets."""
    row = _file_of(request, file)
    if row.size is None and row.kind != StoredFile.Kind.BACKUP:
        raise MissingError("This file is not complete yet: ask again in a moment.")
    return linked(row)


@router.delete("/{file}", response={204: None})
def delete_file(request: HttpRequest, file: UUID) -> Any:
    """Delete a stored file. A backup needs the right for the backup job, too."""
    actor = actor_of(request)
    if not files.delete(files.seen(StoredFile.objects.filter(id=file), actor), actor):
        raise _missing(file)
    return Status(204, None)


@uploading.post("", response={202: UploadOut, 200: UploadOut})
def upload(
    request: HttpRequest,
    response: HttpResponse,
    file: File[UploadedFile],
    job: Annotated[str, Form(max_length=LONGEST_NAME)] = "jobs.process_upload",
    idempotency_key: KeyHeader = None,
) -> Any:
    """Keep a file and start a run of the job, whose argument `file` is the id of the file."""
    actor = actor_of(request)
    for permission in UPLOADERS:
        actor.check(permission)
    run, is_new = take_upload(file, actor, scoped(idempotency_key, actor), job)
    response["Location"] = address_of(run)
    return Status(202 if is_new else 200, {"run": whole(run), "status": address_of(run)})


def _file_of(request: HttpRequest, key: UUID) -> StoredFile:
    row = files.seen(StoredFile.objects.filter(id=key), actor_of(request)).first()
    if row is None:
        raise _missing(key)
    return row


def linked(row: StoredFile) -> dict[str, Any]:
    """A download link in JSON. Raises `Forbidden` for a backup."""
    if row.kind == StoredFile.Kind.BACKUP:
        raise Forbidden("A backup has no link, because it contains secrets. Copy it from FILES_DIR.")
    return {"link": files.link(row), "days": files.LINK_DAYS}


def _missing(key: UUID) -> MissingError:
    return MissingError(f"There is no file {key}: it was deleted, never existed, or is hidden from this token.")


def shown(row: StoredFile) -> dict[str, Any]:
    """A stored file in JSON, without its content."""
    same = ("id", "name", "kind", "content_type", "size", "created_at")
    return {**{name: getattr(row, name) for name in same}, "run": row.run_id}
