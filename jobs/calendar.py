"""When is a schedule due next? Joins django-celery-beat's rows to `occurrences`, and notices every change of them.

Its one rule: `Policy.next_due_at` is computed when the timing changes, from that moment on, so nothing ever fires
because it was edited, enabled or resumed. A moment that was already due then stays due.

A saved row is noticed in its own transaction. `QuerySet.update()`, `bulk_create`, fixtures and plain SQL send no
signal: the fingerprint of each timing, compared inside the database, shows them to the next `sweep`.
"""

from datetime import datetime, timedelta
from typing import Any

from django.db.models import F, Func, Model, Q, QuerySet, TextField, Value
from django.db.models.functions import Cast, Coalesce
from django.db.models.signals import post_save
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from jobs.models import Policy, database_now
from jobs.occurrences import Clocked, Crontab, Interval, Invalid, Spec, Timing, next_occurrence

KINDS = {"interval": IntervalSchedule, "crontab": CrontabSchedule, "solar": SolarSchedule, "clocked": ClockedSchedule}
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
# Changed schedules that are taken at a time, so that memory stays bounded after a bulk load.
BATCH = 2000

# Every column that has a say in when a schedule is due.
TIMING_COLUMNS = (
    *("enabled", "start_time", "expires", "one_off", "interval__every", "interval__period", "clocked__clocked_time"),
    *(f"crontab__{field}" for field in (*CRONTAB_FIELDS, "timezone")),
    *(f"solar__{field}" for field in ("event", "latitude", "longitude")),
)


def _fingerprint() -> Func:
    """All timing columns as one text, made by the database; flat, as SQLite cannot parse a nested Concat of so many."""
    columns = (Coalesce(Cast(F(column), TextField()), Value("")) for column in TIMING_COLUMNS)
    return Func(*columns, template="(%(expressions)s)", arg_joiner=" || '|' || ", output_field=TextField())


def changed(schedules: QuerySet[PeriodicTask]) -> QuerySet[PeriodicTask]:
    """Those whose timing is not the one their `next_due_at` was computed from."""
    annotated: QuerySet[PeriodicTask] = (
        schedules.annotate(fingerprint=_fingerprint())
        .exclude(policy__fingerprint=F("fingerprint"))
        .select_related("policy", *KINDS)
    )
    return annotated


def refresh(schedules: QuerySet[PeriodicTask]) -> int:
    """Compute `next_due_at` of the changed ones among `schedules`; returns how many there were.

    Two processes may do this at once: both write what they read, and a row that changed in between shows up again.
    """
    total = 0
    while stale := list(changed(schedules)[:BATCH]):
        now = database_now()
        Policy.objects.bulk_create(
            [_renewed(schedule, now) for schedule in stale],
            update_conflicts=True,
            unique_fields=["schedule"],
            update_fields=["next_due_at", "timing_since", "fingerprint", "invalid_reason"],
        )
        total += len(stale)
        if len(stale) < BATCH:
            break
    return total


def sweep() -> int:
    """Find changes that no signal told of; returns how many schedules had one."""
    return refresh(PeriodicTask.objects.all())


def _renewed(schedule: PeriodicTask, now: datetime) -> Policy:
    before: Policy | None = getattr(schedule, "policy", None)
    policy = Policy(schedule=schedule, timing_since=now, fingerprint=schedule.fingerprint)
    try:
        upcoming = next_occurrence(spec_of(schedule, now), after=now) if schedule.enabled else None
    except Invalid as error:
        policy.invalid_reason, upcoming = str(error), None
    is_owed = before is not None and before.next_due_at is not None and before.next_due_at <= now
    policy.next_due_at = before.next_due_at if before and is_owed else upcoming
    return policy


def spec_of(schedule: PeriodicTask, since: datetime) -> Spec:
    """The calendar's view of a schedule whose timing took effect at `since`. Raises `Invalid` with the reason."""
    kinds = [kind for kind in KINDS if getattr(schedule, f"{kind}_id") is not None]
    if len(kinds) != 1:
        raise Invalid("Choose exactly one of interval, crontab, solar or clocked.")
    timing = timing_of(getattr(schedule, kinds[0]), schedule.start_time or since)
    return Spec(timing, start=schedule.start_time, end=schedule.expires)


def timing_of(row: Any, grid_from: datetime) -> Timing:
    """The calendar's view of a row of one of `KINDS`. Raises `Invalid` with the reason."""
    kind = next(kind for kind, model in KINDS.items() if isinstance(row, model))
    if kind == "interval":
        return Interval(_length(row), grid_from)
    if kind == "crontab":
        return Crontab(**{field: getattr(row, field) for field in CRONTAB_FIELDS}, zone=str(row.timezone))
    if kind == "clocked":
        return Clocked(row.clocked_time)
    raise Invalid("Solar schedules cannot be run yet: use a crontab.")


def _length(interval: IntervalSchedule) -> timedelta:
    try:
        return timedelta(**{interval.period: interval.every})
    except (TypeError, OverflowError) as error:
        raise Invalid(
            f"An interval of {interval.every} {interval.period} is no length of time that can pass."
        ) from error


def _on_save(sender: type[Model], instance: Any, raw: bool = False, **_: Any) -> None:
    if raw:  # a fixture: what it refers to may not be loaded yet, the sweep finds it
        return
    if sender is PeriodicTask or isinstance(instance, PeriodicTask):
        of_this = Q(pk=instance.pk)
    else:
        of_this = Q(**{next(kind for kind, model in KINDS.items() if isinstance(instance, model)): instance})
    refresh(PeriodicTask.objects.filter(of_this))


def connect() -> None:
    for model in (PeriodicTask, *KINDS.values()):
        post_save.connect(_on_save, sender=model, dispatch_uid=f"jobs.calendar.{model.__name__}")
