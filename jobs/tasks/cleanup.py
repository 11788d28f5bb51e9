"""How long should Punctual remember? Deletes older runs, files, sessions and results, on a schedule like any other.

Users seldom ask about a success after a month, but about a failure sometimes after half a year. Unfinished runs and the
latest run of each schedule always stay, so the ledger's answers do not change. Runs and files are deleted in small
transactions. So this job may run beside everything else. Killed at any line, it goes on the next day. It deletes no
backups: `jobs.backup_database` does.

Limits: its arguments may shorten the history to one day. So RESTRICTED_JOBS lists it by default, and only users with
the right for it may change its schedules.
"""

import logging
from datetime import timedelta
from importlib import import_module
from typing import Annotated, Any

from celery import current_app, shared_task
from celery.utils.time import maybe_timedelta
from django.apps import apps
from django.conf import settings
from django_celery_results.models import GroupResult, TaskResult
from pydantic import Field, validate_call

from jobs.ledger.retention import delete_alerts, delete_audit, delete_ended, delete_set_aside, delete_timings
from jobs.models import TERMINAL, State, StoredFile, database_now
from jobs.toolkit import files
from jobs.toolkit.current import progress

Days = Annotated[int, Field(ge=1, le=36_500, strict=True)]
RESULTS: tuple[Any, ...] = (TaskResult.objects, GroupResult.objects)
PINGS = timedelta(days=7)  # for which it is known which runs a channel was pinged about
FILES = set(StoredFile.Kind) - {StoredFile.Kind.BACKUP}

logger = logging.getLogger(__name__)


@shared_task(name="jobs.cleanup")
@validate_call
def cleanup(
    succeeded_days: Annotated[Days, Field(description="Days to keep runs that succeeded.")] = 30,
    other_days: Annotated[
        Days,
        Field(description="Days to keep runs that failed, expired, or were skipped, cancelled or lost; and alerts."),
    ] = 180,
    file_days: Annotated[Days, Field(description="Days to keep files, except backups.")] = 30,
    audit_days: Annotated[Days, Field(description="Days to keep audit entries.")] = 730,
) -> dict[str, int]:
    """Delete old runs and files, and expired sessions and results. Returns how many runs and files it deleted."""
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
    if expires := maybe_timedelta(current_app.conf.result_expires):
        for results in RESULTS:
            results.delete_expired(expires)
    now = database_now()
    if apps.is_installed("axes"):  # it logs the user, time and address of each login
        apps.get_model("axes", "AccessLog").objects.filter(attempt_time__lt=now - timedelta(days=other_days)).delete()
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
    delete_timings(now - timedelta(days=max(succeeded_days, other_days)))
    delete_set_aside(now - timedelta(days=other_days))
    delete_audit(now - timedelta(days=audit_days))
    delete_alerts(now - timedelta(days=other_days), now - PINGS)
    logger.info("Deleted %(succeeded)d succeeded runs, %(others)d others and %(files)d files.", deleted)
    return deleted
