"""When does a solar event come at a place?

Its one rule: Celery's events, found by ephem to the second; polar day and night have none.
Limits: computed for the years 2 to 9998.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import radians
from typing import Any

from jobs.rules.errors import Invalid
from jobs.rules.moments import DAY, FIRST

HIGHEST_LATITUDE = 89.5  # degrees; up to there each solar event comes in every year, nearer to a pole it may not

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


def solar_moments(solar: Solar, after: datetime, until: datetime) -> Iterator[datetime]:
    """One search for each day of mean solar time, which always begins at the same hour, far from the event.

    ephem's answer differs by microseconds with where it begins to search: so that must not depend on who asks.
    """
    hour = 18 if solar.event.startswith(("dawn", "sunrise")) else 6
    any_start = FIRST + timedelta(hours=hour) - DAY * (solar.longitude / 360)
    start = after - (after - any_start) % DAY
    while start <= until:
        moment = _in_solar_day(solar, start)
        if moment is not None:
            yield moment
        start += DAY


@lru_cache(maxsize=16384)  # some decades: a polar night is walked through once
def _in_solar_day(solar: Solar, start: datetime) -> datetime | None:
    """The event in the day from `start` on; None when the sun stays above or below the horizon all that day."""
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
        import ephem  # late, as only solar schedules need it
    except ImportError as error:
        raise Invalid("Solar schedules need the package ephem: install it, or use a crontab.") from error
    return ephem


def _store_degrees(value: object, name: str, limit: int) -> None:
    """Keep a frozen value's angle as a plain number: databases hand out decimals."""
    degrees = float(getattr(value, name)) + 0.0  # which makes a zero of minus zero
    if not abs(degrees) <= limit:  # nor is NaN
        raise Invalid(f"A {name} of {degrees:g} degrees is on no map; choose one from -{limit} to {limit}.")
    object.__setattr__(value, name, degrees)
