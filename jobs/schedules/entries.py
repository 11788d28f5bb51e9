"""Which schedules does the code define? Beat installs the entries of CELERY_BEAT_SCHEDULE when it starts.

Its one rule: each version of an entry is written once. Edits in the admin hold until the entry changes, and a changed
entry never enables, disables, pauses or resumes an existing schedule. A schedule whose entry is gone is deleted. An
entry that cannot be installed stops no other entry, and its schedule stays as it was installed last.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery import schedules
from celery.utils.time import delta_resolution
from django.core.exceptions import ValidationError
from django.db import Error as DatabaseError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs.messages import discovery
from jobs.models import LONGEST_NAME, Policy
from jobs.rules.errors import Invalid
from jobs.schedules.calendar import CRONTAB_FIELDS, KINDS

UNITS = (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1))
MEMBERS = {"task", "schedule", "args", "kwargs", "options", "relative", "enabled", "one_off", "description"}
# Options with a column in the schedule, options with a column in its policy, and options stored as they are.
OF_SCHEDULE = {"queue", "exchange", "routing_key", "priority", "headers", "expires"}
OF_POLICY = {"time_limit", "ignore_result"}
KEPT = {"soft_time_limit", "serializer", "compression", "shadow", "delivery_mode"}


# An entry for it without arguments gives way to a schedule that operators make for it, or call so.
CLEAN_UP = "jobs.cleanup"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many schedules were created, changed or deleted, and the entries that were refused, with the reasons."""

    changed: int
    refused: dict[str, str]


# Errors from reading an entry that does not follow Celery's documentation.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def install(app: Any) -> Outcome:
    """Write the entries that changed since the last time, and delete the schedules whose entry is gone.

    Two beats may do this at once: the second writes the same values again, or finds that the first has written them.
    """
    entries = _entries(app)
    known = dict(Policy.objects.exclude(entry="").values_list("schedule__name", "entry"))
    changed, refused = 0, {}
    for name, entry in entries.items():
        try:
            changed += _install(name, entry, known.get(name, ""), app)
        except (Invalid, ValidationError, DatabaseError, *UNREADABLE) as error:
            refused[name] = str(error) or repr(error)
    # A broken module may have added an entry that is missing now.
    gone = set() if discovery.broken(app) else known.keys() - entries.keys()
    _, deleted = PeriodicTask.objects.filter(name__in=gone).exclude(policy__entry="").delete()
    return Outcome(changed + deleted.get(PeriodicTask._meta.label, 0), refused)


def _entries(app: Any) -> dict[str, Mapping[str, Any]]:
    """All entries by name, with those of `add_periodic_task` and Celery's own entry that deletes old results."""
    discovery.load(app)
    app.finalize()
    entries = dict(app.conf.beat_schedule)
    if app.conf.result_expires and not app.backend.supports_autoexpire:
        cleanup = {"task": "celery.backend_cleanup", "schedule": schedules.crontab("0", "4", "*")}
        entries.setdefault("celery.backend_cleanup", {**cleanup, "options": {"expires": 12 * 3600}})
    by_default = {name for name, each in entries.items() if each.get("task") == CLEAN_UP and not each.get("kwargs")}
    if PeriodicTask.objects.filter(Q(task=CLEAN_UP) | Q(name__in=by_default), policy__entry="").exists():
        entries = {name: entries[name] for name in entries.keys() - by_default}
    return entries


def _install(name: str, entry: Mapping[str, Any], known: str, app: Any) -> bool:
    columns = _read(name, entry, app)
    text = json.dumps(columns, sort_keys=True, default=str)
    if text == known:
        return False
    try:
        with transaction.atomic():
            _write(name, columns, text)
    except (IntegrityError, ValidationError):
        if not Policy.objects.filter(schedule__name=name, entry=text).exists():  # else another beat was faster
            raise
        return False
    return True


def _write(name: str, columns: dict[str, Any], text: str) -> None:
    schedule = PeriodicTask.objects.select_for_update().filter(name=name).first() or PeriodicTask(name=name)
    if schedule.pk is not None:
        columns["schedule"].pop("enabled")
    kind, timing = columns["timing"]
    for field, value in {**columns["schedule"], **dict.fromkeys(KINDS), kind: _timing(kind, timing)}.items():
        setattr(schedule, field, value)
    relative = columns["relative"] and kind == "interval"  # crontabs follow the clock anyway
    schedule.start_time = _aligned(timing, columns["zone"]) if relative else None
    schedule.clean_fields()
    schedule.save()
    Policy.objects.filter(schedule=schedule).update(entry=text, **columns["policy"])


def _timing(kind: str, values: dict[str, Any]) -> Any:
    found = KINDS[kind].objects.filter(**values).first()
    return found or KINDS[kind].objects.create(**values)


def _aligned(interval: dict[str, Any], zone: Any) -> datetime:
    """The start of the current day, hour, minute or second, the unit of the interval, in the app's time zone."""
    unit = timedelta(**{interval["period"]: 1})
    return delta_resolution(datetime.now(zone), unit)


# --- reading an entry -----------------------------------------------------------------------------------------------


def _read(name: str, entry: Mapping[str, Any], app: Any) -> dict[str, Any]:
    """The entry as columns. Raises `Invalid` with a sentence that says what to change."""
    if unknown := sorted(set(entry) - MEMBERS):
        raise Invalid(f"unknown keys: {', '.join(unknown)}; choose from {', '.join(sorted(MEMBERS))}.")
    if len(name) > LONGEST_NAME:
        raise Invalid(f"its name is longer than {LONGEST_NAME} characters; give it a shorter one.")
    if not isinstance(entry.get("args") or (), (list, tuple)) or not isinstance(entry.get("kwargs") or {}, dict):
        raise Invalid("its args must be a list or tuple, and its kwargs a dict.")
    options = dict(entry.get("options") or {})
    relative = bool(entry.get("relative") or getattr(entry.get("schedule"), "relative", False))
    return {
        "timing": _read_timing(entry.get("schedule"), app),
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


def _read_timing(schedule: Any, app: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(schedule, (int, float, timedelta)):
        schedule = schedules.schedule(schedule, app=app)
    if isinstance(schedule, schedules.crontab):
        fields = {field: _field(getattr(schedule, f"_orig_{field}")) for field in CRONTAB_FIELDS}
        return "crontab", {**fields, "timezone": str(vars(schedule).get("tz") or app.timezone)}
    if isinstance(schedule, schedules.solar):
        place = {"latitude": round(schedule.lat, 6), "longitude": round(schedule.lon, 6)}  # as precise as the columns
        return "solar", {"event": schedule.event, **place}
    if type(schedule) is not schedules.schedule:
        raise Invalid(f"{schedule!r} is not a supported schedule; use seconds, a timedelta, a crontab or solar.")
    seconds = vars(schedule)["run_every"].total_seconds()
    if seconds < 1 or seconds % 1:
        raise Invalid(f"its interval is {seconds:g} s; choose whole seconds, one or more.")
    period, length = next((period, length) for period, length in UNITS if seconds % length == 0)
    return "interval", {"every": int(seconds // length), "period": period}


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
    if unknown := sorted(set(options) - OF_SCHEDULE - OF_POLICY - KEPT):
        raise Invalid(f"a schedule cannot store the option {', '.join(unknown)}; set it on the task.")
    further = {name: options[name] for name in sorted(KEPT & set(options))}
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
