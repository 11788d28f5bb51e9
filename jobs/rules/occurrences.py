"""When is a schedule due?

The one rule: the answer follows from the schedule and the range alone, so it does not matter when it is asked or how
the range is cut. No database, no clock; aware UTC moments come out, whatever zone went in.

Crontabs keep Celery's syntax, its AND of the two day fields, and Debian's rule for clock changes (see `_Calendar`).
Solar events are Celery's, found by ephem to the second; polar day and night have none.
Limits: crontabs and solar events are computed for the years 2 to 9998; two clock changes of one zone must lie more
than a day apart (the closest pair in the time zone database: nearly four).
"""

import json
import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from math import radians
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from celery.schedules import crontab_parser

from jobs.rules.errors import Invalid

SHORTEST = timedelta(seconds=1)
LONGEST = timedelta(days=date.max.toordinal() - 1)  # from the first day of the calendar to its last
LONGEST_FIELD = 240  # characters; django-celery-beat's widest column
HIGHEST_LATITUDE = 89.5  # degrees; up to there each solar event comes in every year, nearer to a pole it may not

_FIRST, _LAST = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # a day's room for every zone
FOREVER = datetime.max.replace(tzinfo=UTC)
_ZERO, _DAY = timedelta(0), timedelta(days=1)
_INSTANT = timedelta.resolution
_MINUTES_OF_DAY = tuple(timedelta(minutes=n) for n in range(24 * 60))  # shared, so that a calendar holds pointers


@dataclass(frozen=True, slots=True)
class Interval:
    """A fixed grid: `grid_from` itself, then every whole multiple of `every` after it, to the microsecond."""

    every: timedelta
    grid_from: datetime

    def __post_init__(self) -> None:
        _store_utc(self, "grid_from")
        if self.every < SHORTEST:
            raise Invalid(f"An interval of {self.every.total_seconds():g} s is too short; choose one second or more.")
        if self.every > LONGEST:
            raise Invalid(f"An interval of {self.every.days} days is too long; choose {LONGEST.days} days or fewer.")


@dataclass(frozen=True, slots=True)
class Crontab:
    """Celery's five fields, read by the wall clocks of `zone` (an IANA name)."""

    minute: str
    hour: str
    day_of_month: str
    month_of_year: str
    day_of_week: str
    zone: str

    def __post_init__(self) -> None:
        _calendar(self)


@dataclass(frozen=True, slots=True)
class Clocked:
    """Once."""

    at: datetime

    def __post_init__(self) -> None:
        _store_utc(self, "at")


@dataclass(frozen=True, slots=True)
class Solar:
    """One of `SOLAR_EVENTS`, seen from a place in degrees north and degrees east."""

    event: str
    latitude: float
    longitude: float

    def __post_init__(self) -> None:
        _ephem()
        if self.event not in SOLAR_EVENTS:
            raise Invalid(f"There is no solar event {self.event!r}; choose one of {', '.join(SOLAR_EVENTS)}.")
        _store_degrees(self, "latitude", 90)
        _store_degrees(self, "longitude", 180)
        if abs(self.latitude) > HIGHEST_LATITUDE and self.event != "solar_noon":
            raise Invalid(
                f"At latitude {self.latitude:g} the sun does not rise and set by the day; "
                f"choose solar_noon or a latitude from -{HIGHEST_LATITUDE} to {HIGHEST_LATITUDE}."
            )


Timing = Interval | Crontab | Clocked | Solar


@dataclass(frozen=True, slots=True)
class Spec:
    """A timing between bounds, which never cause an occurrence: due at `start` it happens, due at `end` it does not."""

    timing: Timing
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        _store_utc(self, "start")
        _store_utc(self, "end")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise Invalid("The schedule ends before it starts; choose an end after the start.")


def occurrences(spec: Spec, after: datetime, until: datetime) -> Iterator[datetime]:
    """Every due moment with `after < moment <= until`, in UTC, strictly increasing, computed as it is asked for."""
    after, until = _utc(after), _utc(until)
    if spec.start is not None and spec.start > after:
        after = spec.start - _INSTANT
    if spec.end is not None and spec.end <= until:
        if spec.end <= after:
            return
        until = spec.end - _INSTANT
    latest = after
    for moment in _moments(spec.timing, after, until):
        if moment > until:
            return
        if moment > latest:
            yield moment
            latest = moment


def next_occurrence(spec: Spec, after: datetime) -> datetime | None:
    """The first due moment later than `after`; None when nothing is to come."""
    return next(occurrences(spec, after, FOREVER), None)


def as_text(spec: Spec) -> str:
    """The schedule as JSON, the same for equal schedules, to be kept beside its next due moment; see `from_text`."""
    bounds = {name: at for name, at in (("start", spec.start), ("end", spec.end)) if at is not None}
    own = {field.name: getattr(spec.timing, field.name) for field in fields(spec.timing)}
    values = {"kind": type(spec.timing).__name__.lower(), **own, **bounds}
    return json.dumps(values, default=_plain, separators=(",", ":"))


@lru_cache(maxsize=16384)
def from_text(text: str) -> Spec:
    """Exactly the schedule that `as_text` was given. Raises `Invalid` for what is no such text."""
    try:
        values = {name: _read(name, value) for name, value in json.loads(text).items()}
        start, end = values.pop("start", None), values.pop("end", None)
        return Spec(_KINDS[values.pop("kind")](**values), start, end)
    except Invalid:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Invalid(f"The text {text!r:.200} is no schedule; save the schedule again.") from error


_KINDS: dict[str, type[Timing]] = {kind.__name__.lower(): kind for kind in (Interval, Crontab, Clocked, Solar)}
_MOMENTS = frozenset({"grid_from", "at", "start", "end"})


def _plain(value: datetime | timedelta) -> str | int:
    return value // _INSTANT if isinstance(value, timedelta) else value.isoformat(timespec="microseconds")


def _read(name: str, value: Any) -> Any:
    if name == "every":
        return value * _INSTANT
    return datetime.fromisoformat(value) if name in _MOMENTS else value


def _moments(timing: Timing, after: datetime, until: datetime) -> Iterator[datetime]:
    """All moments of the range in order; may begin a little before it, go on behind it, and repeat itself."""
    match timing:
        case Interval():
            return _grid(timing, after, until)
        case Crontab():
            return _calendar(timing).moments(max(after, _FIRST), min(until, _LAST))
        case Clocked():
            return iter((timing.at,))
        case Solar():
            return _solar(timing, max(after, _FIRST), min(until, _LAST))


