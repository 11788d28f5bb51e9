"""Which row of django-celery-beat does a written timing mean?

    {"crontab": "30 7 * * 1-5", "zone": "Europe/Berlin"}        {"every": "15 minutes"}
    {"once": "2026-12-24T18:00:00+01:00"}       {"solar": "sunset", "latitude": 52.5, "longitude": 13.4}

Its one rule: `parse` saves nothing, and `saved` finds the row or creates it, once for two requests at once. `written`
is the way back: `parse(written(row))` means the same as the row. A crontab without a zone follows the clocks of the
site (TIME_ZONE).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from jobs.models import KINDS
from jobs.rules import durations
from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid
from jobs.rules.moments import utc
from jobs.rules.pasted import read_line
from jobs.schedules.calendar import CRONTAB_FIELDS, timing_of

MEMBERS = {
    "crontab": {"crontab", "zone"},
    "every": {"every"},
    "once": {"once"},
    "solar": {"solar", "latitude", "longitude"},
}
MOST = 2**31 - 1  # units of an interval
DEGREES = 6  # decimal places of the columns
LONGEST_LINE, LONGEST_NAME = 1000, 40  # characters


def parse(value: Mapping[str, Any]) -> Any:
    """The row that a written timing means, not saved. Raises `Invalid` with a sentence that says what to change."""
    if not isinstance(value, Mapping):
        raise Invalid(f"A timing is an object, not {type(value).__name__}: write {_EXAMPLE}.")
    kinds = [kind for kind in MEMBERS if kind in value]
    if len(kinds) != 1:
        raise Invalid(f"A timing has exactly one of {', '.join(MEMBERS)}: write {_EXAMPLE}.")
    if unknown := [name for name in value if name not in MEMBERS[kinds[0]]]:
        allowed = ", ".join(sorted(MEMBERS[kinds[0]]))
        raise Invalid(f"A timing with {kinds[0]!r} has no {str(unknown[0])[:LONGEST_NAME]!r}: choose from {allowed}.")
    row = _PARSERS[kinds[0]](value)
    timing_of(row, timezone.now())
    return row


def saved(row: Any, current: Any = None) -> Any:
    """The stored row of the same timing as `row`, which it saves if there is none.

    If `current`, the row that a schedule has, means the same, it is that one: then nothing changes.
    """
    if row.pk is not None:
        return row
    if current is not None and written(current) == written(row):
        return current
    model, columns = type(row), {field.name: getattr(row, field.name) for field in type(row)._meta.concrete_fields[1:]}
    same = model.objects.filter(**columns).order_by("pk")
    if found := same.first():
        return found
    try:
        with transaction.atomic():
            _alone_with(" ".join([model._meta.db_table, *map(str, columns.values())]))
            if (found := same.first()) is None:
                row.save(force_insert=True)
    except IntegrityError:  # a user of the admin has saved the same solar event meanwhile
        found = same.get()
    return found or row


def written(row: Any) -> dict[str, Any]:
    """The timing of a row as a plain value. Rows that mean the same are written alike."""
    kind = kind_of(row)
    if kind == "crontab":
        return {"crontab": _line(row), "zone": str(row.timezone or "")}
    if kind == "interval":
        return {"every": _text(row)}
    if kind == "clocked":
        return {"once": row.clocked_time.astimezone(UTC).isoformat()}
    return {"solar": row.event, "latitude": float(row.latitude), "longitude": float(row.longitude)}


def of(schedule: PeriodicTask) -> Any:
    """The row of a schedule's timing; None if it has none."""
    return next(filter(None, (getattr(schedule, kind) for kind in KINDS)), None)


def columns(row: Any) -> dict[str, Any]:
    """The columns of a schedule with this timing: it has no other."""
    return {**dict.fromkeys(KINDS), kind_of(row): row}


def kind_of(timing: Any) -> str:
    """The column of schedules that refers to a row like this, or to this model."""
    return next(kind for kind, model in KINDS.items() if timing is model or isinstance(timing, model))


def fitting(timing: Crontab) -> dict[str, str]:
    """The fields of a crontab as its row holds them. Raises `Invalid` if one is too long for its column."""
    fields = {name: getattr(timing, name) for name in CRONTAB_FIELDS}
    for name, text in fields.items():
        longest = CrontabSchedule._meta.get_field(name).max_length
        if len(text) > longest:
            raise Invalid(f"{text!r} is longer than {longest} characters: write it shorter, with ranges.")
    return fields


# --- reading --------------------------------------------------------------------------------------------------------


def _crontab(value: Mapping[str, Any]) -> Any:
    line, zone = value["crontab"], value.get("zone")
    zone = settings.TIME_ZONE if zone is None else zone
    if not isinstance(line, str) or not isinstance(zone, str):
        raise Invalid(f"A crontab is one line of text, and its zone a name: write {_EXAMPLE}.")
    if len(line) > LONGEST_LINE:
        raise Invalid(f"The crontab line is longer than {LONGEST_LINE} characters: write it shorter, with ranges.")
    timing = Crontab(*read_line(line), zone[:LONGEST_NAME])
    return KINDS["crontab"](**fitting(timing), timezone=zone)


def _interval(value: Mapping[str, Any]) -> Any:
    every, period = durations.split(durations.read(value["every"]))
    if abs(every) > MOST:
        raise Invalid("This interval is too long for its precision: choose whole minutes, hours or days.")
    return KINDS["interval"](every=every, period=period)


def _clocked(value: Mapping[str, Any]) -> Any:
    moment = value["once"]
    try:
        moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        moment = None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise Invalid(
            "Write the moment with its date, its time and its offset from UTC, such as 2026-12-24T18:00:00+01:00."
        )
    return KINDS["clocked"](clocked_time=utc(moment))


def _solar(value: Mapping[str, Any]) -> Any:
    event, places = value["solar"], [value.get(name) for name in ("latitude", "longitude")]
    if not isinstance(event, str) or not all(map(_is_number, places)):
        raise Invalid("A solar timing has an event, and its latitude and longitude as numbers of degrees.")
    try:
        latitude, longitude = (round(float(place), DEGREES) + 0.0 for place in places)  # type: ignore[arg-type] # checked
    except OverflowError as error:
        raise Invalid("A latitude is from -90 to 90 degrees, and a longitude from -180 to 180.") from error
    return KINDS["solar"](event=event[:LONGEST_NAME], latitude=latitude, longitude=longitude)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


_EXAMPLE = '{"crontab": "30 7 * * 1-5"} or {"every": "15 minutes"}'
_PARSERS = {"crontab": _crontab, "every": _interval, "once": _clocked, "solar": _solar}


# --- writing --------------------------------------------------------------------------------------------------------


def _line(row: Any) -> str:
    """The fields as Celery reads them; those that it cannot read as they are."""
    try:
        fields: Any = timing_of(row, timezone.now())
    except Invalid:
        fields = row
    return " ".join("".join(getattr(fields, name).split()).lower() for name in CRONTAB_FIELDS)


def _text(row: Any) -> str:
    try:
        timing: Any = timing_of(row, timezone.now())
    except Invalid:
        return f"{row.every} {row.period}"
    return durations.text(timing.every)


def _alone_with(what: str) -> None:
    """Lock these values until the transaction ends. SQLite has only one writer anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [what])
