"""How long is a written duration? `15 minutes`, `1 h 30 min`, `1 day`, `90 s`, or a number of seconds.

Its one rule: equal durations are written alike, in the largest unit of which they are a whole number. A day is 24
hours. Limits: no months and years, whose length varies; no negative durations in words.
"""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

from jobs.rules.errors import Invalid

# As IntervalSchedule names them.
UNITS: dict[str, int | Decimal] = {
    "days": 86_400,
    "hours": 3_600,
    "minutes": 60,
    "seconds": 1,
    "microseconds": Decimal("0.000001"),
}
_UNITS: dict[str, int | Decimal] = {
    **dict.fromkeys(("w", "week", "weeks"), 604_800),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("us", "microsecond", "microseconds"), Decimal("0.000001")),
}
LONGEST_TEXT = 100  # characters
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)"
_PART = re.compile(rf"{_NUMBER} *([a-z]+)")
_WHOLE = re.compile(rf"{_PART.pattern}(?:(?:,|,? and)? *{_PART.pattern})*")
_EXAMPLES = "write a duration such as 90 s, 15 minutes, 1 h 30 min or 1 day"


def read(written: Any) -> timedelta:
    """A duration from its text, or from a number of seconds. Raises `Invalid`."""
    if isinstance(written, timedelta):
        return written
    if isinstance(written, str):
        return _length(_seconds(written))
    if isinstance(written, bool) or not isinstance(written, (int, float, Decimal)):
        raise Invalid(f"A duration is a text or a number of seconds, not {type(written).__name__}: {_EXAMPLES}.")
    return _length(written)


def split(length: timedelta) -> tuple[int, str]:
    """A duration as a whole number of its largest unit: `(15, "minutes")`."""
    microseconds = length // timedelta.resolution
    for unit, seconds in UNITS.items():
        number, rest = divmod(microseconds, int(seconds * 1_000_000))
        if not rest and (number or unit == "seconds"):
            return number, unit
    raise AssertionError("Every duration is a whole number of microseconds.")


def text(length: timedelta) -> str:
    """A duration as people write it: `15 minutes`, `1 day`, `1.5 seconds`. `read` returns it again."""
    number, unit = split(length)
    if unit == "microseconds":
        return f"{_plain(Decimal(number) * UNITS[unit])} seconds"
    return f"{number} {unit if number != 1 else unit[:-1]}"


def _seconds(written: str) -> Decimal:
    plain = written.strip().lower()
    if plain in _UNITS:  # as in "every day"
        plain = f"1 {plain}"
    if re.fullmatch(_NUMBER, plain):
        plain = f"{plain} s"
    whole = _WHOLE.fullmatch(plain) if len(plain) <= LONGEST_TEXT else None
    parts = _PART.findall(plain) if whole else []
    if not parts or any(unit not in _UNITS for _, unit in parts):
        raise Invalid(f"The duration {written[:LONGEST_TEXT]!r} cannot be read: {_EXAMPLES}.")
    return sum((Decimal(number) * _UNITS[unit] for number, unit in parts), Decimal(0))


def _length(seconds: Any) -> timedelta:
    try:
        exact = Decimal(str(seconds)) if isinstance(seconds, float) else Decimal(seconds)
        return timedelta(microseconds=int((exact * 1_000_000).to_integral_value()))
    except (ArithmeticError, ValueError) as error:
        raise Invalid(f"This duration is too long, or no number: {_EXAMPLES}.") from error


def _plain(number: Decimal) -> str:
    return f"{number:f}".rstrip("0")
