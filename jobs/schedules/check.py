"""Can this schedule run at all? Checked before it is saved; a schedule that bypasses this check is flagged instead."""

from datetime import datetime
from typing import Any

from django_celery_beat.models import PeriodicTask

from jobs.messages.message import message_of
from jobs.models.audit import Actor
from jobs.rules.errors import Invalid
from jobs.rules.occurrences import next_occurrence
from jobs.schedules.calendar import spec_of
from jobs.secrets import refuse_passwords


def check(schedule: PeriodicTask, policy: Any, now: datetime, *, timing_changed: bool, actor: Actor | str) -> None:
    """Refuse a schedule that could never run, or whose job the actor may not schedule.

    Raises `Invalid` with a sentence that says what to change. A schedule without further due moments is refused only if
    its timing has changed: other edits are harmless.
    """
    Actor.of(actor).check_may(schedule.task)
    spec = spec_of(schedule, now)
    message = message_of(schedule, policy)
    refuse_passwords(schedule.name, schedule.description, message.args, message.kwargs, message.options)
    if schedule.enabled and timing_changed and next_occurrence(spec, now) is None:
        raise Invalid("It would never run: all its due moments are over. Choose a later time, or disable it.")
