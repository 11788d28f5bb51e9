"""Do the settings suit Punctual? Django's system checks (`manage.py check`), one function for each.

Its one rule: a check refuses what would make the ledger wrong, and warns of jobs that are missing.
"""

from typing import Any

from celery import current_app
from django.core import checks

from jobs.messages import discovery
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


def modules(**_: Any) -> list[checks.CheckMessage]:
    """A warning, because an error would also stop `migrate`, which a job may need before it can be imported."""
    hint = (
        "Mend the module, or install what it imports. Until then its jobs are unknown, and their due moments skipped."
    )
    return [checks.Warning(f"{sentence}.", hint, id="jobs.W001") for sentence in discovery.load()]


def connect() -> None:
    for check in (application, protocol, modules):
        checks.register(check)
