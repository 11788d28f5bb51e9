"""How is a schedule doing, and what comes next? Plain words, and the next due moments with what speaks against each.

Its one rule: it reads what beat has computed and decides nothing. Limit: a moment that may run can still be skipped,
because an earlier run may be unfinished then.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs.models import Policy, Run, Trigger
from jobs.rules import words
from jobs.rules.errors import Invalid
from jobs.rules.policies import Rule, foresee
from jobs.schedules import calendar

BEING_COMPUTED = "being computed: beat reads it within seconds"
GONE = "disabled, because its entry is gone from the settings"
# Conditions by which every door filters lists. A schedule that has no policy yet meets none about policies.
CONDITIONS = {
    "enabled": Q(enabled=True),
    "paused": Q(policy__in=Policy.objects.paused()),
    "flagged": Q(policy__invalid_reason__gt=""),  # it cannot run
    "from_settings": Q(policy__entry__gt=""),
    "removed": Q(policy__removed_at__isnull=False),
}


def policy_of(schedule: PeriodicTask) -> Policy | None:
    """The policy of a schedule; None if the schedule was created a moment ago."""
    policy: Policy | None = getattr(schedule, "policy", None)
    return policy


def with_last_run(schedules: QuerySet[PeriodicTask], *columns: str) -> QuerySet[Any]:
    """Add columns of the last run that is not one of a backfill, each as `last_run_NAME`; None if there is none."""
    latest = Run.objects.filter(schedule=OuterRef("pk")).exclude(trigger=Trigger.BACKFILL).order_by("-due_at")
    found: QuerySet[Any] = schedules.annotate(
        **{f"last_run_{name}": Subquery(latest.values(name)[:1]) for name in columns}
    )
    return found


def last_runs(schedules: Iterable[Any]) -> dict[Any, Run]:
    """The last runs of schedules that have `last_run_id`, by the ids of the runs."""
    return Run.objects.in_bulk({schedule.last_run_id for schedule in schedules} - {None})


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
