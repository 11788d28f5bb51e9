"""Could we get our data back? Copies the database, restores the copy beside it, and only then calls it a backup.

A failed run leaves the older backups alone. A successful run keeps the newest few. It shows the pattern for every job
that makes something precious: make it aside, verify it, put it in its place, and only then delete the old one.

Limits: the copy is first written to the temporary folder (TMPDIR sets it). Backups lie among the other files of this
installation. Copy them to another place, too.
"""

import logging
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Annotated

from celery import shared_task
from django.db import connection
from django.utils import timezone
from pydantic import Field, validate_call

from jobs.models import StoredFile
from jobs.toolkit import backup, files
from jobs.toolkit.current import current_run, progress

KIND = StoredFile.Kind.BACKUP
FOLDER = "punctual-backup-"  # the prefix of temporary folders

logger = logging.getLogger(__name__)


@shared_task(name="jobs.backup_database")
@validate_call
def backup_database(
    keep: Annotated[int, Field(ge=1, le=1000, description="How many backups to keep, the newest ones.")] = 7,
) -> dict[str, int]:
    """Back up the default database; returns the size in bytes and how many older backups were deleted.

    Raises `jobs.toolkit.backup.BackupError` if the copy cannot be made or restored, and
    `jobs.toolkit.direct.PoolerError` behind a pooler without DATABASE_DIRECT_URL.
    """
    _remove_leftovers()
    with TemporaryDirectory(prefix=FOLDER) as folder:
        path = Path(folder, f"{_moment():%Y-%m-%d-%H%M%S}.{connection.vendor}")
        progress(0, 2, "copying and restoring")
        backup.make(path)
        progress(1, 2, "storing")
        with path.open("rb") as content:
            row = files.keep(path.name, content, KIND)
    whole = StoredFile.objects.filter(kind=KIND, size__isnull=False).exclude(id=row.id)
    older = list(whole.order_by("-created_at")[keep - 1 :])
    for each in older:
        files.remove(each)
    logger.info("%s has %d bytes and was restored once. Deleted %d older backups.", row, row.size, len(older))
    return {"bytes": row.size or 0, "removed": len(older)}


def _moment() -> datetime:
    """The time in the backup's name: the run's due moment, so that its next attempt replaces an unfinished backup."""
    run = current_run()
    return run.due_at if run else timezone.now()


def _remove_leftovers() -> None:
    """Delete temporary copies and incomplete backups that killed processes left more than a day ago."""
    day_ago = timezone.now() - timedelta(days=1)
    for folder in Path(gettempdir()).glob(f"{FOLDER}*"):
        if folder.stat().st_mtime < day_ago.timestamp():
            shutil.rmtree(folder, ignore_errors=True)
    for row in StoredFile.objects.filter(kind=KIND, size=None, created_at__lt=day_ago):
        files.remove(row)
