"""Which columns of a schedule do people decide about? They are what an audit entry shows before and after an act.

Its one rule: it reads plain columns in one query, so it also reads a schedule whose timing cannot be computed.
"""

from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask

from jobs.models.audit import Changed
from jobs.schedules.calendar import CRONTAB_FIELDS
from jobs.schedules.timings import kind_of

OWN = (
    *("name", "task", "args", "kwargs", "enabled", "one_off", "start_time", "expires", "description"),
    *("queue", "exchange", "routing_key", "headers", "priority", "expire_seconds"),
)
# The columns of a policy that people set; an act of its own sets a pause.
EDITED = frozenset(
    [
        *("overlap", "catch_up", "catch_up_window", "catch_up_cap", "jitter", "remaining_runs", "skip_next"),
        *("pause_after_failures", "max_attempts", "retry_delay", "rerun_if_lost", "soft_time_limit", "time_limit"),
        *("keep_result", "late_after", "failures_allowed", "longest_runtime", "shortest_runtime", "longest_pause"),
    ]
)
PAUSE = ("paused_at", "paused_until", "paused_by", "pause_reason", "pause_catch_up")
OF_POLICY = (*sorted(EDITED), *PAUSE)
OF_TIMING = {
    "crontab": (*CRONTAB_FIELDS, "timezone"),
    "interval": ("every", "period"),
    "solar": ("event", "latitude", "longitude"),
    "clocked": ("clocked_time",),
}
_PATHS = (
    *("pk", *OWN, *(f"policy__{name}" for name in OF_POLICY)),
    *(f"{kind}__{name}" for kind, names in OF_TIMING.items() for name in names),
)


def of(schedules: QuerySet[PeriodicTask]) -> dict[int, dict[str, Any]]:
    """The columns of these schedules as plain JSON, by their keys. A pause that is over is still in its columns."""
    return {row["pk"]: _columns(row) for row in schedules.order_by("pk").values(*_PATHS)}


def changed(before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]]) -> list[Changed]:
    """The schedules of two snapshots, for their audit entries."""
    keys = sorted(before.keys() | after.keys())
    return [Changed(key, (after.get(key) or before[key])["name"], before.get(key), after.get(key)) for key in keys]


def of_timing(row: Any) -> dict[str, Any] | None:
    """The columns of a crontab, an interval, a solar event or a clocked moment."""
    return row and {name: _text(getattr(row, name)) for name in OF_TIMING[kind_of(row)]}


def key_of(row: Any) -> str:
    """What tells a timing apart from those of other kinds."""
    return f"{kind_of(row)} {row.pk}"


def _text(value: Any) -> Any:
    plain = _plain(value)
    return plain if isinstance(plain, int) else str(plain)


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    columns = {name: _plain(row[name]) for name in OWN}
    columns |= {name: _plain(row[f"policy__{name}"]) for name in OF_POLICY}
    for kind, names in OF_TIMING.items():
        parts = [row[f"{kind}__{name}"] for name in names]
        columns[kind] = None if parts[0] is None else " ".join(str(_plain(part)) for part in parts)
    return columns


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
    return value
