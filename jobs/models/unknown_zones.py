"""How does Django read a time zone that this machine does not know? SQL or a newer machine may have stored it.

Its one rule: Django reads, shows and stores the name unchanged. So the row stops no page and no other schedule.
`rules.crontab.zone_of` refuses the name, and beat flags the schedule.
"""

from io import BytesIO
from typing import Any
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from timezone_field import TimeZoneField  # type: ignore[import-untyped]

# A file of a zone, by RFC 9636: one period without an offset, called UTC.
_UTC_FILE = b"TZif" + bytes(16) + b"".join(n.to_bytes(4, "big") for n in (0, 0, 0, 0, 1, 4)) + bytes(6) + b"UTC\0"


class UnknownZone(ZoneInfo):
    """A zone without rules, only a name. Pages show its moments in UTC."""


def install() -> None:
    """Let Django read every stored zone, and refuse unknown zones of users."""
    TimeZoneField.from_db_value, TimeZoneField.to_python = _from_db_value, _to_python


def _from_db_value(self: Any, value: str, *_: Any) -> ZoneInfo | None:
    try:
        zone = _to_python(self, value)
    except ValidationError:
        zone = UnknownZone.from_file(BytesIO(_UTC_FILE), key=value)
    return zone


def _to_python(self: Any, value: Any) -> ZoneInfo | None:
    try:
        zone: ZoneInfo | None = self._get_python_and_db_repr(value)[0]
    except (OSError, ValueError) as error:  # the field expects neither, such as for the name of a folder of zones
        raise ValidationError(f"There is no time zone {value!r}.") from error
    return zone
