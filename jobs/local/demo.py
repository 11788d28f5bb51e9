"""What does a new installation show? Three schedules that do real work from the first minute.

They are ordinary schedules. Edit, pause or delete them in the admin. `install` keeps your edits but creates deleted or
renamed schedules again. To stop one for good, pause it.
"""

import functools
import json
from typing import Any

from django.db import transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask

SCHEDULES: dict[str, tuple[int, str, dict[str, Any]]] = {  # name: interval in seconds, job, arguments
    "Heartbeat": (5, "jobs.heartbeat", {}),
    "Check this site": (10, "jobs.http_call", {"url": "/livez"}),
    "Import the sample feed": (30, "jobs.import_feed", {"url": "/static/jobs/sample-feed.xml"}),
}


def install() -> None:
    """Create the missing demonstration schedules. Of two concurrent calls, one may raise an error."""
    for name, (seconds, job, arguments) in SCHEDULES.items():
        made = {"task": job, "interval": functools.partial(_every, seconds), "kwargs": json.dumps(arguments)}
        with transaction.atomic():  # a failure must leave no unused interval behind
            PeriodicTask.objects.get_or_create(name=name, defaults=made)


def _every(seconds: int) -> IntervalSchedule:
    # Intervals are not unique: of several equal ones, take the first.
    same = {"every": seconds, "period": IntervalSchedule.SECONDS}
    return IntervalSchedule.objects.filter(**same).first() or IntervalSchedule.objects.create(**same)
