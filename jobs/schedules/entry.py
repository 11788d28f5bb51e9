"""What does one entry of CELERY_BEAT_SCHEDULE ask for? Reads it as columns of a schedule and its policy.

Its one rule: it refuses all that it does not understand exactly, with a sentence that says what to change. It reads;
`entries` writes. Limit: a relative interval of 90 minutes has 90 minutes here, and an hour in Celery, which rounds it
down.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from celery import schedules
from django.utils import timezone
from django_celery_beat.tzcrontab import TzAwareCrontab

from jobs.messages.message import STORED_OPTIONS
from jobs.models import KINDS, LONGEST_NAME
from jobs.rules import durations
from jobs.rules.errors import Invalid
from jobs.schedules.calendar import CRONTAB_FIELDS, timing_of

MEMBERS = {"task", "schedule", "args", "kwargs", "options", "relative", "enabled", "one_off", "description"}
UNDERSTOOD = (TzAwareCrontab, schedules.crontab, schedules.solar, schedules.schedule)

# Options with a column in the schedule, options with a column in its policy, and options stored as they are.
OF_SCHEDULE = {"queue", "exchange", "routing_key", "priority", "headers", "expires"}
OF_POLICY = {"time_limit", "ignore_result"}
# Options that say how often a process tries to publish. The ledger publishes until a worker takes the run.
MET = {"retry", "retry_policy"}
FOLLOWING = ("link", "link_error", "chain", "chord", "group_id", "group_index", "root_id", "parent_id", "add_to_parent")
WHY_NOT = {
    **dict.fromkeys(
        ("countdown", "eta", "DelaySeconds", "delay_seconds"),
        "a run starts when it is due: set its timing, or a jitter",
    ),
    **dict.fromkeys(FOLLOWING, "let the job start what follows it: docs/workflows.md"),
    "task_id": "each run has an id of its own",
    "MessageDeduplicationId": "the broker would drop the messages of later runs",
}


def read(name: str, entry: Mapping[str, Any], app: Any) -> dict[str, Any]:
    """The entry as columns. Raises `Invalid` with a sentence that says what to change."""
    if unknown := sorted(set(entry) - MEMBERS):
        raise Invalid(f"unknown keys: {', '.join(unknown)}; choose from {', '.join(sorted(MEMBERS))}.")
    if len(name) > LONGEST_NAME:
        raise Invalid(f"its name is longer than {LONGEST_NAME} characters; give it a shorter one.")
    if not isinstance(entry.get("args") or (), (list, tuple)) or not isinstance(entry.get("kwargs") or {}, dict):
        raise Invalid("its args must be a list or tuple, and its kwargs a dict.")
    options = {name: value for name, value in dict(entry.get("options") or {}).items() if value is not None}
    relative = bool(entry.get("relative") or getattr(entry.get("schedule"), "relative", False))
    kind, timing = _read_timing(entry.get("schedule"), app)
    timing_of(KINDS[kind](**timing), timezone.now(), str(app.timezone) if relative else "")
    return {
        "timing": (kind, timing),
        "relative": relative,
        "zone": app.timezone if relative else None,
        "schedule": {
            "task": entry.get("task", ""),
            "args": _json(list(entry.get("args") or ()), "args"),
            "kwargs": _json(dict(entry.get("kwargs") or {}), "kwargs"),
            "enabled": bool(entry.get("enabled", True)),
            "one_off": bool(entry.get("one_off", False)),
            "description": entry.get("description", ""),
            **_read_columns(options, app),
        },
        "policy": _read_policy(options),
    }


def as_text(columns: dict[str, Any]) -> str:
    """The columns as they are stored, to notice when an entry changes."""
    return json.dumps(columns, sort_keys=True, default=str)


def wall_zone_of(columns: dict[str, Any]) -> str:
    """The zone whose midnights a relative interval of days keeps; empty for any other."""
    kind, values = columns["timing"]
    return str(columns["zone"]) if columns["relative"] and kind == "interval" and values["period"] == "days" else ""


def _read_timing(schedule: Any, app: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(schedule, (int, float, timedelta)):
        schedule = schedules.schedule(schedule, app=app)
    own = _check_understood(schedule)
    if isinstance(schedule, schedules.crontab):
        fields = {field: _field(getattr(schedule, f"_orig_{field}")) for field in CRONTAB_FIELDS}
        zone = str(schedule.tz if "tz" in own else app.timezone)
        read: Any = timing_of(KINDS["crontab"](**fields, timezone=zone), timezone.now())
        return "crontab", {field: getattr(read, field) for field in CRONTAB_FIELDS} | {"timezone": zone}
    if isinstance(schedule, schedules.solar):
        place = {"latitude": round(schedule.lat, 6), "longitude": round(schedule.lon, 6)}  # as precise as the columns
        return "solar", {"event": schedule.event, **place}
    seconds = vars(schedule)["run_every"].total_seconds()
    if seconds < 1 or seconds % 1:
        raise Invalid(f"its interval is {seconds:g} s; choose whole seconds, one or more.")
    every, period = durations.split(timedelta(seconds=seconds))
    return "interval", {"every": every, "period": period}


def _check_understood(schedule: Any) -> set[str]:
    """Refuse a schedule that decides by itself when it is due; returns the names that its own class or it defines."""
    known: Any = next((kind for kind in UNDERSTOOD if isinstance(schedule, kind)), None)
    if known is None:
        raise Invalid(f"{schedule!r} is not a supported schedule; use seconds, a timedelta, a crontab or solar.")
    ancestors = type(schedule).__mro__
    classes = ancestors[: ancestors.index(known)]
    of_class = {name for kind in classes for name in vars(kind) if not name.startswith("__")}
    of_itself = set(vars(schedule))
    changed = {name for name in of_class - {"tz"} if hasattr(known, name) or name in of_itself}
    changed |= {name for name in of_itself if callable(getattr(known, name, None))}
    if schedule.nowfun and known is not TzAwareCrontab:
        changed.add("nowfun")
    if changed:
        raise Invalid(
            f"its schedule, {type(schedule).__name__}, changes when Celery's {known.__name__} is due:"
            f" {', '.join(sorted(changed))}. Use Celery's own, and let the job check the rest."
        )
    return of_class | of_itself


def _field(value: Any) -> str:
    """A crontab field as text; Celery also accepts numbers and collections of numbers."""
    return str(value) if isinstance(value, (str, int)) else ",".join(map(str, sorted(value)))


def _read_columns(options: dict[str, Any], app: Any) -> dict[str, Any]:
    expires = options.get("expires")
    end = expires if isinstance(expires, datetime) else None
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else None if end else expires
    return {
        "queue": getattr(options.get("queue"), "name", options.get("queue")),
        "exchange": getattr(options.get("exchange"), "name", options.get("exchange")),
        "routing_key": options.get("routing_key"),
        "priority": options.get("priority"),
        "headers": _json(dict(options.get("headers") or {}), "headers"),
        "expires": timezone.make_aware(end, app.timezone) if end and timezone.is_naive(end) else end,
        "expire_seconds": None if seconds is None else max(1, int(seconds)),
    }


def _read_policy(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(options) - OF_SCHEDULE - OF_POLICY - STORED_OPTIONS - MET):
        reasons = (f"{name}: {WHY_NOT.get(name, 'set it on the task')}" for name in unknown)
        raise Invalid(f"a schedule cannot store the option {'; '.join(reasons)}.")
    further = {name: options[name] for name in sorted(STORED_OPTIONS & set(options))}
    _json(further, "options")
    ignored = options.get("ignore_result")
    return {
        "time_limit": options.get("time_limit"),
        "keep_result": None if ignored is None else not ignored,
        "options": further or None,
    }


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"its {what} cannot be written as JSON: {error}.") from error
