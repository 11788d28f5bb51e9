"""How do the pages show moments, durations, percentages and states? Makes no queries."""

from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

NOTHING = "–"


def state(name: str, label: str = "") -> SafeString:
    """A state in its colour; `label` replaces its name."""
    return format_html('<span class="state state-{}">{}</span>', name, label or name)


def moment(when: datetime | None) -> str:
    """A moment in the site's time zone."""
    if when is None:
        return NOTHING
    return format_html('<span class="moment">{}</span>', f"{timezone.localtime(when):%Y-%m-%d %H:%M:%S}")


def between(start: datetime | None, end: datetime | None) -> str:
    """A duration: `1.50 s` below a minute, then `0:01:30`."""
    if start is None or end is None:
        return NOTHING
    seconds = (end - start).total_seconds()
    if abs(seconds) < 60:
        return format_html('<span class="moment">{} s</span>', f"{seconds:.2f}")
    return str(timedelta(seconds=round(seconds)))


def counted(number: int, one: str, many: str) -> str:
    """`1 run`, `2 runs`: a number with its noun."""
    return f"{number:,} {one if number == 1 else many}"


def percentage(part: int, whole: int) -> str:
    """`97.5 %`; a dash if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING
