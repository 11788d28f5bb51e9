"""What would a timing do? Its words, its next due moments, and what its author may not expect of it.

    preview(timings.parse({"crontab": "30 2 * * *"}), PeriodicTask(task="billing.remind"), now=database_now())

Its one rule: it saves nothing, and tells what `calendar` and the claim would do if the schedule were saved now. Errors
of the timing are raised; all else is a warning, because the job or its worker may still come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs.messages import dispatch
from jobs.models import Node, Policy, Run
from jobs.rules import clock_changes, words
from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid
from jobs.rules.moments import FOREVER, INSTANT
from jobs.rules.occurrences import Clocked, Interval, Spec, occurrences
from jobs.rules.pasted import Fields, doubt
from jobs.rules.policies import MISSED_AFTER
from jobs.schedules import calendar
from jobs.schedules.check import check_job

MOST = 1000  # due moments
FREQUENT = timedelta(days=1) / 10_000  # a shorter interval fills the ledger


@dataclass(frozen=True, slots=True)
class Preview:
    """A timing in words, its next due moments in UTC, and a sentence for each surprise."""

    words: str
    due: list[datetime]
    warnings: list[str]


def preview(timing: Any, schedule: PeriodicTask | None = None, *, now: datetime, number: int = 5) -> Preview:
    """What a schedule with this row of `KINDS`, saved or not, would do from `now` on.

    `schedule`, saved or not, gives the job with its arguments and queue, the start and the end; without a job, only the
    timing is looked at. A saved one keeps the grid of an interval whose length stays. Raises `Invalid`.
    """
    if not 1 <= number <= MOST:
        raise Invalid(f"Choose from 1 to {MOST:,} due moments to show.")
    schedule = PeriodicTask() if schedule is None else schedule
    policy = getattr(schedule, "policy", None) or Policy()
    spec = _spec(timing, schedule, policy, now)
    due = list(islice(occurrences(spec, _after(schedule, now), FOREVER), 1 if schedule.one_off else number))
    warnings = [*_about(spec, due, now), *_about_job(schedule, policy)]
    return Preview(words.in_words(spec, timezone.get_default_timezone_name()), due, warnings)


def _spec(timing: Any, schedule: PeriodicTask, policy: Policy, now: datetime) -> Spec:
    since = schedule.start_time or calendar.grid_from(policy.timing, timing) or now
    return Spec(calendar.timing_of(timing, since, policy.wall_zone), schedule.start_time, schedule.expires)


def _after(schedule: PeriodicTask, now: datetime) -> datetime:
    """A new schedule may name its first moment by its start time, and be saved a little later."""
    start = schedule.start_time if schedule.pk is None else None
    return start - INSTANT if start and timedelta(0) <= now - start <= MISSED_AFTER else now


def _about(spec: Spec, due: list[datetime], now: datetime) -> Iterator[str]:
    if not due:
        yield _never(spec, now)
    timing = spec.timing
    if isinstance(timing, Crontab) and (sentence := doubt(Fields(*(getattr(timing, name) for name in Fields._fields)))):
        yield sentence
    if isinstance(timing, Interval) and timing.every < FREQUENT:
        times = timedelta(days=1) // timing.every
        yield f"It is due {times:,} times a day, and the ledger keeps a row for each: choose a longer interval."
    if due:
        yield from clock_changes.sentences(timing, now, due[-1])


def _never(spec: Spec, now: datetime) -> str:
    zone = timezone.get_default_timezone_name()
    if isinstance(spec.timing, Clocked):
        why = "is over" if spec.timing.at <= now else "lies before its start time, or at its expiry or later"
        return f"It would never run: its moment, {words.day_and_time(spec.timing.at, zone)} ({zone}), {why}."
    if spec.end and spec.end <= now:
        return f"It would never run: it expired on {words.day_and_time(spec.end, zone, ' at ')} ({zone})."
    if spec.end:
        return f"It would never run: no moment is due before it expires, {words.day_and_time(spec.end, zone)} ({zone})."
    return "It would never run: no moment is due before the year 9999."


def _about_job(schedule: PeriodicTask, policy: Policy) -> Iterator[str]:
    """Why its runs could not be sent, or would wait for a worker."""
    if not schedule.task:
        return
    try:
        message = check_job(schedule, policy)
    except Invalid as error:
        yield str(error)
        return
    own = {name: getattr(message, name) for name in ("task", "args", "kwargs", "queue", "priority", "options")}
    queue = dispatch.queue_of(Run(schedule_name=schedule.name, **own))
    if queue and not any(node.consumes(queue) for node in Node.objects.consumers()):
        yield f"No live worker consumes the queue {queue!r}: its runs would wait."
