"""Can every stored moment be read and shown? PostgreSQL stores years that Python has not, and `infinity`.

Its one rule: a moment outside of the years 1 to 9999, in UTC or in the zone in which it is shown, counts as the nearest
moment inside. So one row with such a date stops neither a page nor a claim; a form that shows it can be saved. A
duration that Python cannot hold counts as a thousand years.

`django.utils.timezone` converts moments for templates, the admin and its forms: its functions are replaced here.
"""

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from functools import wraps
from typing import Any

from django.db.backends.postgresql.psycopg_any import BaseTzLoader
from django.utils import timezone
from psycopg import DataError, adapters
from psycopg.types.datetime import IntervalLoader, TimestamptzLoader

LONGEST = timedelta(days=365_000)
FIRST, LAST = datetime.min, datetime.max  # noqa: DTZ901 - each caller adds its zone


def install() -> None:
    """Let Django read and show every moment."""
    BaseTzLoader.load = _load
    adapters.register_loader("interval", _IntervalLoader)
    for name in ("localtime", "make_naive"):
        setattr(timezone, name, _within_years(getattr(timezone, name)))


def _load(self: Any, data: Any) -> datetime:
    try:
        moment: datetime = TimestamptzLoader.load(self, data)
    except DataError:
        text = bytes(data)
        moment = FIRST if text.startswith(b"-") or text.endswith(b"BC") else LAST
    return moment.replace(tzinfo=self.timezone)


class _IntervalLoader(IntervalLoader):
    def load(self, data: Any) -> timedelta:
        try:
            return super().load(data)
        except (DataError, ArithmeticError):
            return -LONGEST if bytes(data).startswith(b"-") else LONGEST


def _within_years(convert: Callable[..., datetime]) -> Callable[..., datetime]:
    @wraps(convert)
    def converted(value: datetime | None = None, timezone: tzinfo | None = None) -> datetime:
        try:
            return convert(value, timezone)
        except OverflowError:
            end, inside = (FIRST, 2) if value and value.year == FIRST.year else (LAST, LAST.year - 1)
            shown = convert(value and value.replace(year=inside, day=1), timezone)
            return end.replace(tzinfo=shown.tzinfo)  # as the function answers: in the zone, or naive

    return converted
