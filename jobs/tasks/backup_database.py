"""Could we get our data back? Backs the database up, restores the copy beside it, and only then calls it a backup.

A run that fails leaves the older backups alone; one that succeeds keeps the newest few. It teaches the pattern of every
job that makes something precious: make it aside, prove it, put it in its place, and only then let go of the old.

Limits: the copy is written to the folder for temporary files first (TMPDIR says which). It lies among the other files
of this installation: take it to another place, too.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from celery import shared_task
from django.db import connection
from django.utils import timezone
from pydantic import Field, validate_call

from jobs import backup, files
from jobs.current import progress
from jobs.models import StoredFile

KIND = StoredFile.Kind.BACKUP

logger = logging.getLogger(__name__)


@shared_task(name="jobs.backup_database")
@validate_call
def backup_database(
    keep: Annotated[int, Field(ge=1, le=1000, description="How many of the newest backups stay.")] = 7,
) -> dict[str, int]:
    """Back the default database up; returns the size in bytes and how many older ones were removed.

    Raises `jobs.backup.BackupError` when there is no copy, or it cannot be restored.
    """
    with TemporaryDirectory(prefix="backup-") as folder:
        path = Path(folder, f"{timezone.now():%Y-%m-%d-%H%M%S}.{connection.vendor}")
        progress(0, 3, "copying")
        backup.copy_to(path)
        progress(1, 3, "restoring the copy")
        backup.verify(path)
        progress(2, 3, "storing")
        with path.open("rb") as content:
            row = files.keep(path.name, content, KIND)
    older = list(StoredFile.objects.filter(kind=KIND).exclude(id=row.id).order_by("-created_at")[keep - 1 :])
    for each in older:
        files.remove(each)
    logger.info("%s holds %d bytes, and was restored once. %d older ones were removed.", row, row.size, len(older))
    return {"bytes": row.size or 0, "removed": len(older)}
