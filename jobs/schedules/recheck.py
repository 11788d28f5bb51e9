"""Does each stored due moment still follow from its timing? Not if the database's clock or the rules of a zone changed.

Its one rule: it moves `Policy.next_due_at` and decides nothing. Moments from the last one with an outcome on are due
again, and the claim leaves those alone that have one (`Policy.decided_until`). A clock that was ahead made outcomes of
moments that have not come: those that skipped a moment are withdrawn, runs stay.

Limit: what a wrong clock told a job to do later, such as a retry in 30 seconds, waits for that time.
"""

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from jobs.models import PastTiming, Policy, PolicyQuerySet, Run, RunQuerySet, State, Trigger, bulk, database_now
from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid
from jobs.rules.moments import INSTANT
from jobs.rules.occurrences import Interval, Spec, as_text, from_text, next_occurrence, occurrences
from jobs.rules.policies import SKIPPED_BY_HAND
from jobs.schedules import calendar, past

log = logging.getLogger(__name__)

SLICE = 1000  # schedules per call
TOLERANCE = timedelta(seconds=1)  # clocks of several connections to one server may differ a little


def recheck(after: int) -> int | None:
    """Check a slice of the schedules, by key after `after`; returns the last key, or None after the last schedule."""
    now = database_now()
    if after == 0:
        _revive_one_offs(now)
    rows = list(_checkable().filter(pk__gt=after).order_by("pk").values_list("pk", *_READ)[:SLICE])
    if wrong := [key for key, *stored in rows if not _follows(now, *stored)]:
        _correct(wrong)
    return rows[-1][0] if len(rows) == SLICE else None


def _revive_one_offs(now: datetime) -> None:
    """Withdraw the outcomes of one-offs that a clock ahead skipped, and enable them again."""
    skipped = Run.objects.filter(state=State.SKIPPED, trigger=Trigger.SCHEDULE, schedule__clocked__isnull=False)
    ahead = skipped.filter(finished_at__gt=now + TOLERANCE)
    if schedules := list(ahead.values_list("schedule", flat=True)):
        with transaction.atomic():
            Run.objects.filter(pk__in=list(ahead.values_list("pk", flat=True))).delete()
            PeriodicTask.objects.filter(pk__in=schedules).update(enabled=True)
        calendar.refresh(PeriodicTask.objects.filter(pk__in=schedules), wait=False)


_READ = ("timing", "timing_since", "next_due_at", "owed_from", "former")


def _checkable() -> PolicyQuerySet:
    """Policies whose next due moment follows from their timing: not those that a claim has stopped."""
    known = Policy.objects.filter(stale_since=None).exclude(timing="").exclude(fingerprint="")
    return known.exclude(~Q(invalid_reason=""), next_due_at=None)


def _follows(
    now: datetime, timing: str, since: datetime | None, stored: datetime | None, owed: datetime | None, former: object
) -> bool:
    if any(moment and moment > now + TOLERANCE for moment in (since, owed)):
        return False
    if owed:
        return True  # the claim looks at it again
    try:
        spec = from_text(timing)
    except Invalid:  # a zone that this machine does not have: the claim says so
        return True
    if stored is None or stored > now:
        return stored == next_occurrence(spec, now)
    # The rules of a zone may have changed after an owed moment was computed; those of other kinds depend on no rules.
    by_rules = isinstance(spec.timing, Crontab) and not former
    return not by_rules or stored == next_occurrence(spec, stored - INSTANT)


def _correct(schedules: list[int]) -> None:
    with transaction.atomic():
        locked = list(_checkable().filter(pk__in=schedules).select_for_update(skip_locked=True))
        now = database_now()
        wrong = [each for each in locked if not _follows(now, *(getattr(each, name) for name in _READ))]
        for policy in wrong:
            _move(policy, now)
        moved = ("next_due_at", "owed_from", "former", "timing", "timing_since", "decided_until", "skip_next")
        bulk.update(Policy, wrong, moved)
    if wrong:
        log.warning(
            "The next due moments of %d schedules did not follow from their timings and were computed again: the "
            "clock of the database was wrong, or the rules of a time zone have changed.",
            len(wrong),
        )


def _move(policy: Policy, now: datetime) -> None:
    spec, before = _begun(from_text(policy.timing), now), _before_edit(policy, now)
    since = min(policy.timing_since or now, now)
    policy.timing, policy.timing_since = as_text(spec), since
    decided = Run.objects.filter(schedule=policy.pk, trigger=Trigger.SCHEDULE).order_by("-due_at")
    policy.skip_next += _withdraw(decided.filter(state=State.SKIPPED, last_due_at__gt=now), spec, now)
    ends = decided.values_list("last_due_at", flat=True)
    latest, before_now = ends.first(), ends.filter(last_due_at__lte=now).first()
    policy.next_due_at, policy.owed_from = next_occurrence(spec, after=max(before_now or since, since)), None
    policy.decided_until = latest + INSTANT if latest and latest > now else None
    if before:
        owed = next_occurrence(from_text(before.timing), after=max(before_now or before.since, before.since))
        if owed and owed <= now:
            policy.next_due_at, policy.former = owed, [(before.timing, now.isoformat())]


def _before_edit(policy: Policy, now: datetime) -> PastTiming | None:
    """The timing in force before an edit that was made while the clock was ahead; it counts until now."""
    if policy.timing_since is None or policy.timing_since <= now + TOLERANCE:
        return None
    former = PastTiming.objects.filter(schedule=policy.pk, since__lt=now, until__gt=now).order_by("-since").first()
    if former:
        former.until = now
        former.save(update_fields=["until"])
    return former


def _begun(spec: Spec, now: datetime) -> Spec:
    """The same timing; an interval whose grid begins in the future, without a start time, gets earlier moments."""
    timing = spec.timing
    if not isinstance(timing, Interval) or spec.start is not None or timing.grid_from <= now:
        return spec
    earlier = -((now - timing.grid_from) // timing.every)
    return replace(spec, timing=replace(timing, grid_from=timing.grid_from - earlier * timing.every))


def _withdraw(skipped: RunQuerySet, spec: Spec, now: datetime) -> int:
    """Withdraw outcomes of moments that have not come; returns how many of them an operator had chosen to skip.

    A row that was written while the clock was ahead goes whole: its earlier moments are decided again.
    """
    ahead = skipped.filter(finished_at__gt=now)
    by_hand = sum(ahead.filter(reason=SKIPPED_BY_HAND).values_list("count", flat=True))
    ahead.delete()
    for row in skipped:
        beyond = sum(1 for _ in occurrences(spec, now, row.last_due_at))
        row.count, row.last_due_at = (
            max(1, row.count - beyond),
            past.last(spec, row.due_at - INSTANT, now) or row.due_at,
        )
        row.save(update_fields=["count", "last_due_at"])
        by_hand += beyond if row.reason == SKIPPED_BY_HAND else 0
    return by_hand
