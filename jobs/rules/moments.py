"""Which moments can be computed, and how are they kept?

Its one rule: a moment is kept in UTC; a naive one is refused.
"""

from datetime import UTC, datetime, timedelta

from jobs.rules.errors import Invalid

FIRST, LAST = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # a day's room for every zone
FOREVER = datetime.max.replace(tzinfo=UTC)
DAY = timedelta(days=1)
INSTANT = timedelta.resolution


def utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises `Invalid` when it is naive or beyond the calendar."""
    if moment.tzinfo is None:
        raise Invalid(f"The moment {moment} has no time zone; give an aware datetime.")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(f"The moment {moment} is beyond the calendar; choose another year.") from error


def store_utc(value: object, name: str) -> None:
    """Keep a frozen value's moment in UTC: arithmetic in other zones would follow their wall clocks."""
    moment = getattr(value, name)
    if moment is not None:
        object.__setattr__(value, name, utc(moment))
