"""How do moments, lengths of time, shares and states look to a person? Nothing here asks the database."""

from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

NOTHING = "–"


def state(name: str, label: str = "") -> SafeString:
    """A state in its colour; `label` says it in other words."""
    return format_html('<span class="state state-{}">{}</span>', name, label or name)


def moment(when: datetime | None) -> str:
    """A moment in the site's time zone."""
    if when is None:
        return NOTHING
    return format_html('<span class="moment">{}</span>', f"{timezone.localtime(when):%Y-%m-%d %H:%M:%S}")


def between(start: datetime | None, end: datetime | None) -> str:
    """A length of time as people say it."""
    if start is None or end is None:
        return NOTHING
    seconds = (end - start).total_seconds()
    if abs(seconds) < 60:
        return format_html('<span class="moment">{} s</span>', f"{seconds:.2f}")
    return str(timedelta(seconds=round(seconds)))


def counted(number: int, one: str, many: str) -> str:
    """`1 run`, `2 runs`: the number with the word that goes with it."""
    return f"{number:,} {one if number == 1 else many}"


def share(part: int, whole: int) -> str:
    """`97.5 %`: a part of a whole that may be nothing."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING
