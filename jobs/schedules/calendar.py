"""When is a schedule due next? Turns django-celery-beat's rows into timings, and detects every change of them.

Its one rule: `Policy.next_due_at` is computed when the timing changes, from that moment on. So nothing fires because
a schedule was edited, enabled or resumed, except for a one-off that is set to a moment of the last minute. A moment
that was already due stays due, under its former timing.

A saved row is detected in its own transaction. `QuerySet.update()`, `bulk_create`, fixtures and plain SQL send no
signal: the next `find_changes` compares the fingerprints of the timings that were written, inside the database.
Where a row changes many schedules, they are only marked (`Policy.stale_since`), and beat computes them in slices.
"""

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import reduce
from itertools import islice
from operator import or_
from typing import Any

from django.core.exceptions import ValidationError
from django.db import DataError, connection, transaction
from django.db.models import F, Func, OuterRef, Q, QuerySet, Subquery, TextField, Value
from django.db.models.functions import Cast, Coalesce, Now
from django.db.models.signals import post_delete, post_save, pre_delete
from django_celery_beat.models import (
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
)

from jobs.models import KINDS, ChangedTiming, PastTiming, Policy, bulk, database_now
from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid
from jobs.rules.moments import DAY, FOREVER, INSTANT
from jobs.rules.occurrences import Clocked, Interval, Spec, Timing, as_text, from_text, next_occurrence, occurrences
from jobs.rules.policies import MISSED_AFTER
from jobs.rules.solar import Solar

SCHEDULES = (PeriodicTask, *KINDS.values())
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
# The errors of reading a row that bypassed every check: an impossible date, an unknown time zone.
UNREADABLE = (DataError, ValidationError, ArithmeticError, LookupError, TypeError, ValueError)
# Changed schedules per transaction, so that memory stays bounded after a bulk load, and beat claims in between.
SLICE = 500
# Changed schedules that a save computes itself; where there are more, beat computes them.
AT_ONCE = 100
# Changed schedules that beat marks at a time.
MARKED = 2000
COMPUTED = (
    *("next_due_at", "timing", "timing_since", "known_since", "stale_since", "fingerprint", "former"),
    *("decided_until", "invalid_reason"),
)

_migrated = threading.Event()  # set once this process has seen our table complete

# All columns that decide when a schedule is due.
TIMING_COLUMNS = (
    *("enabled", "start_time", "expires", "one_off", "interval__every", "interval__period", "clocked__clocked_time"),
    *(f"crontab__{field}" for field in (*CRONTAB_FIELDS, "timezone")),
    *(f"solar__{field}" for field in ("event", "latitude", "longitude")),
)


def _fingerprint() -> Func:
    """All timing columns as one text, built by the database; flat, as SQLite cannot parse so many nested Concats."""
    columns = (Coalesce(Cast(F(column), TextField()), Value("")) for column in TIMING_COLUMNS)
    own = Func(*columns, template="(%(expressions)s)", arg_joiner=" || '|' || ", output_field=TextField())
    zone = Coalesce(F("policy__wall_zone"), Value(""))  # without a separator: most schedules have none
    return Func(own, zone, template="(%(expressions)s)", arg_joiner=" || ", output_field=TextField())


def changed(schedules: QuerySet[PeriodicTask]) -> QuerySet[PeriodicTask]:
    """Schedules whose timing differs from the one behind their `next_due_at`, by primary key."""
    annotated: QuerySet[PeriodicTask] = schedules.annotate(fingerprint=_fingerprint())
    return annotated.exclude(policy__fingerprint=F("fingerprint")).select_related(*KINDS).order_by("pk")


def refresh(schedules: QuerySet[PeriodicTask], *, wait: bool = True) -> int:
    """Compute `next_due_at` of the changed ones among `schedules`; returns how many had changed, even if skipped.

    It waits for policies that another transaction has locked or, with `wait` off, skips them until another time.
    """
    total, last = 0, 0
    while stale := list(changed(schedules).filter(pk__gt=last).values_list("pk", flat=True)[:SLICE]):
        _renew_or_flag(stale, wait=wait)
        total, last = total + len(stale), stale[-1]
    return total


def sweep() -> int:
    """Compare all schedules and refresh the changed ones; returns how many had changed."""
    return refresh(PeriodicTask.objects.all(), wait=False)


def find_changes(since: Any = None) -> Any:
    """Find the schedules that were written, in any way, since the call that returned the mark `since` (None: all).

    Computes a slice of them; `compute_marked` computes the rest. Returns the mark for the next call: `since` itself
    after a change, because its policy may have been locked.
    """
    for timing in ChangedTiming.objects.all():
        if mark(timing.schedules, timing.changed_at) < MARKED:
            timing.delete()
    now, written = _written(since)
    if since is not None and not written:
        return now
    if not mark(PeriodicTask.objects.filter(written) if since is not None else PeriodicTask.objects.all()):
        return now
    compute_marked()
    return since


