"""When was a schedule due in the past?

Its one rule: the timing in force at a moment decides about it. While a schedule was disabled, nothing was due. Before
its timings are known (it was created later, or the clean-up has deleted them), the first known one counts. So users can
backfill times before a schedule existed.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from jobs.models import PastTiming, Policy
from jobs.rules.moments import FIRST, INSTANT
from jobs.rules.occurrences import Spec, from_text, occurrences
from jobs.schedules.calendar import spec_of

LOOKS_BACK = [timedelta(hours=hours) for hours in (1, 24, 24 * 32, 24 * 366 * 8)]
# Former timings that `previous` reads. A moment was due in each; a clock that was set back may have left others.
MOST_READ = 10


class InForce(NamedTuple):
    """Due were the moments of `spec` after `since`, up to `until`."""

    spec: Spec
    since: datetime
    until: datetime


def due(policy: Policy, start: datetime, end: datetime) -> Iterator[datetime]:
    """Every moment that was due from `start` to before `end`, oldest first. Raises `Invalid`."""
    for spec, since, until in reversed(list(_in_force(policy, start, end))):
        yield from occurrences(spec, max(since, start - INSTANT), until)


def previous(policy: Policy, moment: datetime) -> datetime | None:
    """The last moment before `moment` that was due; None if there is none within eight years. Raises `Invalid`."""
    return next(filter(None, (last(*each) for each in _in_force(policy, FIRST, moment, MOST_READ))), None)


def known_since(policy: Policy) -> datetime | None:
    """Since when the timings of a schedule are known; None if it was never computed."""
    return policy.known_since or policy.timing_since


def _in_force(policy: Policy, start: datetime, end: datetime, most: int | None = None) -> Iterator[InForce]:
    """The timings in force from `start` to before `end`, the latest first, and at most so many former ones.

    Where two overlap, because a clock was set back, the later one counts.
    """
    known = known_since(policy) or end
    kept = PastTiming.objects.filter(schedule=policy.pk)
    rows = (
        kept.filter(since__lt=end, until__gte=start).order_by("-since").values_list("timing", "since", "until")[:most]
    )
    present = [(policy.timing, policy.timing_since or known, end)] if policy.timing else []
    limit = end - INSTANT
    for text, since, until in [*present, *rows]:
        if since < min(until, limit):
            yield InForce(from_text(text), since, min(until, limit))
        limit = min(limit, since)
    if start <= known:
        yield InForce(_first(policy, known), FIRST, min(known, limit))


def _first(policy: Policy, known: datetime) -> Spec:
    """The first known timing; that of its columns if it was never in force."""
    first = PastTiming.objects.filter(schedule=policy.pk).order_by("since").first()
    text = first.timing if first else policy.timing
    return from_text(text) if text else spec_of(policy.schedule, known, policy.wall_zone)


def last(spec: Spec, since: datetime, until: datetime) -> datetime | None:
    """The last moment of a timing after `since`, up to `until`; None if there is none within eight years before."""
    until = min(until, spec.end - INSTANT) if spec.end else until
    for back in LOOKS_BACK:
        start = until - min(back, max(until - since, INSTANT))
        if moments := list(occurrences(spec, start, until)):
            return moments[-1]
    return None
