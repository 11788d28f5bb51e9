"""When is a crontab due by the wall clocks of its time zone?

Its one rule: Celery's syntax, Celery's AND of the two day fields, and Debian's rule for clock changes (see `Calendar`).
What only cron allows is read where its meaning is sure: spaces beside commas, 7 for Sunday, and `?` for any day.
Limits: the years 2 to 9998. Two clock changes of one zone must lie more than a day apart; the closest pair in the time
zone database lies nearly four days apart.
"""

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from celery.schedules import crontab_parser

from jobs.rules.errors import Invalid
from jobs.rules.moments import DAY, INSTANT, LAST

LONGEST_FIELD = 240  # characters; the widest column of django-celery-beat

_ZERO = timedelta(0)
_MINUTES_OF_DAY = tuple(timedelta(minutes=n) for n in range(24 * 60))  # shared: a calendar holds references only


@dataclass(frozen=True, slots=True)
class Crontab:
    """Celery's five fields, as Celery reads them, by the wall clocks of `zone` (an IANA name)."""

    minute: str
    hour: str
    day_of_month: str
    month_of_year: str
    day_of_week: str
    zone: str

    def __post_init__(self) -> None:
        if self.day_of_month.strip() == "?" and _NUMBER.search(self.day_of_week):
            raise Invalid(
                f"Day of week {self.day_of_week} is unclear beside ?: Quartz and AWS count from Sunday = 1, Celery from"
                " Sunday = 0. Write names such as mon-fri."
            )
        for name, field in FIELDS.items():
            object.__setattr__(self, name, _plain(field, getattr(self, name)))
        calendar_of(self)


# --- parsing the fields ---------------------------------------------------------------------------------------------


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

FIELDS = {
    "minute": _MINUTE,
    "hour": _HOUR,
    "day_of_month": _DAY_OF_MONTH,
    "month_of_year": _MONTH,
    "day_of_week": _WEEKDAY,
}

_VALUE = "([0-9a-zA-Z]+)"
_PART = re.compile(rf"{_VALUE}|(?:\*|{_VALUE}-{_VALUE})(?:/([0-9]+))?")
_NUMBER = re.compile(r"(?<!/)\b[0-9]")
_TO_SUNDAY = re.compile(r"0*7(?:/0*([1-9][0-9]*))?")
# What other schedulers write for days that Celery cannot name: L, 5L, L-3, LW, 15W, 5#2.
_OF_OTHERS = re.compile(r"([0-9]*|[a-z]{3})l(-[0-9]+)?|[0-9]*l?w|.+#.+", re.IGNORECASE)


@lru_cache(maxsize=4096)
def _plain(field: _Field, text: str) -> str:
    """The text as Celery reads it."""
    text = re.sub(r"\s*([,/-])\s*", r"\1", text.strip())
    if text == "?" and field in (_DAY_OF_MONTH, _WEEKDAY):
        return "*"
    return ",".join(map(_sunday_as_0, text.split(","))) if field is _WEEKDAY and "7" in text else text


def _sunday_as_0(part: str) -> str:
    """Write 7, and a range that ends with it, as days from 0 to 6."""
    first, dash, last = part.partition("-")
    start = _weekday(first)
    if start is not None and (matched := _TO_SUNDAY.fullmatch(last)):
        return ",".join(str(day % 7) for day in range(start, 8, int(matched[1] or 1)))
    return f"0{dash}{last}" if start == 7 else part


def _weekday(text: str) -> int | None:
    if text.isdecimal():
        return int(text) if int(text) <= 7 else None
    names = _WEEKDAY.names.split()
    found = [number for number, name in enumerate(names) if len(text) > 2 and name.startswith(text.lower())]
    return found[0] if found else None


@lru_cache(maxsize=4096)
def _values(field: _Field, text: str) -> tuple[int, ...]:
    """The values that a field allows, in order. Celery's parser accepts too much, so the text is checked first."""
    if not text:
        raise Invalid(f"{field.label} is empty; write * for all values.")
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
    if step is not None and not 1 <= int(step) <= field.size:
        raise Invalid(f"{field.label}: the step in {part!r} must be from 1 to {field.size}.")
    for value in filter(None, values):
        _check_value(field, value)


def _check_value(field: _Field, value: str) -> None:
    if not value.isdigit():
        if len(value) < 3 or not any(name.startswith(value.lower()) for name in field.names.split()):
            raise _unreadable(field, value)
    elif not field.low <= int(value) < field.low + field.size:
        hint = " (Sunday is 0, 7 or sun)" if field is _WEEKDAY else ""
        raise Invalid(f"{field.label}: choose from {field.low} to {field.low + field.size - 1}{hint}, not {value}.")


def _unreadable(field: _Field, text: str) -> Invalid:
    if field in (_DAY_OF_MONTH, _WEEKDAY) and _OF_OTHERS.fullmatch(text):
        return Invalid(
            f"{field.label}: cannot read {text!r}; Celery has no last day (L), nearest workday (W) or nth weekday (#)."
            " Choose every day that may be meant, and let the job check the date."
        )
    return Invalid(
        f"{field.label}: cannot read {text!r}; write * or values such as {field.example}, separated by commas."
    )


