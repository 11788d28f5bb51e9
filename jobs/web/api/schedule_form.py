"""How is a schedule written in JSON? Reads the form of a request into columns; `schedule_shown` is the way back.

Its one rule: what is shown can be sent back, and then changes nothing. So the names that only answers have are accepted
and left alone, and a column keeps its text while its JSON means the same. Other unknown names are refused.

Durations are seconds. Moments are ISO 8601 with an offset. Limits: arguments or headers that nothing can read, written
by SQL, are shown as null; null leaves them alone. Numbers that SQL wrote beyond the limits of a form are refused.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from django.db import transaction
from django_celery_beat.models import PeriodicTask
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from jobs.messages.message import read
from jobs.models import LONGEST_NAME, Policy
from jobs.models.audit import Actor
from jobs.models.schedules import LONGEST
from jobs.rules.errors import Invalid
from jobs.rules.health import LATE_AFTER, LONGEST_PAUSE, MOST_FAILURES
from jobs.rules.policies import MOST_CAUGHT_UP, CatchUp, Overlap
from jobs.schedules import acts, status, timings
from jobs.web.api.routes import Moment

LARGEST = 2**31 - 1  # of an integer column
DURATIONS = frozenset(  # columns of a policy
    [
        *("catch_up_window", "jitter", "retry_delay"),
        *("late_after", "longest_runtime", "shortest_runtime", "longest_pause"),
    ]
)
AS_JSON: dict[str, type[Any]] = {"args": list, "kwargs": dict, "headers": dict}  # columns that hold JSON as text
COLUMNS = {"job": "task", "arguments": "kwargs"}  # the other columns have their own names
SHOWN_ONLY = frozenset(
    {"id", "words", "status", "next_due_at", "due", "pause", "skip_next", "source", "last_run", "health"}
)


PrintedText = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # no database holds NUL
Name = Annotated[str, Field(pattern=r"^[^\x00]*$", min_length=1, max_length=LONGEST_NAME)]
Seconds = Annotated[float, Field(ge=0, le=LONGEST.total_seconds(), allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
_DEGREES = {"type": "number", "minimum": -180, "maximum": 180}
TIMINGS: list[dict[str, Any]] = [
    {"crontab": {"type": "string", "maxLength": 1000}, "zone": {"type": "string", "maxLength": 63}},
    {"every": {"anyOf": [{"type": "string", "maxLength": 100}, {"type": "number"}]}},
    {"once": {"type": "string", "format": "date-time"}},
    {"solar": {"type": "string", "maxLength": 24}, "latitude": _DEGREES, "longitude": _DEGREES},
]
TimingForm = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "description": "A crontab (without a zone: of the site's), an interval, a moment, or an event of the sun.",
            "oneOf": [
                {
                    "type": "object",
                    "properties": each,
                    "required": [name for name in each if name != "zone"],
                    "additionalProperties": False,
                }
                for each in TIMINGS
            ],
            "examples": [{"crontab": "30 7 * * 1-5", "zone": "Europe/Berlin"}, {"every": "15 minutes"}],
        }
    ),
]


class Body(BaseModel):
    """A part of a request: no unknown names, and no value that only resembles the right one."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PolicyForm(Body):
    """The rules for due moments and runs; durations and time limits are seconds."""

    overlap: Annotated[Overlap, Field(strict=False)] = Overlap.SKIP
    catch_up: Annotated[CatchUp, Field(strict=False)] = CatchUp.LATEST
    catch_up_window: Seconds = 86_400
    catch_up_cap: Annotated[int, Field(ge=1, le=MOST_CAUGHT_UP)] = 100
    jitter: Seconds = 0
    remaining_runs: Annotated[int, Field(ge=0, le=LARGEST)] | None = None  # 0 is shown after the last run
    pause_after_failures: Annotated[int, Field(ge=1, le=1000)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 1
    retry_delay: Seconds = 30
    rerun_if_lost: bool = True
    soft_time_limit: Count | None = None
    time_limit: Count | None = None
    keep_result: bool | None = None
    late_after: Annotated[Seconds, Field(ge=1)] = LATE_AFTER.total_seconds()
    failures_allowed: Annotated[int, Field(ge=0, le=MOST_FAILURES - 1)] = 0
    longest_runtime: Annotated[Seconds, Field(ge=1)] | None = None
    shortest_runtime: Seconds | None = None
    longest_pause: Annotated[Seconds, Field(ge=60)] | None = LONGEST_PAUSE.total_seconds()


class ScheduleForm(Body):
    """The columns that a request gives; a change leaves the others alone."""

    name: Name = ""
    job: Name = ""
    arguments: dict[str, Any] | None = Field({}, validation_alias=AliasChoices("arguments", "kwargs"))
    args: list[Any] | None = Field([], description="Positional arguments, besides the named ones.")
    timing: TimingForm | None = None
    enabled: bool = True
    description: PrintedText = ""
    start_time: Moment | None = None
    expires: Moment | None = None
    one_off: bool = False
    expire_seconds: Count | None = None
    queue: Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=LONGEST_NAME)] | None = None
    priority: Annotated[int, Field(ge=0, le=255)] | None = None
    headers: dict[str, Any] | None = {}
    policy: PolicyForm | None = PolicyForm()

    @model_validator(mode="before")
    @classmethod
    def _without_the_shown(cls, given: Any) -> Any:
        """A form as it was shown has further names."""
        return {name: given[name] for name in given if name not in SHOWN_ONLY} if isinstance(given, dict) else given


