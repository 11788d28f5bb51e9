"""How is a schedule doing, and what comes next? Plain words, and the next due moments with what speaks against each.

Its one rule: it reads what beat has computed and decides nothing. Limit: a moment that may run can still be skipped,
because an earlier run may be unfinished then.
"""

from datetime import datetime

from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs.models import Policy
from jobs.rules import words
from jobs.rules.errors import Invalid
from jobs.rules.policies import Rule, foresee
from jobs.schedules import calendar

BEING_COMPUTED = "being computed: beat reads it within seconds"
GONE = "disabled, because its entry is gone from the settings"


def policy_of(schedule: PeriodicTask) -> Policy | None:
    """The policy of a schedule; None if the schedule was created a moment ago."""
    policy: Policy | None = getattr(schedule, "policy", None)
    return policy


def sentence(schedule: PeriodicTask, now: datetime) -> str:
    """Whether the schedule runs and, if not, why."""
    policy = policy_of(schedule)
    if policy is None:
        return BEING_COMPUTED
    if policy.invalid_reason:
        return f"cannot run: {policy.invalid_reason}"
    if policy.pause and policy.pause.covers(now):
        return policy.pause.sentence
    if not schedule.enabled:
        return GONE if policy.removed_at else "disabled"
    return "ok" if policy.next_due_at else "no further runs"


def in_words(schedule: PeriodicTask, now: datetime) -> str:
    """The timing in plain words, with its start and end; empty if it cannot be computed."""
    policy = policy_of(schedule)
    try:
        spec = calendar.spec_of(schedule, now, policy.wall_zone if policy else "")
    except Invalid:
        return ""
    return words.in_words(spec, timezone.get_current_timezone_name())


def upcoming(schedule: PeriodicTask, number: int) -> list[tuple[datetime, str]]:
    """The next due moments up to its last run, each with the reason to skip it (empty: it runs)."""
    policy = policy_of(schedule)
    if policy is None:
        return []
    rule = Rule.of(policy, one_off=schedule.one_off)
    return list(foresee(rule, calendar.upcoming(policy, number)))
