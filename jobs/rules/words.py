"""When is a timing due, in plain words? `every weekday at 07:30 (Europe/Berlin)`, `every 15 minutes`.

Its one rule: the words come from the expanded timing, not from its text. So `1-5`, `mon-fri` and `MON,2-5` are one
sentence, and timings with different due moments have different ones. Celery's AND of the two day fields is an "if".
Limit: the words do not say what a clock change does; `jobs.rules.clock_changes` does.

cron-descriptor, which django-celery-beat installs, is no help: it fails on `monday`, and describes `0,30 9 * * *` as
"at 0 and 30 minutes past the hour, at 09:00".
"""

from calendar import day_name, month_name, monthrange
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from jobs.rules import durations
from jobs.rules.crontab import Calendar, Crontab, calendar_of, reading_of, zone_of
from jobs.rules.occurrences import Clocked, Interval, Spec, Timing
from jobs.rules.solar import Solar

MOST_TIMES = 8  # times of day that are listed one by one
_HOUR, _MINUTE = timedelta(hours=1), timedelta(minutes=1)
_HOURS, _MINUTES = tuple(range(24)), tuple(range(60))
_DAYS, _MONTHS, _WEEK = tuple(range(1, 32)), tuple(range(1, 13)), (1, 2, 3, 4, 5, 6, 0)


def in_words(spec: Spec, zone: str) -> str:
    """A timing in plain words. Its moments are shown by the clocks of `zone`, unless it has a zone of its own."""
    text, own = _timing(spec.timing, zone)
    shown = own or zone
    for word, moment in ((", from ", spec.start), (", before ", spec.end)):
        if moment is not None:
            text, own = f"{text}{word}{day_and_time(moment, shown)}", shown
    return f"{text} ({own})" if own else text


def day_and_time(moment: datetime, zone: str, by: str = " ") -> str:
    """A moment by the clocks of a zone, as `2026-12-24 18:00`; seconds are shown only if they are not zero."""
    try:
        local = moment.astimezone(zone_of(zone))
    except OverflowError:  # the first or the last day of the calendar
        local = moment
    return f"{local.date().isoformat()}{by}{time_of_day(local)}"


