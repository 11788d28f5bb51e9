"""What does a new installation show? Three schedules that do real work from the first minute.

They are ordinary schedules, made as anybody makes them in the admin: edit, pause or delete them. What you edit stays;
one that was deleted or renamed comes back with the next `install`, so pause what you do not want to see.
"""

import functools
import json
from typing import Any

from django.db import transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask

SCHEDULES: dict[str, tuple[int, str, dict[str, Any]]] = {  # name: every so many seconds, job, arguments
    "Heartbeat": (5, "jobs.heartbeat", {}),
    "Check this site": (10, "jobs.http_call", {"url": "/healthz"}),
    "Import the sample feed": (30, "jobs.import_feed", {"url": "/static/jobs/sample-feed.xml"}),
}


def install() -> None:
    """Make those of the demonstration schedules that do not exist. Of two calls at once, one may raise an error."""
    for name, (seconds, job, arguments) in SCHEDULES.items():
        made = {"task": job, "interval": functools.partial(_every, seconds), "kwargs": json.dumps(arguments)}
        with transaction.atomic():  # an interval without its schedule would be litter
            PeriodicTask.objects.get_or_create(name=name, defaults=made)


def _every(seconds: int) -> IntervalSchedule:
    # Intervals are not unique: where there are several alike, any will do.
    same = {"every": seconds, "period": IntervalSchedule.SECONDS}
    return IntervalSchedule.objects.filter(**same).first() or IntervalSchedule.objects.create(**same)
