"""Can this schedule run at all? Checked before it is saved; a schedule that bypasses this check is flagged instead."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from django_celery_beat.models import PeriodicTask

from jobs.messages.message import Message, message_of
from jobs.models import KINDS
from jobs.models.audit import Actor
from jobs.rules.errors import Invalid
from jobs.rules.occurrences import next_occurrence
from jobs.schedules.calendar import spec_of
from jobs.secrets import refuse_passwords

TIMING = {*KINDS, "start_time", "expires", "enabled"}  # the columns that decide whether it is ever due


def check(schedule: PeriodicTask, policy: Any, now: datetime, *, timing_changed: bool, actor: Actor | str) -> None:
    """Refuse a schedule that could never run, or whose job the actor may not schedule.

    Raises `Invalid` with a sentence that says what to change. A schedule without further due moments is refused only if
    its timing has changed: other edits are harmless.
    """
    Actor.of(actor).check_may(schedule.task, schedule=schedule.pk)
    spec = spec_of(schedule, now)
    check_job(schedule, policy)
    if schedule.enabled and timing_changed and next_occurrence(spec, now) is None:
        raise Invalid("It would never run: all its due moments are over. Choose a later time, or disable it.")


def check_job(schedule: PeriodicTask, policy: Any) -> Message:
    """The message of the schedule's runs. Raises `Invalid` if there is none, or if it holds a password."""
    message = message_of(schedule, policy)
    refuse_passwords(schedule.name, schedule.description, message.args, message.kwargs, message.options)
    return message


def problem_of_policy(columns: Mapping[str, Any], changed: Collection[str]) -> tuple[str, str] | None:
    """The column of a policy that contradicts the others, and what to do; `changed` are those that the user sets."""
    soft, hard = columns.get("soft_time_limit"), columns.get("time_limit")
    if soft and hard and soft >= hard:
        return "soft_time_limit", f"Enter less than {hard} s: at the time limit the process is killed."
    if columns.get("remaining_runs") == 0 and "remaining_runs" in changed:
        return "remaining_runs", "Enter at least 1, or disable the schedule. Leave this empty for no limit."
    return None
