"""How long should Punctual remember? A job that deletes what is older, on a schedule like any other.

What went well is seldom asked for after a month; what did not, and why, sometimes after half a year. A run that is not
over, and the latest of each schedule, always stay; so the ledger's answers do not change. Runs and files go in small
transactions, so it may run beside everything else, be killed at any line, and go on the next day. Backups are not its
business: `jobs.backup_database` counts its own.
"""

import logging
from datetime import timedelta
from importlib import import_module
from typing import Annotated, Any

from celery import shared_task
from django.conf import settings
from django_celery_results.models import GroupResult, TaskResult
from pydantic import Field, validate_call

from jobs.ledger.retention import delete_ended
from jobs.models import TERMINAL, State, StoredFile, database_now
from jobs.toolkit import files
from jobs.toolkit.current import progress

Days = Annotated[int, Field(ge=1, le=36_500, strict=True)]
RESULTS: tuple[Any, ...] = (TaskResult.objects, GroupResult.objects)
FILES = set(StoredFile.Kind) - {StoredFile.Kind.BACKUP}

logger = logging.getLogger(__name__)


@shared_task(name="jobs.cleanup")
@validate_call
def cleanup(
    succeeded_days: Annotated[Days, Field(description="For runs that succeeded.")] = 30,
    other_days: Annotated[Days, Field(description="For runs that failed, were skipped, cancelled or lost.")] = 180,
    file_days: Annotated[Days, Field(description="For uploads, and for files that jobs made.")] = 30,
) -> dict[str, int]:
    """Delete what is older, and sessions and results that have expired; returns how many runs and files went."""
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
    if settings.CELERY_RESULT_EXPIRES:
        for results in RESULTS:
            results.delete_expired(timedelta(seconds=settings.CELERY_RESULT_EXPIRES))
    now = database_now()
    batches_of = {
        "succeeded": delete_ended(now - timedelta(days=succeeded_days), {State.SUCCEEDED}),
        "others": delete_ended(now - timedelta(days=other_days), TERMINAL - {State.SUCCEEDED}),
        "files": files.delete_older_than(now - timedelta(days=file_days), FILES),
    }
    deleted = dict.fromkeys(batches_of, 0)
    for kind, batches in batches_of.items():
        for number in batches:
            deleted[kind] += number
            progress(sum(deleted.values()), message=kind)
    logger.info("%(succeeded)d succeeded runs, %(others)d others and %(files)d files were deleted.", deleted)
    return deleted
