"""What does a crontab line mean that users paste from elsewhere?

Its one rule: a line is read where cron and Celery agree on its meaning, or differ only in how they write it. Any other
line is refused, with what to write instead. `doubt` names the one meaning in which they differ.
"""

import re
from typing import NamedTuple

from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class Fields(NamedTuple):
    """The fields of a crontab as Celery reads them."""

    minute: str
    hour: str
    day_of_month: str
    month_of_year: str
    day_of_week: str


def looks_like_line(text: str) -> bool:
    """Whether a text is a whole line rather than one field."""
    return text.lstrip().startswith("@") or len(_words(text)) >= len(Fields._fields)


def read_line(text: str) -> Fields:
    """The fields of a line such as `0 9 * * MON-FRI` or `@daily`. Raises `Invalid` with what to write instead."""
    if text.strip().startswith("@"):
        return Fields(*_nickname(text.strip().lower()).split())
    words = _words(text)
    if len(words) != len(Fields._fields):
        raise Invalid(
            f"A crontab line has five fields (minute, hour, day of month, month, day of week), not {len(words)}: add"
            " what is missing, and leave out seconds, a year, a user or a command."
        )
    crontab = Crontab(*Fields(*words), "UTC")
    return Fields(*(getattr(crontab, name).lower() for name in Fields._fields))


def doubt(fields: Fields) -> str:
    """A sentence where cron would run on days that match either day field, and Celery on days that match both."""
    days, weekdays = fields.day_of_month, fields.day_of_week
    if days.startswith("*") or weekdays.startswith("*"):
        return ""
    return (
        f"It is due on days that match both day of month {days} and day of week {weekdays}, as in Celery. cron would be"
        " due on days that match either: for that, make two crontabs, each with * in one of the two fields."
    )


def _words(text: str) -> list[str]:
    return re.sub(r"\s*,\s*", ",", text).split()


def _nickname(text: str) -> str:
    if text not in NICKNAMES:
        hint = "a crontab names times: for the start of a machine, use its init system" if text == "@reboot" else ""
        hint = "choose an interval instead" if text.startswith("@every") else hint
        raise Invalid(f"{text!r} cannot be read; {hint or 'choose from ' + ', '.join(NICKNAMES)}.")
    return NICKNAMES[text]
