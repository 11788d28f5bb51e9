"""When is a schedule due?

Its one rule: the answer depends on schedule and range only. Asking later or in several parts gives the same moments. No
database, no clock. Callers may give moments in any zone and get them in UTC.

`crontab` and `solar` compute the moments of their kinds, for the years 2 to 9998.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import dropwhile
from typing import Any

from jobs.rules.crontab import Crontab, calendar_of, first_moment, reading_of, zone_of
from jobs.rules.errors import Invalid
from jobs.rules.moments import DAY, FIRST, FOREVER, INSTANT, LAST, store_utc, utc
from jobs.rules.solar import Solar, solar_moments

SHORTEST = timedelta(seconds=1)
LONGEST = timedelta(days=date.max.toordinal() - 1)  # from the first day of the calendar to its last


@dataclass(frozen=True, slots=True)
class Interval:
    """A grid, exact to the microsecond: `grid_from`, then every whole multiple of `every` after it.

    With a `zone`, `every` is whole days, and the zone's clocks show the same time of day as at `grid_from`.
    """

    every: timedelta
    grid_from: datetime
    zone: str = ""

    def __post_init__(self) -> None:
        store_utc(self, "grid_from")
        if self.every < SHORTEST:
            raise Invalid(f"An interval of {self.every.total_seconds():g} s is too short; choose one second or more.")
        if self.every > LONGEST:
            raise Invalid(f"An interval of {self.every.days} days is too long; choose {LONGEST.days} days or fewer.")
        if self.zone and (self.every % DAY or not FIRST <= self.grid_from < LAST):
            raise Invalid(
                f"An interval that follows the clocks of {self.zone} has whole days, and starts in the years 2 to 9998."
            )
        if self.zone:
            zone_of(self.zone)


@dataclass(frozen=True, slots=True)
class Clocked:
    """A single moment."""

    at: datetime

    def __post_init__(self) -> None:
        store_utc(self, "at")


Timing = Interval | Crontab | Clocked | Solar


@dataclass(frozen=True, slots=True)
class Spec:
    """A timing within bounds. `start` is included, `end` is excluded, and neither causes an occurrence."""

    timing: Timing
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        store_utc(self, "start")
        store_utc(self, "end")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise Invalid("The schedule ends before it starts; choose an end after the start.")


def occurrences(spec: Spec, after: datetime, until: datetime) -> Iterator[datetime]:
    """Every due moment with `after < moment <= until`, in UTC, strictly increasing, computed lazily."""
    after, until = utc(after), utc(until)
    if spec.start is not None and spec.start > after:
        after = spec.start - INSTANT
    if spec.end is not None and spec.end <= until:
        if spec.end <= after:
            return
        until = spec.end - INSTANT
    latest = after
    for moment in _moments(spec.timing, after, until):
        if moment > until:
            return
        if moment > latest:
            yield moment
            latest = moment


def next_occurrence(spec: Spec, after: datetime) -> datetime | None:
    """The first due moment after `after`; None when there is none."""
    return next(occurrences(spec, after, FOREVER), None)


def walls(timing: Crontab | Interval, after: datetime) -> Iterator[datetime]:
    """What the clocks of the timing's zone show at its moments after `after`, also what a clock change skips."""
    reading = reading_of(zone_of(timing.zone), min(max(after, FIRST), LAST)) + INSTANT
    readings = calendar_of(timing).walls(reading) if isinstance(timing, Crontab) else _walls(timing, reading)
    return dropwhile(lambda wall: wall < reading, readings)


def as_text(spec: Spec) -> str:
    """The schedule as JSON, stored beside its next due moment. Equal schedules have equal texts. See `from_text`."""
    bounds = {name: at for name, at in (("start", spec.start), ("end", spec.end)) if at is not None}
    own = {field.name: value for field in fields(spec.timing) if (value := getattr(spec.timing, field.name)) != ""}
    values = {"kind": type(spec.timing).__name__.lower(), **own, **bounds}
    return json.dumps(values, default=_plain, separators=(",", ":"))


@lru_cache(maxsize=16384)
def from_text(text: str) -> Spec:
    """Exactly the schedule that `as_text` was given. Raises `Invalid` for any other text."""
    try:
        values = {name: _read(name, value) for name, value in json.loads(text).items()}
        start, end = values.pop("start", None), values.pop("end", None)
        return Spec(_KINDS[values.pop("kind")](**values), start, end)
    except Invalid:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Invalid(f"The text {text!r:.200} does not describe a schedule; save the schedule again.") from error


_KINDS: dict[str, type[Timing]] = {kind.__name__.lower(): kind for kind in (Interval, Crontab, Clocked, Solar)}
_MOMENTS = frozenset({"grid_from", "at", "start", "end"})


def _plain(value: datetime | timedelta) -> str | int:
    return value // INSTANT if isinstance(value, timedelta) else value.isoformat(timespec="microseconds")


def _read(name: str, value: Any) -> Any:
    if name == "every":
        return value * INSTANT
    return datetime.fromisoformat(value) if name in _MOMENTS else value


def _moments(timing: Timing, after: datetime, until: datetime) -> Iterator[datetime]:
    """All moments of the range in order; may start before it, continue after it, and contain a moment twice."""
    match timing:
        case Interval(zone=""):
            return _grid(timing, after, until)
        case Interval():
            return _days(timing, max(after, FIRST), min(until, LAST))
        case Crontab():
            return calendar_of(timing).moments(max(after, FIRST), min(until, LAST))
        case Clocked():
            return iter((timing.at,))
        case Solar():
            return solar_moments(timing, max(after, FIRST), min(until, LAST))


def _grid(interval: Interval, after: datetime, until: datetime) -> Iterator[datetime]:
    every, origin = interval.every, interval.grid_from
    step = max(0, (after - origin) // every + 1)
    while step * every <= until - origin:  # compares durations: the next moment may lie after the year 9999
        yield origin + step * every
        step += 1


def _days(interval: Interval, after: datetime, until: datetime) -> Iterator[datetime]:
    zone = zone_of(interval.zone)
    for wall in _walls(interval, reading_of(zone, after)):
        if wall - DAY > until:  # no zone is a whole day from UTC
            return
        yield first_moment(zone, wall)


def _walls(interval: Interval, start: datetime) -> Iterator[datetime]:
    """The readings of an interval that follows the clocks, from the last one before `start` on."""
    every, origin = interval.every, reading_of(zone_of(interval.zone), interval.grid_from)
    wall = origin + max(0, (start - origin) // every) * every
    while True:
        yield wall
        if every > FOREVER - wall:
            return
        wall += every
