"""What do clock changes do to a timing? One sentence for the first skipped and one for the first repeated reading.

Its one rule: it tells what `occurrences` does. Timings that follow elapsed time, such as every 15 minutes of all hours,
are left alone by clock changes, so there is nothing to say. Limit: it looks at every moment of the range.
"""

from datetime import datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from jobs.rules.crontab import Crontab, calendar_of, first_moment, zone_of
from jobs.rules.occurrences import Interval, Timing, walls
from jobs.rules.words import day_and_time, listed, time_of_day

MOST_TIMES = 4  # that a sentence lists


def sentences(timing: Timing, after: datetime, until: datetime) -> list[str]:
    """What happens at the first clock changes that concern the timing between two moments."""
    if not isinstance(timing, (Crontab, Interval)) or not timing.zone or _ignores_clocks(timing):
        return []
    zone = zone_of(timing.zone)
    skipped, repeated = _first_of_each(timing, zone, after, until)
    elapsed = isinstance(timing, Crontab) and calendar_of(timing).elapsed
    found = []
    if skipped:
        then = "it is not due then" if elapsed else f"it is due {_instead(zone, skipped[0])} instead"
        found.append(f"{_on(skipped)} the clocks of {timing.zone} skip {_times(skipped)}: {then}.")
    if repeated:
        then = "both times" if elapsed else "the first time only"
        found.append(f"{_on(repeated)} the clocks of {timing.zone} show {_times(repeated)} twice: it is due {then}.")
    return found


def _ignores_clocks(timing: Crontab | Interval) -> bool:
    if isinstance(timing, Interval):
        return False
    calendar = calendar_of(timing)
    return calendar.elapsed and len({time // timedelta(hours=1) for time in calendar.times}) == 24


def _first_of_each(
    timing: Crontab | Interval, zone: ZoneInfo, after: datetime, until: datetime
) -> tuple[list[datetime], list[datetime]]:
    """The readings of the first day with skipped ones, and of the first with repeated ones."""
    skipped: list[datetime] = []
    repeated: list[datetime] = []
    readings = takewhile(lambda wall: first_moment(zone, wall) <= until, walls(timing, after))
    for wall in readings:
        before, afterwards = zone.utcoffset(wall), zone.utcoffset(wall.replace(fold=1))
        if before is None or afterwards is None or before == afterwards:
            continue
        group = skipped if before < afterwards else repeated
        if not group or group[0].date() == wall.date():
            group.append(wall)
    return skipped, repeated


def _on(readings: list[datetime]) -> str:
    return f"On {readings[0].date().isoformat()}"


def _times(readings: list[datetime]) -> str:
    times = [time_of_day(wall) for wall in readings]
    return listed(times) if len(times) <= MOST_TIMES else f"{times[0]} to {times[-1]}"


def _instead(zone: ZoneInfo, wall: datetime) -> str:
    local = first_moment(zone, wall).astimezone(zone)
    same_day = local.date() == wall.date()
    return f"at {time_of_day(local)}" if same_day else f"on {day_and_time(local, str(zone), ' at ')}"
