"""Which moments can a schedule have, and how are they stored?

Its one rule: moments are stored in UTC. Naive ones are refused.
"""

from datetime import UTC, datetime, timedelta

from jobs.rules.errors import Invalid

FIRST, LAST = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # with room for every zone's offset
FOREVER = datetime.max.replace(tzinfo=UTC)
DAY = timedelta(days=1)
INSTANT = timedelta.resolution


def utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises `Invalid` when it is naive or outside the years 1 to 9999 in UTC."""
    if moment.tzinfo is None:
        raise Invalid(f"The moment {moment} has no time zone; give an aware datetime.")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(f"The moment {moment} is outside the years 1 to 9999 in UTC; choose another year.") from error


def store_utc(value: object, name: str) -> None:
    """Convert a frozen value's moment to UTC: arithmetic in other zones would follow their wall clocks."""
    moment = getattr(value, name)
    if moment is not None:
        object.__setattr__(value, name, utc(moment))