def mark(schedules: QuerySet[PeriodicTask], since: datetime | None = None) -> int:
    """Note that beat must compute the changed ones among `schedules`, and since when (None: now).

    Returns how many it found, at most `MARKED`. It skips policies that another transaction has locked.
    """
    unmarked = changed(schedules).filter(policy__stale_since=None)
    stale = list(unmarked.values_list("pk", "policy")[:MARKED])
    if stale:
        since = since or database_now()
        bulk.insert(Policy, [Policy(schedule_id=pk, stale_since=since) for pk, policy in stale if policy is None])
        known = Policy.objects.filter(pk__in=[policy for _, policy in stale if policy is not None])
        with transaction.atomic():
            free = list(known.select_for_update(skip_locked=True).values_list("pk", flat=True))
            Policy.objects.filter(pk__in=free).update(stale_since=since)
    return len(stale)


def compute_marked() -> bool:
    """Compute a slice of the marked schedules, those that are due first; returns whether there were any."""
    stale = list(Policy.objects.stale().values_list("pk", flat=True)[:SLICE])
    _renew_or_flag(stale, wait=False)
    return bool(stale)


def _renew_or_flag(schedules: Sequence[int], *, wait: bool) -> None:
    """Renew these schedules, and flag those whose rows cannot be read, so that they block no others."""
    try:
        _renew(schedules, wait=wait)
    except UNREADABLE as error:
        if len(schedules) > 1:
            for pk in schedules:
                _renew_or_flag([pk], wait=wait)
            return
        known = PeriodicTask.objects.filter(pk=OuterRef("pk")).annotate(known=_fingerprint()).values("known")
        _flag(schedules[0], f"It cannot be read from the database: {error}", Subquery(known))


@transaction.atomic
def _flag(schedule: int, reason: str, fingerprint: Subquery) -> None:
    bulk.insert(Policy, [Policy(schedule_id=schedule)])  # unless it has one
    locked, now = list(Policy.objects.select_for_update().filter(pk=schedule)), database_now()
    with PastTiming.settling(locked, now):
        for policy in locked:
            since = policy.stale_since or now
            if not _keep_owed(policy, since, until=since):
                policy.next_due_at = None
            policy.timing, policy.timing_since, policy.stale_since, policy.invalid_reason = "", since, None, reason
    bulk.update(Policy, locked, COMPUTED)
    Policy.objects.filter(pk=schedule).update(fingerprint=fingerprint)


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


def _renew(schedules: Sequence[int], *, wait: bool) -> None:
    """Compute these schedules, changed or not."""
    if not schedules:
        return
    with transaction.atomic():
        known = Policy.objects.filter(pk__in=schedules)
        new = set(schedules) - set(known.values_list("pk", flat=True))
        bulk.insert(Policy, [Policy(schedule_id=pk) for pk in sorted(new)])
        locked = list(known.select_for_update(skip_locked=not wait).order_by("pk"))
        rows = PeriodicTask.objects.annotate(fingerprint=_fingerprint()).select_related(*KINDS).in_bulk(schedules)
        saved: dict[Any, datetime] = {(each.kind, each.row): each.changed_at for each in ChangedTiming.objects.all()}
        now = database_now()
        for policy in locked:
            changes = [saved.get((kind, getattr(rows.get(policy.pk), f"{kind}_id", None))) for kind in KINDS]
            policy.stale_since = policy.stale_since or min(filter(None, changes), default=now)
        with PastTiming.settling(locked, now):
            for policy in locked:
                if schedule := rows.get(policy.pk):
                    _compute(policy, schedule, policy.stale_since or now, now)
        bulk.update(Policy, locked, COMPUTED)


def _compute(policy: Policy, schedule: Any, changed_at: datetime, now: datetime) -> None:
    """Set the columns that follow from the timing since its change.

    A moment that was already due stays due, with its former timing.
    """
    after, since = _in_force(policy, schedule, changed_at) if schedule.enabled else (changed_at, changed_at)
    is_owed = _keep_owed(policy, changed_at, until=since)
    former, policy.timing, policy.invalid_reason, upcoming = policy.timing, "", "", None
    try:
        spec = spec_of(schedule, grid_from(former, schedule.interval) or changed_at, policy.wall_zone)
        if schedule.enabled:
            policy.timing, upcoming = as_text(_possible(spec)), next_occurrence(spec, after)
    except Invalid as error:
        policy.invalid_reason = str(error)
    policy.timing_since, policy.fingerprint, policy.stale_since = since, schedule.fingerprint, None
    if upcoming and upcoming <= now:  # claims may have decided about it between the change and its commit
        policy.decided_until = now
    if not is_owed:
        policy.next_due_at = upcoming


def _possible(spec: Spec) -> Spec:
    """The same timing. Raises `Invalid` for a one-off whose only moment is out of its bounds."""
    if isinstance(spec.timing, Clocked) and next_occurrence(spec, spec.timing.at - INSTANT) is None:
        raise Invalid("It would never run: its moment lies before its start time, or at its expiry or later.")
    return spec


