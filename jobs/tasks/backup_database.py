"""Could we get our data back? Backs the database up, restores the copy beside it, and only then calls it a backup.

A run that fails leaves the older backups alone; one that succeeds keeps the newest few. It teaches the pattern of every
job that makes something precious: make it aside, prove it, put it in its place, and only then let go of the old.

Limits: the copy is written to the folder for temporary files first (TMPDIR says which). It lies among the other files
of this installation: take it to another place, too.
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
FOLDER = "punctual-backup-"  # how the names of temporary folders begin

logger = logging.getLogger(__name__)


@shared_task(name="jobs.backup_database")
@validate_call
def backup_database(
    keep: Annotated[int, Field(ge=1, le=1000, description="How many of the newest backups stay.")] = 7,
) -> dict[str, int]:
    """Back the default database up; returns the size in bytes and how many older ones were removed.

    Raises `jobs.toolkit.backup.BackupError` when there is no copy, or it cannot be restored.
    """
    _remove_leftovers()
    with TemporaryDirectory(prefix=FOLDER) as folder:
        path = Path(folder, f"{_moment():%Y-%m-%d-%H%M%S}.{connection.vendor}")
        progress(0, 2, "copying, and restoring the copy")
        backup.make(path)
        progress(1, 2, "storing")
        with path.open("rb") as content:
            row = files.keep(path.name, content, KIND)
    whole = StoredFile.objects.filter(kind=KIND, size__isnull=False).exclude(id=row.id)
    older = list(whole.order_by("-created_at")[keep - 1 :])
    for each in older:
        files.remove(each)
    logger.info("%s holds %d bytes, and was restored once. %d older ones were removed.", row, row.size, len(older))
    return {"bytes": row.size or 0, "removed": len(older)}


def _moment() -> datetime:
    """What the backup is named after: of a run its due moment, so that another attempt replaces what one has begun."""
    run = current_run()
    return run.due_at if run else timezone.now()


def _remove_leftovers() -> None:
    """Of processes that were killed: copies in the folder for temporary files, and rows whose file is not whole."""
    day_ago = timezone.now() - timedelta(days=1)
    for folder in Path(gettempdir()).glob(f"{FOLDER}*"):
        if folder.stat().st_mtime < day_ago.timestamp():
            shutil.rmtree(folder, ignore_errors=True)
    for row in StoredFile.objects.filter(kind=KIND, size=None, created_at__lt=day_ago):
        files.remove(row)
