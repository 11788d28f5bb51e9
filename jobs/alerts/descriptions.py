"""How do all doors describe health, channels and silences? In the same words, mostly from rows that are read already.

Its one rule: a schedule without a `Condition` is ok. Limit: health is that of the last look, a few seconds ago.
"""

from datetime import datetime
from enum import StrEnum

from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from jobs.models import Alert, Channel, Condition, Silence
from jobs.rules.health import TITLES, Health


class Phase(StrEnum):
    """Of a silence."""

    CURRENT = "current"
    UPCOMING = "upcoming"
    OVER = "over"


def condition_of(schedule: PeriodicTask) -> Condition:
    """The health of a schedule as the last look found it; read it with `select_related("condition")`."""
    found: Condition | None = getattr(schedule, "condition", None)
    return found or Condition(health=Health.OK.value, sentence="")


def has_health(health: str) -> Q:
    """Which schedules have this health."""
    wanted = Q(condition__health=health)
    return wanted | Q(condition=None) if health == Health.OK else wanted


def title(health: str) -> str:
    """The health in words, such as “running too long”; one that a newer version wrote as it is."""
    return {each.value: text for each, text in TITLES.items()}.get(health, health)


def about(row: Channel | Silence) -> str:
    """What a channel or a silence is about, in a few words."""
    if isinstance(row, Silence) and row.schedule is not None:
        return f"“{row.schedule.name}”"
    names = ", ".join(row.patterns)
    if isinstance(row, Silence):
        return names or "everything, the system too"
    if row.kind == Channel.Kind.PING:
        return f"each run of {names or 'all schedules'}"
    return f"{names or 'all schedules'} and the system" if row.of_system else names or "all schedules"


def target(channel: Channel) -> str:
    """Where its messages go; the name of a variable where that is secret."""
    return ", ".join(channel.addresses) if channel.kind == Channel.Kind.MAIL else f"CHANNEL_URL_{channel.url}"


def silence_of(schedule: PeriodicTask, now: datetime) -> Silence | None:
    """The current silence that covers a schedule; of several, the one that ends last."""
    alert = Alert(schedule=schedule, name=schedule.name, job=schedule.task)
    current = Silence.objects.filter(in_phase(now)[Phase.CURRENT]).order_by("-ends_at")
    return next((silence for silence in current if silence.covers(alert)), None)


def phase(silence: Silence, now: datetime) -> Phase:
    if silence.ends_at <= now:
        return Phase.OVER
    return Phase.CURRENT if silence.starts_at <= now else Phase.UPCOMING


def in_phase(now: datetime) -> dict[str, Q]:
    """Which silences are in which phase."""
    return {
        Phase.CURRENT: Q(starts_at__lte=now, ends_at__gt=now),
        Phase.UPCOMING: Q(starts_at__gt=now),
        Phase.OVER: Q(ends_at__lte=now),
    }