# --- computing the moments ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calendar:
    """An expanded crontab. A wall clock reading ("wall") is labelled UTC, so that wall - offset is its moment.

    Debian's rule: where the minute or the hour field begins with `*`, the crontab follows elapsed time and is due at
    every real minute whose reading matches. Any other crontab names fixed times: a time that a clock change skips is
    due at the first moment after the gap, and a repeated time is due once, the first time.
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
        reading = reading_of(self.zone, after)
        for wall in self.walls(reading + INSTANT):  # readings up to this one were due by `after`
            yield first_moment(self.zone, wall)

    def _elapsed(self, after: datetime, until: datetime) -> Iterator[datetime]:
        while after <= until:
            offset = _offset(self.zone, after)
            end = _steady_until(self.zone, after, offset)
            for wall in self.walls(after + offset):
                if wall - offset >= end:
                    break
                yield wall - offset
            following = next(self.walls(end - DAY), LAST)
            after = max(end, following - DAY)  # no zone is a whole day from UTC: nothing is due earlier

    def walls(self, start: datetime) -> Iterator[datetime]:
        """The readings of the crontab from `start` on, also those that a clock change skips."""
        for midnight in self._midnights(start):
            for index in range(bisect_left(self.times, start - midnight), len(self.times)):
                yield midnight + self.times[index]

    def _midnights(self, start: datetime) -> Iterator[datetime]:
        month_of_start = (start.year, start.month)
        for year in range(start.year, LAST.year):
            for month in self.months[bisect_left(self.months, start.month) if year == start.year else 0 :]:
                weekday, length = monthrange(year, month)  # weekday of the first, Monday = 0; Celery's Sunday = 0
                skipped = bisect_left(self.days, start.day) if (year, month) == month_of_start else 0
                for day in self.days[skipped:]:
                    if day <= length and (weekday + day) % 7 in self.weekdays:
                        yield datetime(year, month, day, tzinfo=UTC)


@lru_cache(maxsize=16384)
def calendar_of(crontab: Crontab) -> Calendar:
    """The expanded crontab. Raises `Invalid` when a field or the zone cannot be read, or when it is never due."""
    minutes, hours = _values(_MINUTE, crontab.minute), _values(_HOUR, crontab.hour)
    days, months = _values(_DAY_OF_MONTH, crontab.day_of_month), _values(_MONTH, crontab.month_of_year)
    if days[0] > max(monthrange(2000, month)[1] for month in months):  # a leap year
        raise Invalid(
            f"Day {crontab.day_of_month} never occurs in month {crontab.month_of_year}; choose an earlier day."
        )
    return Calendar(
        zone=zone_of(crontab.zone),
        elapsed=crontab.minute.startswith("*") or crontab.hour.startswith("*"),
        months=months,
        days=days,
        weekdays=_values(_WEEKDAY, crontab.day_of_week),
        times=_times(hours, minutes),
    )


@lru_cache(maxsize=4096)  # shared, so that thousands of crontabs every few minutes take little memory
def _times(hours: tuple[int, ...], minutes: tuple[int, ...]) -> tuple[timedelta, ...]:
    return tuple(_MINUTES_OF_DAY[hour * 60 + minute] for hour in hours for minute in minutes)


def zone_of(name: str) -> ZoneInfo:
    """The time zone of an IANA name. Raises `Invalid`."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Invalid(f"There is no time zone {name!r}; choose an IANA name such as Europe/Berlin or UTC.") from error


def reading_of(zone: ZoneInfo, moment: datetime) -> datetime:
    """What the clocks of the zone show at a moment, as a "wall"."""
    return moment + _offset(zone, moment)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or _ZERO


def first_moment(zone: ZoneInfo, wall: datetime) -> datetime:
    """The first moment at which the clocks read `wall`; where they skip it, the moment of the change."""
    offset = zone.utcoffset(wall) or _ZERO  # in a gap, the offset before it
    moment = wall - offset
    in_gap = _offset(zone, moment) != offset
    return _change(zone, moment - DAY, moment) if in_gap else moment


def _steady_until(zone: ZoneInfo, moment: datetime, offset: timedelta) -> datetime:
    """A moment until which the offset does not change: the next change or a day later, whichever comes first."""
    tomorrow = moment + DAY
    return tomorrow if _offset(zone, tomorrow) == offset else _change(zone, moment, tomorrow)


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The moment at which the offset changes, after `low` and up to `high`. Changes occur at whole seconds."""
    low = low.replace(microsecond=0)
    before = _offset(zone, low)
    seconds = range(int((high - low).total_seconds()) + 1)
    changed_at = bisect_left(seconds, True, key=lambda second: _offset(zone, low + timedelta(seconds=second)) != before)
    return low + timedelta(seconds=changed_at)