class NewSchedule(ScheduleForm):
    """All columns of a schedule; one that the request leaves out has the default."""

    name: Name
    job: Name
    timing: TimingForm


@transaction.atomic
def save(schedule: PeriodicTask, form: ScheduleForm, actor: Actor, *, whole: bool) -> None:
    """Save the schedule with the columns of the form, or nothing, also no new row of its timing. Raises `Invalid`."""
    columns, policy = given(form, whole=whole)
    changes = changed(schedule, columns)
    for name, value in changes.items():
        setattr(schedule, name, value)
    acts.save(schedule, changed_rules(schedule, policy), actor, changes if schedule.pk else None)


def given(form: ScheduleForm, *, whole: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of the schedule and of its policy that the form gives: all of them, or those that it names."""
    columns = _values(form, whole=whole)
    if "once" in (form.timing or {}) and "one_off" not in form.model_fields_set:
        columns["one_off"] = True
    policy = columns.pop("policy", None)
    rules = _values(policy, whole=whole) if policy else {}
    rules |= {name: timedelta(seconds=rules[name]) for name in DURATIONS & rules.keys() if rules[name] is not None}
    return {COLUMNS.get(name, name): value for name, value in columns.items()}, rules


def changed(schedule: PeriodicTask, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row among these whose value differs, with a stored row of the timing. Raises `Invalid`."""
    changes: dict[str, Any] = {}
    for name, value in columns.items():
        if name == "timing":
            changes |= _timing(schedule, value)
        elif name in AS_JSON:
            if value is not None and _sorted(value) != _sorted(stored(schedule, name)):
                changes[name] = json.dumps(value, ensure_ascii=False)
        elif value != getattr(schedule, name):
            changes[name] = value
    return changes


def changed_rules(schedule: PeriodicTask, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of its policy among these whose value differs."""
    policy = status.policy_of(schedule) or Policy()
    return {name: value for name, value in rules.items() if value != getattr(policy, name)}


def stored(schedule: PeriodicTask, column: str) -> Any:
    """The value of a column of JSON; None if it cannot be read."""
    try:
        return read(getattr(schedule, column), column, AS_JSON[column])
    except Invalid:
        return None


def _values(form: BaseModel, *, whole: bool) -> dict[str, Any]:
    names = type(form).model_fields if whole else form.model_fields_set
    return {name: getattr(form, name) for name in names}


def _timing(schedule: PeriodicTask, value: Mapping[str, Any] | None) -> dict[str, Any]:
    current = timings.of(schedule)
    if value is None or (current is not None and value == timings.written(current)):
        return {}
    row = timings.saved(timings.parse(value), current)
    return {} if row == current else timings.columns(row)


def _sorted(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    except RecursionError:
        raise Invalid("The arguments and headers are nested too deeply: write them flatter.") from None