def _keep_owed(policy: Policy, changed_at: datetime, until: datetime) -> bool:
    """Remember the timing, up to `until`, of moments that were due and not claimed; returns whether there are any."""
    owed_from = policy.owed_from or policy.next_due_at
    is_owed = owed_from is not None and owed_from <= changed_at
    if is_owed:
        policy.former = [*(policy.former or ()), (policy.timing, until.isoformat())]
    return is_owed


def _in_force(policy: Policy, schedule: Any, since: datetime) -> tuple[datetime, datetime]:
    """After which moment the timing is due, and since when it is in force: usually since the change.

    A new schedule may name its first moment itself, by its start time or as a one-off, and be saved a little later. A
    one-off that is late, and an edited one, is due even if its moment is over: the claim says what became of it.
    """
    named = schedule.clocked.clocked_time if schedule.clocked else schedule.start_time
    if named is None or named > since:
        return since, since
    is_new, is_on_time = policy.timing_since is None, since - named <= MISSED_AFTER
    if schedule.clocked is None:
        return (named - INSTANT, named) if is_new and is_on_time else (since, since)
    column = TIMING_COLUMNS.index("clocked__clocked_time")
    is_changed = policy.fingerprint.split("|")[column:][:1] != schedule.fingerprint.split("|")[column:][:1]
    return named - INSTANT, named - INSTANT if is_new or (is_on_time and is_changed) else since


def grid_from(before: str, row: Any) -> datetime | None:
    """The start of the grid before if `row` is an interval of the same length: other edits do not shift it."""
    former = from_text(before).timing if before else None
    if not isinstance(former, Interval) or not isinstance(row, IntervalSchedule):
        return None
    return former.grid_from if former.every == _length(row) else None


def upcoming(policy: Policy, count: int) -> list[datetime]:
    """The next due moments of a schedule, paused or not; none if it is disabled or cannot be computed."""
    if not policy.timing:
        return []
    return list(islice(occurrences(from_text(policy.timing), database_now(), FOREVER), count))


def spec_of(schedule: PeriodicTask, since: datetime, wall_zone: str = "") -> Spec:
    """The timing of a schedule that took effect at `since`, with start and end. Raises `Invalid` with the reason.

    `wall_zone` is that of its policy.
    """
    kinds = [kind for kind in KINDS if getattr(schedule, f"{kind}_id") is not None]
    if len(kinds) != 1:
        raise Invalid("Choose exactly one of interval, crontab, solar or clocked.")
    timing = timing_of(getattr(schedule, kinds[0]), schedule.start_time or since, wall_zone)
    return Spec(timing, start=schedule.start_time, end=schedule.expires)


def timing_of(row: Any, grid_from: datetime, wall_zone: str = "") -> Timing:
    """The timing in a row of one of `KINDS`. Raises `Invalid` with the reason."""
    kind = next(kind for kind, model in KINDS.items() if isinstance(row, model))
    if kind == "interval":
        length = _length(row)
        return Interval(length, grid_from, "" if length % DAY else wall_zone)
    if kind == "crontab":
        return Crontab(**{field: getattr(row, field) for field in CRONTAB_FIELDS}, zone=str(row.timezone or ""))
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
    if not _is_migrated():  # the first look of beat finds it
        return
    if isinstance(instance, PeriodicTask):
        refresh(PeriodicTask.objects.filter(pk=instance.pk))
        return
    timing = ChangedTiming(
        kind=next(kind for kind, model in KINDS.items() if isinstance(instance, model)), row=instance.pk
    )
    if timing.schedules[AT_ONCE : AT_ONCE + 1].exists():
        key = ["kind", "row"]
        timing.changed_at = Now()  # of the last save: it decides from when the timing counts
        ChangedTiming.objects.bulk_create(
            [timing], update_conflicts=True, unique_fields=key, update_fields=["changed_at"]
        )
    else:
        refresh(timing.schedules)


def _is_migrated() -> bool:
    """Whether our table is complete: a migration of another app may save schedules before ours are applied."""
    if not _migrated.is_set():
        table, needed = Policy._meta.db_table, {field.column for field in Policy._meta.concrete_fields}
        with connection.cursor() as cursor:
            look = connection.introspection
            exists = table in look.table_names(cursor)
            columns = {column.name for column in look.get_table_description(cursor, table)} if exists else set()
        if needed <= columns:
            _migrated.set()
    return _migrated.is_set()


def connect() -> None:
    """Listen to saves, and turn off django-celery-beat's change notice: each save would lock one row for all."""
    PeriodicTask.no_changes = True
    for model in KINDS.values():
        for signal in (post_save, pre_delete, post_delete):
            signal.disconnect(PeriodicTasks.update_changed, sender=model)
    post_save.connect(_on_save, dispatch_uid="jobs.schedules.calendar")