def _grid(interval: Interval, after: datetime, until: datetime) -> Iterator[datetime]:
    every, origin = interval.every, interval.grid_from
    step = max(0, (after - origin) // every + 1)
    while step * every <= until - origin:  # compared as durations: the next moment may lie beyond the calendar
        yield origin + step * every
        step += 1


# --- crontab: what the fields say -----------------------------------------------------------------------------------


class _Field(NamedTuple):
    label: str
    low: int
    size: int
    example: str
    names: str = ""


_MINUTE = _Field("Minute", 0, 60, "0, 10-20 or */15")
_HOUR = _Field("Hour", 0, 24, "9, 8-18 or */2")
_DAY_OF_MONTH = _Field("Day of month", 1, 31, "1, 1-7 or */2")
_MONTH = _Field(
    *("Month", 1, 12, "1, jan, 6-8 or */3"),
    names="january february march april may june july august september october november december",
)
_WEEKDAY = _Field(
    *("Day of week", 0, 7, "1, mon, mon-fri or */2"),
    names="sunday monday tuesday wednesday thursday friday saturday",
)

_VALUE = "([0-9a-zA-Z]+)"
_PART = re.compile(rf"{_VALUE}|(?:\*|{_VALUE}-{_VALUE})(?:/([0-9]+))?")


@lru_cache(maxsize=4096)
def _values(field: _Field, text: str) -> tuple[int, ...]:
    """What a field allows, in order. Celery's parser expands it but overlooks much, so the text is checked first."""
    if not text:
        raise Invalid(f"{field.label} is empty; write * for every one.")
    if len(text) > LONGEST_FIELD:
        raise Invalid(f"{field.label} is longer than {LONGEST_FIELD} characters; shorten it, for example with ranges.")
    for part in text.split(","):
        _check_part(field, part)
    return tuple(sorted(crontab_parser(field.size, field.low).parse(text)))


def _check_part(field: _Field, part: str) -> None:
    matched = _PART.fullmatch(part)
    if matched is None:
        raise _unreadable(field, part)
    *values, step = matched.groups()
    for value in filter(None, values):
        _check_value(field, value)
    if step is not None and not 1 <= int(step) <= field.size:
        raise Invalid(f"{field.label}: the step in {part!r} must be from 1 to {field.size}.")


def _check_value(field: _Field, value: str) -> None:
    if not value.isdigit():
        if len(value) < 3 or not any(name.startswith(value.lower()) for name in field.names.split()):
            raise _unreadable(field, value)
    elif not field.low <= int(value) < field.low + field.size:
        hint = " (Sunday is 0 or sun)" if field is _WEEKDAY else ""
        raise Invalid(f"{field.label}: choose from {field.low} to {field.low + field.size - 1}{hint}, not {value}.")


def _unreadable(field: _Field, text: str) -> Invalid:
    return Invalid(f"{field.label}: cannot read {text!r}; write * or, for example, {field.example}, joined by commas.")


# --- crontab: when that is ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Calendar:
    """A crontab, expanded. A wall clock reading ("wall") wears the label UTC, so that wall - offset is its moment.

    Debian's rule: where minute or hour begins with `*` the schedule follows elapsed time: every real minute whose
    reading matches. Any other names fixed times: one in a gap comes at the first moment after it, a repeated one once.
    """

    zone: ZoneInfo
    elapsed: bool
    months: tuple[int, ...]
    days: tuple[int, ...]
    weekdays: tuple[int, ...]
    times: tuple[timedelta, ...]

    def moments(self, after: datetime, until: datetime) -> Iterator[datetime]:
        if after >= until:
            return iter(())
        return self._elapsed(after, until) if self.elapsed else self._fixed(after)

    def _fixed(self, after: datetime) -> Iterator[datetime]:
        reading = after + _offset(self.zone, after)
        for wall in self._walls(reading + _INSTANT):  # what the clocks read at `after` has come, at the latest then
            yield _moment(self.zone, wall)

    def _elapsed(self, after: datetime, until: datetime) -> Iterator[datetime]:
        while after <= until:
            offset = _offset(self.zone, after)
            end = _steady_until(self.zone, after, offset)
            for wall in self._walls(after + offset):
                if wall - offset >= end:
                    break
                yield wall - offset
            following = next(self._walls(end - _DAY), _LAST)
            after = max(end, following - _DAY)  # no zone is a day from UTC: nothing can be due before

    def _walls(self, start: datetime) -> Iterator[datetime]:
        for midnight in self._midnights(start):
            for index in range(bisect_left(self.times, start - midnight), len(self.times)):
                yield midnight + self.times[index]

    def _midnights(self, start: datetime) -> Iterator[datetime]:
        month_of_start = (start.year, start.month)
        for year in range(start.year, _LAST.year):
            for month in self.months[bisect_left(self.months, start.month) if year == start.year else 0 :]:
                weekday, length = monthrange(year, month)  # of the first day, Monday = 0; Celery's Sunday = 0
                skipped = bisect_left(self.days, start.day) if (year, month) == month_of_start else 0
                for day in self.days[skipped:]:
                    if day <= length and (weekday + day) % 7 in self.weekdays:
                        yield datetime(year, month, day, tzinfo=UTC)


@lru_cache(maxsize=16384)
def _calendar(crontab: Crontab) -> _Calendar:
    minutes, hours = _values(_MINUTE, crontab.minute), _values(_HOUR, crontab.hour)
    days, months = _values(_DAY_OF_MONTH, crontab.day_of_month), _values(_MONTH, crontab.month_of_year)
    if days[0] > max(monthrange(2000, month)[1] for month in months):  # a leap year
        raise Invalid(
            f"Day {crontab.day_of_month} never comes in month {crontab.month_of_year}; choose an earlier day."
        )
    return _Calendar(
        zone=_zone(crontab.zone),
        elapsed=crontab.minute.startswith("*") or crontab.hour.startswith("*"),
        months=months,
        days=days,
        weekdays=_values(_WEEKDAY, crontab.day_of_week),
        times=_times(hours, minutes),
    )


@lru_cache(maxsize=4096)  # calendars share it, so that thousands that run every few minutes stay small
def _times(hours: tuple[int, ...], minutes: tuple[int, ...]) -> tuple[timedelta, ...]:
    return tuple(_MINUTES_OF_DAY[hour * 60 + minute] for hour in hours for minute in minutes)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Invalid(f"There is no time zone {name!r}; choose an IANA name such as Europe/Berlin or UTC.") from error


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or _ZERO


def _moment(zone: ZoneInfo, wall: datetime) -> datetime:
    """When the clocks read `wall` for the first time or, if they leap over it, the moment they leap."""
    offset = zone.utcoffset(wall) or _ZERO  # in a gap, the one before it
    moment = wall - offset
    in_gap = _offset(zone, moment) != offset
    return _change(zone, moment - _DAY, moment) if in_gap else moment


def _steady_until(zone: ZoneInfo, moment: datetime, offset: timedelta) -> datetime:
    """A moment up to which the offset stays what it is: the next change or a day on, whichever is first."""
    tomorrow = moment + _DAY
    return tomorrow if _offset(zone, tomorrow) == offset else _change(zone, moment, tomorrow)


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The moment after `low` and up to `high` at which the offset changes; changes come at whole seconds."""
    low = low.replace(microsecond=0)
    before = _offset(zone, low)
    seconds = range(int((high - low).total_seconds()) + 1)
    changed_at = bisect_left(seconds, True, key=lambda second: _offset(zone, low + timedelta(seconds=second)) != before)
    return low + timedelta(seconds=changed_at)


# --- solar ----------------------------------------------------------------------------------------------------------

_EPHEM_ZERO = datetime(1899, 12, 31, 12, tzinfo=UTC)  # it counts days; as dates, its old ones are Julian
_BY_CENTRE: dict[str, bool] = {"use_center": True}
_BY_RIM: dict[str, bool] = {}
SOLAR_EVENTS = {  # as in Celery: what to ask of ephem's observer, the horizon in degrees, what of the sun crosses it
    "dawn_astronomical": ("next_rising", "-18", _BY_CENTRE),
    "dawn_nautical": ("next_rising", "-12", _BY_CENTRE),
    "dawn_civil": ("next_rising", "-6", _BY_CENTRE),
    "sunrise": ("next_rising", "-0:34", _BY_RIM),
    "solar_noon": ("next_transit", "0", _BY_RIM),
    "sunset": ("next_setting", "-0:34", _BY_RIM),
    "dusk_civil": ("next_setting", "-6", _BY_CENTRE),
    "dusk_nautical": ("next_setting", "-12", _BY_CENTRE),
    "dusk_astronomical": ("next_setting", "-18", _BY_CENTRE),
}


def _solar(solar: Solar, after: datetime, until: datetime) -> Iterator[datetime]:
    """One search for each day of mean solar time, which always begins at the same hour, far from the event.

    ephem's answer differs by microseconds with where it begins to search: so that must not depend on who asks.
    """
    hour = 18 if solar.event.startswith(("dawn", "sunrise")) else 6
    any_start = _FIRST + timedelta(hours=hour) - _DAY * (solar.longitude / 360)
    start = after - (after - any_start) % _DAY
    while start <= until:
        moment = _in_solar_day(solar, start)
        if moment is not None:
            yield moment
        start += _DAY


@lru_cache(maxsize=16384)  # some decades: a polar night is walked through once
def _in_solar_day(solar: Solar, start: datetime) -> datetime | None:
    """The event in the day from `start` on; None when the sun stays above or below the horizon all that day."""
    ephem = _ephem()
    search, horizon, options = SOLAR_EVENTS[solar.event]
    observer = ephem.Observer()
    observer.lat, observer.lon = radians(solar.latitude), radians(solar.longitude)
    observer.horizon, observer.pressure = horizon, 0
    try:
        found = getattr(observer, search)(ephem.Sun(), start=(start - _EPHEM_ZERO) / _DAY, **options)
    except ephem.CircumpolarError:
        return None
    moment: datetime = _EPHEM_ZERO + found * _DAY
    return moment.replace(microsecond=0)


def _ephem() -> Any:
    try:
        import ephem  # late, as only solar schedules need it
    except ImportError as error:
        raise Invalid("Solar schedules need the package ephem: install it, or use a crontab.") from error
    return ephem


# --- values ---------------------------------------------------------------------------------------------------------


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise Invalid(f"The moment {moment} has no time zone; give an aware datetime.")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(f"The moment {moment} is beyond the calendar; choose another year.") from error


def _store_utc(value: object, name: str) -> None:
    """Keep a frozen value's moment in UTC: arithmetic in other zones would follow their wall clocks."""
    moment = getattr(value, name)
    if moment is not None:
        object.__setattr__(value, name, _utc(moment))


def _store_degrees(value: object, name: str, limit: int) -> None:
    """Keep a frozen value's angle as a plain number: databases hand out decimals."""
    degrees = float(getattr(value, name)) + 0.0  # which makes a zero of minus zero
    if not abs(degrees) <= limit:  # nor is NaN
        raise Invalid(f"A {name} of {degrees:g} degrees is on no map; choose one from -{limit} to {limit}.")
    object.__setattr__(value, name, degrees)
