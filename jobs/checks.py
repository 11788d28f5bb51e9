"""Do the settings suit Punctual? Django's system checks (`manage.py check`), one function for each.

Its one rule: a check refuses what would make the ledger wrong. `apps` registers them all.
"""

from typing import Any

from celery import current_app
from django.core.checks import Error


def protocol(**_: Any) -> list[Error]:
    """Messages of Celery's protocol 1 have no headers, and so do not say which attempt of a run they start."""
    if current_app.conf.task_protocol != 1:
        return []
    error = "CELERY_TASK_PROTOCOL is 1: its messages have no headers, so no worker knows which run it should start."
    return [Error(error, hint="Remove the setting: every Celery since 4.0 understands protocol 2.", id="jobs.E002")]


CHECKS = (protocol,)
