"""When does a solar event occur at a place?

Its one rule: the events are Celery's, and ephem finds them to the second. Except for solar noon, polar day and polar
night have none.
Limits: the years 2 to 9998.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import radians
from typing import Any

from jobs.rules.errors import Invalid
from jobs.rules.moments import DAY, FIRST

HIGHEST_LATITUDE = 89.5  # degrees; nearer to a pole, a solar event may not occur in every year

_EPHEM_ZERO = datetime(1899, 12, 31, 12, tzinfo=UTC)  # ephem counts days from here; its old dates are Julian
_BY_CENTRE: dict[str, bool] = {"use_center": True}
_BY_RIM: dict[str, bool] = {}
SOLAR_EVENTS = {  # as in Celery: the method of ephem's observer, the horizon, and which part of the sun crosses it
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


@dataclass(frozen=True, slots=True)
class Solar:
    """One of `SOLAR_EVENTS`, at a place in degrees north and degrees east."""

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
                f"At latitude {self.latitude:g}, {self.event} may not occur in every year; "
                f"choose solar_noon or a latitude from -{HIGHEST_LATITUDE} to {HIGHEST_LATITUDE}."
            )


def solar_moments(solar: Solar, after: datetime, until: datetime) -> Iterator[datetime]:
    """Search each day of mean solar time, always from the same hour, far from the event.

    ephem's answer depends, by microseconds, on where the search starts. So the start must not depend on the range.
    """
    hour = 18 if solar.event.startswith(("dawn", "sunrise")) else 6
    any_start = FIRST + timedelta(hours=hour) - DAY * (solar.longitude / 360)
    start = after - (after - any_start) % DAY
    while start <= until:
        moment = _in_solar_day(solar, start)
        if moment is not None:
            yield moment
        start += DAY


@lru_cache(maxsize=16384)  # some decades of days, so that a polar night is searched once
def _in_solar_day(solar: Solar, start: datetime) -> datetime | None:
    """The event in the day that begins at `start`; None when the sun stays above or below the horizon all day."""
    ephem = _ephem()
    search, horizon, options = SOLAR_EVENTS[solar.event]
    observer = ephem.Observer()
    observer.lat, observer.lon = radians(solar.latitude), radians(solar.longitude)
    observer.horizon, observer.pressure = horizon, 0
    try:
        found = getattr(observer, search)(ephem.Sun(), start=(start - _EPHEM_ZERO) / DAY, **options)
    except ephem.CircumpolarError:
        return None
    moment: datetime = _EPHEM_ZERO + found * DAY
    return moment.replace(microsecond=0)


def _ephem() -> Any:
    try:
        import ephem  # imported late: only solar schedules need it
    except ImportError as error:
        raise Invalid("Solar schedules need the package ephem: install it, or use a crontab.") from error
    return ephem


def _store_degrees(value: object, name: str, limit: int) -> None:
    """Convert a frozen value's angle to a float: databases return decimals."""
    degrees = float(getattr(value, name)) + 0.0  # turns minus zero into zero
    if not abs(degrees) <= limit:  # also refuses NaN
        raise Invalid(f"A {name} of {degrees:g} degrees does not exist; choose one from -{limit} to {limit}.")
    object.__setattr__(value, name, degrees)