def time_of_day(local: datetime) -> str:
    """`18:00`, `18:00:05` or `18:00:05.25`."""
    text = local.time().isoformat()
    return text.rstrip("0") if "." in text else text.removesuffix(":00")


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def length(of: timedelta) -> str:
    """A measured duration, rounded as people say it: `0.25 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    seconds = max(0.0, of.total_seconds())
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    left, parts = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        parts += [(number, unit)]
    first = next(index for index, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)


def _timing(timing: Timing, zone: str) -> tuple[str, str]:
    """The words, and the zone of the times in them; empty if there are none."""
    match timing:
        case Interval(every=every, grid_from=start, zone=own):
            at = f" at {time_of_day(reading_of(zone_of(own), start))}" if own else ""
            return f"every {durations.text(every).removeprefix('1 ')}{at}", own
        case Clocked(at=moment):
            return f"once, on {day_and_time(moment, zone, ' at ')}", zone
        case Crontab():
            return _crontab(timing)
        case Solar(latitude=north, longitude=east):
            event = " ".join(reversed(timing.event.split("_"))) if "noon" not in timing.event else "solar noon"
            places = f"{_degrees(north)}° {'S' if north < 0 else 'N'}, {_degrees(east)}° {'W' if east < 0 else 'E'}"
            return f"at every {event} at {places}", ""


def _degrees(angle: float) -> str:
    return f"{abs(angle):.6f}".rstrip("0").rstrip(".")


# --- crontabs -------------------------------------------------------------------------------------------------------


def _crontab(crontab: Crontab) -> tuple[str, str]:
    calendar = calendar_of(crontab)
    minutes = sorted({time % _HOUR // _MINUTE for time in calendar.times})
    hours = sorted({time // _HOUR for time in calendar.times})
    is_daily = (calendar.days, calendar.months, len(calendar.weekdays)) == (_DAYS, _MONTHS, len(_WEEK))
    if rhythm := _rhythm(hours, minutes, wraps=is_daily):
        text = f"{rhythm}{'' if is_daily else ', '}{_days(calendar, after=True)}{_if(calendar)}"
        # Zones differ by multiples of 15 minutes.
        is_everywhere = is_daily and len(hours) == len(_HOURS) and rhythm == _every(minutes) and len(minutes) % 4 == 0
        return text, "" if is_everywhere else crontab.zone
    times = [_clock(time // _HOUR, time % _HOUR // _MINUTE) for time in calendar.times]
    return f"{_days(calendar, after=False)} at {listed(times)}{_if(calendar)}", crontab.zone


def _rhythm(hours: list[int], minutes: list[int], *, wraps: bool) -> str:
    """Times of day as a rhythm; empty if they are so few that each can be listed.

    `wraps`: the hours may run on past midnight, because every day is like the day before.
    """
    every = _every(minutes)
    at = every if every and minutes[0] == 0 else f"at {_named('minute', minutes)}"
    if len(hours) == len(_HOURS):
        return "every hour" if minutes == [0] else at if at == every else f"{at} of every hour"
    if even := _even(_turned(hours) if wraps else hours, minutes, every):
        return even
    return "" if len(hours) * len(minutes) <= MOST_TIMES else f"{at} of {_named('hour', hours)}"


def _even(hours: list[int], minutes: list[int], every: str) -> str:
    """The words for evenly spread times from one hour to another; empty for two times, and for any others."""
    steps = {(later - hour) % 24 for hour, later in pairwise(hours)} or {1}
    if len(steps) > 1 or len(hours) * len(minutes) < 3:
        return ""
    step, span = steps.pop(), f"from {_clock(hours[0], minutes[0])} to {_clock(hours[-1], minutes[-1])}"
    if len(minutes) == 1:
        is_whole = (hours[0], minutes[0], step * len(hours)) == (0, 0, 24)
        return f"every {step} hours" if is_whole else f"every {'hour' if step == 1 else f'{step} hours'} {span}"
    return f"{every} {span}" if every and step == 1 else ""


def _turned(hours: list[int]) -> list[int]:
    """The hours of a night in order, `22, 23, 0, 1`; others as they are."""
    first = next((hour for hour in hours if hour and hour - 1 not in hours), 0)
    turned = [hour for hour in hours if hour >= first] + [hour for hour in hours if hour < first]
    return turned if hours[0] == 0 and (turned[-1] - turned[0]) % 24 == len(hours) - 1 else hours


def _every(minutes: list[int]) -> str:
    """The words for minutes that are evenly spread over the hour; empty for any others."""
    step = 60 // len(minutes)
    if len(minutes) == 1 or minutes != list(range(minutes[0], 60, step)) or step * len(minutes) != 60:
        return ""
    return "every minute" if step == 1 else f"every {step} minutes"


def _days(calendar: Calendar, *, after: bool) -> str:
    """The days, before the times (`every Monday`) or after a rhythm (`on Mondays`)."""
    months = _from_to(calendar.months, _MONTHS, month_name.__getitem__)
    weekdays = [day for day in _WEEK if day in calendar.weekdays]
    if calendar.days != _DAYS:
        of = f" of {months}" if months and not months.startswith("from") else f" of each month {months}".rstrip()
        return f"on the {_runs_of(calendar.days, _DAYS, _ordinal)}{of}"
    text = ("" if after else "every day") if len(weekdays) == len(_WEEK) else _week(weekdays, after=after)
    months = f"in {months}" if months and not months.startswith("from") else months
    return (", " if " from " in f" {text}" else " ").join(filter(None, (text, months)))


def _week(weekdays: list[int], *, after: bool) -> str:
    if weekdays == list(_WEEK[:5]):
        return "on weekdays" if after else "every weekday"
    text = _from_to(weekdays, _WEEK, _weekday)
    if text.startswith("from"):
        return text if after else f"every day {text}"
    return f"on {listed([f'{_weekday(day)}s' for day in weekdays])}" if after else f"every {text}"


def _if(calendar: Calendar) -> str:
    """What must hold besides: a month may have none of the days, and Celery's two day fields must both match."""
    if calendar.days == _DAYS:
        return ""
    shortest = min(monthrange(2001, month)[1] for month in calendar.months)
    conditions = ["the month has it"] if calendar.days[0] > shortest else []
    if len(calendar.weekdays) < len(_WEEK):
        days = listed([f"a {_weekday(day)}" for day in _WEEK if day in calendar.weekdays])
        conditions.append(f"it is {days.replace(' and ', ' or ')}")
    return f", if {' and '.join(conditions)}" if conditions else ""


def _from_to(values: Sequence[int], order: Sequence[int], name: Callable[[int], str]) -> str:
    """`from a to c` for three and more in a row; else each name. Empty for all of them."""
    if len(values) == len(order):
        return ""
    text = _runs_of(values, order, name)
    return f"from {text}" if text.count(" ") == 2 and " to " in text else listed([*map(name, values)])


def _weekday(day: int) -> str:
    return day_name[(day - 1) % 7]  # Celery's Sunday is 0


def _ordinal(day: int) -> str:
    ending = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _named(noun: str, numbers: list[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {_runs_of(numbers, _MINUTES, str)}"


def _runs_of(values: Sequence[int], order: Sequence[int], name: Callable[[int], str]) -> str:
    """The names of values in order; three and more in a row as `a to c`."""
    rows: list[list[int]] = []
    for value in values:
        if rows and order.index(value) == order.index(rows[-1][-1]) + 1:
            rows[-1].append(value)
        else:
            rows.append([value])
    words: list[str] = []
    for row in rows:
        words += [f"{name(row[0])} to {name(row[-1])}"] if len(row) > 2 else map(name, row)
    return listed(words)


def _clock(hour: int, minute: int) -> str:
    return f"{hour:02}:{minute:02}"
