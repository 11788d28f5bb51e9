"""When is a schedule due next? Turns django-celery-beat's rows into timings, and detects every change of them.

Its one rule: `Policy.next_due_at` is computed when the timing changes, from that moment on. So nothing fires because
a schedule was edited, enabled or resumed. A moment that was already due stays due, under its former timing.

A saved row is detected in its own transaction. `QuerySet.update()`, `bulk_create`, fixtures and plain SQL send no
signal: the next `find_changes` compares the fingerprints of the timings that were written, inside the database.
"""

from datetime import datetime, timedelta
from functools import reduce
from itertools import islice
from operator import or_
from typing import Any

from django.core.exceptions import ValidationError
from django.db import DataError, connection, transaction
from django.db.models import F, Func, OuterRef, Q, QuerySet, Subquery, TextField, Value
from django.db.models.functions import Cast, Coalesce
from django.db.models.signals import post_delete, post_save, pre_delete
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)

from jobs.models import Policy, bulk, database_now
from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid
from jobs.rules.moments import FOREVER
from jobs.rules.occurrences import Clocked, Interval, Spec, Timing, as_text, from_text, next_occurrence, occurrences
from jobs.rules.solar import Solar

KINDS = {"interval": IntervalSchedule, "crontab": CrontabSchedule, "solar": SolarSchedule, "clocked": ClockedSchedule}
SCHEDULES = (PeriodicTask, *KINDS.values())
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
# The errors of reading a row that bypassed every check: an impossible date, an unknown time zone.
UNREADABLE = (DataError, ValidationError, ArithmeticError, LookupError, ValueError)
# Changed schedules per pass, so that memory stays bounded after a bulk load.
BATCH = 2000
COMPUTED = ("next_due_at", "timing", "timing_since", "fingerprint", "former", "invalid_reason")

# All columns that decide when a schedule is due.
TIMING_COLUMNS = (
    *("enabled", "start_time", "expires", "one_off", "interval__every", "interval__period", "clocked__clocked_time"),
    *(f"crontab__{field}" for field in (*CRONTAB_FIELDS, "timezone")),
    *(f"solar__{field}" for field in ("event", "latitude", "longitude")),
)


def _fingerprint() -> Func:
    """All timing columns as one text, built by the database; flat, as SQLite cannot parse so many nested Concats."""
    columns = (Coalesce(Cast(F(column), TextField()), Value("")) for column in TIMING_COLUMNS)
    return Func(*columns, template="(%(expressions)s)", arg_joiner=" || '|' || ", output_field=TextField())


def changed(schedules: QuerySet[PeriodicTask]) -> QuerySet[PeriodicTask]:
    """Schedules whose timing differs from the one behind their `next_due_at`, by primary key."""
    annotated: QuerySet[PeriodicTask] = schedules.annotate(fingerprint=_fingerprint())
    return annotated.exclude(policy__fingerprint=F("fingerprint")).select_related(*KINDS).order_by("pk")


def refresh(schedules: QuerySet[PeriodicTask], *, wait: bool = True) -> int:
    """Compute `next_due_at` of the changed ones among `schedules`; returns how many had changed, even if skipped.

    It waits for policies that another transaction has locked or, with `wait` off, skips them until another time.
    """
    total, last = 0, 0
    while stale := list(changed(schedules).filter(pk__gt=last).values_list("pk", flat=True)[:BATCH]):
        try:
            _renew(changed(schedules).in_bulk(stale), wait=wait)
        except UNREADABLE:
            for pk in stale:
                _renew_or_flag(schedules, pk, wait=wait)
        total, last = total + len(stale), stale[-1]
    return total


def _renew_or_flag(schedules: QuerySet[PeriodicTask], pk: int, *, wait: bool) -> None:
    """Refresh one schedule, or flag it if its row cannot be read, so that it blocks no other schedule."""
    try:
        _renew(changed(schedules).in_bulk([pk]), wait=wait)
    except UNREADABLE as error:
        known = PeriodicTask.objects.filter(pk=OuterRef("pk")).annotate(known=_fingerprint()).values("known")
        reason = f"It cannot be read from the database: {error}"
        row = Policy.objects.filter(pk=pk)
        row.update(fingerprint=Subquery(known), timing="", next_due_at=None, invalid_reason=reason)


def sweep() -> int:
    """Compare all schedules and refresh the changed ones; returns how many had changed."""
    return refresh(PeriodicTask.objects.all(), wait=False)


def find_changes(since: Any = None) -> Any:
    """Refresh the schedules that were written, in any way, since the call that returned the mark `since` (None: all).

    Returns the mark for the next call: `since` itself after a change, because its policy may have been locked.
    """
    now, written = _written(since)
    found = sweep() if since is None else refresh(PeriodicTask.objects.filter(written), wait=False) if written else 0
    return since if found else now


def _written(since: Any) -> tuple[Any, Q]:
    """A mark of this moment, and a condition for the schedules written since an earlier one; empty if there are none.

    PostgreSQL stores in each row the number of the transaction that wrote it. A row is new if that transaction is
    younger than the mark, or may have been running at the mark. SQLite stores no such number: all rows are new.
    """
    if connection.vendor == "sqlite":
        return None, Q(pk__isnull=False)
    with connection.cursor() as cursor:
        tables = [connection.ops.quote_name(model._meta.db_table) for model in SCHEDULES]
        new = (f"ARRAY(SELECT id FROM {table} WHERE age(xmin) <= age(%(since)s::xid))" for table in tables)  # noqa: S608 - table names of models
        mark = "pg_snapshot_xmin(pg_current_snapshot())::xid::text"
        cursor.execute(f"SELECT {mark}, {', '.join(new)}", {"since": since or "0"})
        now, schedules, *timings = cursor.fetchone()
    written = {"pk": schedules} | dict(zip(KINDS, timings, strict=True))
    conditions = (Q(**{f"{column}__in": ids}) for column, ids in written.items() if ids)
    return now, reduce(or_, conditions, Q())


