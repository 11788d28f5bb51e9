"""Do the settings suit Punctual? Django's system checks (`manage.py check`), one function for each.

Its one rule: a check refuses what would make the ledger wrong, and warns of what jobs or operators lack.
"""

from collections.abc import Collection
from typing import Any

from celery import current_app
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, DatabaseError, transaction
from django.utils import timezone

from jobs import deployment, zones
from jobs.beat import rivals
from jobs.messages import discovery, queues
from jobs.models import Node
from jobs.worker import guard


def application(**_: Any) -> list[checks.CheckMessage]:
    """The application with which this process sends runs starts each attempt only once."""
    found = guard.fault(current_app)
    return [checks.Error(found, id="jobs.E001")] if found else []


def protocol(**_: Any) -> list[checks.CheckMessage]:
    """Messages of Celery's protocol 1 have no headers, and so do not say which attempt of a run they start."""
    if current_app.conf.task_protocol != 1:
        return []
    error = "CELERY_TASK_PROTOCOL is 1: its messages have no headers, so no worker knows which run it should start."
    return [
        checks.Error(error, hint="Remove the setting: every Celery since 4.0 understands protocol 2.", id="jobs.E002")
    ]


def scheduler(**_: Any) -> list[checks.CheckMessage]:
    """A beat with another scheduler runs every job beside the ledger."""
    found = rivals.fault(current_app.conf.beat_scheduler)
    return [checks.Error(found, id="jobs.E003")] if found else []


def queue_names(**_: Any) -> list[checks.CheckMessage]:
    """No worker starts with such a queue, and no process sends runs to it."""
    return [checks.Error(sentence, id="jobs.E004") for sentence in queues.faults(current_app)]


def modules(**_: Any) -> list[checks.CheckMessage]:
    """A warning, because an error would also stop `migrate`, which a job may need before it can be imported."""
    hint = (
        "Mend the module, or install what it imports. Until then its jobs are unknown, and their due moments skipped."
    )
    return [checks.Warning(f"{sentence}.", hint, id="jobs.W001") for sentence in discovery.load()]


def zone_rules(**_: Any) -> list[checks.CheckMessage]:
    """With old rules, schedules are an hour early or late where a government has changed its clocks since."""
    version = zones.version()
    if not zones.is_old(version, timezone.now()):
        return []
    warning = f"The rules of time zones on this machine are of version {version}, more than a year old."
    return [checks.Warning(warning, "Upgrade the package tzdata with pip, or the machine's.", id="jobs.W002")]


def live_nodes(databases: Collection[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """What the live nodes report. Django calls it only with `check --database default`, and in `migrate`."""
    if DEFAULT_DB_ALIAS not in (databases or ()):
        return []
    try:
        with transaction.atomic():
            nodes = list(Node.objects.live().order_by("name"))
    except DatabaseError:  # before the first `migrate`, and before one that adds a column
        return []
    found: list[checks.CheckMessage] = [checks.Warning(node.problem, id="jobs.W003") for node in nodes if node.problem]
    if len(versions := sorted({node.tzdata for node in nodes if node.tzdata})) > 1:
        warning = f"Live beats and workers use different rules of time zones: {', '.join(versions)}."
        hint = "Upgrade tzdata on all machines, then restart them. The page of nodes shows which has which."
        found.append(checks.Warning(warning, hint, id="jobs.W004"))
    return found


def connect() -> None:
    for check in (application, protocol, scheduler, queue_names, modules, zone_rules):
        checks.register(check)
    checks.register(live_nodes, checks.Tags.database)
    deployment.connect()