def _renew(schedules: dict[int, Any], *, wait: bool) -> None:
    with transaction.atomic():
        known = Policy.objects.filter(pk__in=schedules)
        new = schedules.keys() - set(known.values_list("pk", flat=True))
        bulk.insert(Policy, [Policy(schedule_id=pk) for pk in sorted(new)])
        locked = list(known.select_for_update(skip_locked=not wait).order_by("pk"))
        now = database_now()
        for policy in locked:
            _compute(policy, schedules[policy.pk], now)
        bulk.update(Policy, locked, COMPUTED)


def _compute(policy: Policy, schedule: Any, now: datetime) -> None:
    """Set the columns that follow from the timing. A moment that is already due stays due, with its former timing."""
    owed_from = policy.owed_from or policy.next_due_at
    is_owed = owed_from is not None and owed_from <= now
    if is_owed:
        policy.former = [*(policy.former or ()), (policy.timing, now.isoformat())]
    before = policy.timing
    policy.timing, policy.timing_since, policy.fingerprint = "", now, schedule.fingerprint
    policy.invalid_reason, upcoming = "", None
    try:
        spec = spec_of(schedule, _grid_from(before, schedule) or now)
        if schedule.enabled:
            policy.timing, upcoming = as_text(spec), next_occurrence(spec, after=now)
    except Invalid as error:
        policy.invalid_reason = str(error)
    if not is_owed:
        policy.next_due_at = upcoming


def _grid_from(before: str, schedule: Any) -> datetime | None:
    """The start of the interval's grid if its length is unchanged, so that other edits do not shift it; else None."""
    former = from_text(before).timing if before else None
    if not isinstance(former, Interval) or schedule.interval is None:
        return None
    return former.grid_from if former.every == _length(schedule.interval) else None


def upcoming(policy: Policy, count: int) -> list[datetime]:
    """The next due moments of a schedule, paused or not; none if it is disabled or cannot be computed."""
    if not policy.timing:
        return []
    return list(islice(occurrences(from_text(policy.timing), database_now(), FOREVER), count))


def previous(policy: Policy, moment: datetime) -> datetime | None:
    """The last due moment before `moment` under the current timing; None if there is none within eight years."""
    try:
        spec = from_text(policy.timing) if policy.timing else spec_of(policy.schedule, policy.timing_since or moment)
    except Invalid:
        return None
    for hours in (1, 24, 24 * 32, 24 * 366 * 8):
        if earlier := list(occurrences(spec, moment - timedelta(hours=hours), moment - timedelta.resolution)):
            return earlier[-1]
    return None


def spec_of(schedule: PeriodicTask, since: datetime) -> Spec:
    """The timing of a schedule that took effect at `since`, with start and end. Raises `Invalid` with the reason."""
    kinds = [kind for kind in KINDS if getattr(schedule, f"{kind}_id") is not None]
    if len(kinds) != 1:
        raise Invalid("Choose exactly one of interval, crontab, solar or clocked.")
    timing = timing_of(getattr(schedule, kinds[0]), schedule.start_time or since)
    return Spec(timing, start=schedule.start_time, end=schedule.expires)


def timing_of(row: Any, grid_from: datetime) -> Timing:
    """The timing in a row of one of `KINDS`. Raises `Invalid` with the reason."""
    kind = next(kind for kind, model in KINDS.items() if isinstance(row, model))
    if kind == "interval":
        return Interval(_length(row), grid_from)
    if kind == "crontab":
        return Crontab(**{field: getattr(row, field) for field in CRONTAB_FIELDS}, zone=str(row.timezone))
    if kind == "clocked":
        return Clocked(row.clocked_time)
    return Solar(row.event, float(row.latitude), float(row.longitude))


def _length(interval: IntervalSchedule) -> timedelta:
    try:
        return timedelta(**{interval.period: interval.every})
    except (TypeError, OverflowError) as error:
        raise Invalid(
            f"An interval of {interval.every} {interval.period} is too long or has an unknown unit: choose another."
        ) from error


def _on_save(instance: Any, raw: bool = False, **_: Any) -> None:
    """Receives the saves of every model, because a `sender` would miss proxies of these."""
    if raw or not isinstance(instance, SCHEDULES):  # raw: a fixture, whose references may not exist yet; see `sweep`
        return
    if isinstance(instance, PeriodicTask):
        of_this = Q(pk=instance.pk)
    else:
        of_this = Q(**{next(kind for kind, model in KINDS.items() if isinstance(instance, model)): instance.pk})
    refresh(PeriodicTask.objects.filter(of_this))


def connect() -> None:
    """Listen to saves, and turn off django-celery-beat's change notice: each save would lock one row for all."""
    PeriodicTask.no_changes = True
    for model in KINDS.values():
        for signal in (post_save, pre_delete, post_delete):
            signal.disconnect(PeriodicTasks.update_changed, sender=model)
    post_save.connect(_on_save, dispatch_uid="jobs.schedules.calendar")
