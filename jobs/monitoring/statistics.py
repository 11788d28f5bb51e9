"""How are the runs doing, in a few figures? Computed at most every 30 seconds, for whoever asks.

Its one rule: what it costs follows what ran lately and how many schedules there are, never how long the ledger
remembers: each question about runs has an index that leads to the recent ones.

Limits: a schedule that was saved, deleted or changed in the admin shows at once; what beat, `QuerySet.update()` or SQL
changed shows when the figures are too old.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from django.db.models import Count, F, Q
from django.db.models.signals import post_delete, post_save
from django_celery_beat.models import PeriodicTask

from jobs.cache import shared
from jobs.models import ACTIVE, TERMINAL, Policy, Run, RunQuerySet, State, Trigger, database_now
from jobs.models.schedules import PAUSED
from jobs.schedules.acts import acted

NAME = "statistics"
SECONDS = 30  # for which the figures are remembered
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SAMPLE = 10_000  # runs, the latest, that speak for an hour


@shared.cached(NAME, seconds=SECONDS)
def figures() -> dict[str, Any]:
    """Runs by state, schedules by condition, and how late runs started; plain JSON."""
    now = database_now()
    return {
        "generated_at": now.isoformat(),
        "active": _by_state(Run.objects.active(), ACTIVE),
        "ended_in_24_hours": _by_state(Run.objects.filter(finished_at__gt=now - DAY), TERMINAL),
        "late_by_seconds_in_1_hour": _lateness(now - HOUR),
        "schedules": _schedules(),
    }


def invalidate() -> None:
    """Somebody has changed schedules: whoever asks next gets new figures."""
    shared.invalidate(NAME)


def connect() -> None:
    """Listen to changes of schedules."""
    for model in (PeriodicTask, Policy):
        for signal in (post_save, post_delete):
            signal.connect(_on_change, sender=model, dispatch_uid=f"jobs.monitoring.statistics.{model.__name__}")
    acted.connect(_on_change, dispatch_uid="jobs.monitoring.statistics.acts")


def _on_change(**_: Any) -> None:
    invalidate()


def _by_state(runs: RunQuerySet, states: Collection[State]) -> dict[str, int]:
    """How many are in each state (indexes run_active and run_finished)."""
    counts = dict(runs.order_by().values_list("state").annotate(Count("pk")))
    return {state.value: counts.get(state, 0) for state in sorted(states)}


def _lateness(since: datetime) -> dict[str, Any]:
    """By how much scheduled runs that ended since then started late, at their first attempt (index run_finished)."""
    ended = Run.objects.filter(finished_at__gt=since, trigger=Trigger.SCHEDULE, attempt=1, started_at__isnull=False)
    late = ended.order_by("-finished_at").values_list(F("started_at") - F("due_at"), flat=True)[:SAMPLE]
    seconds = sorted(length.total_seconds() for length in late)
    return {"runs": len(seconds), "p50": _percentile(seconds, 0.50), "p95": _percentile(seconds, 0.95)}


def _percentile(ordered: list[float], share: float) -> float | None:
    """The smallest value that so large a share of all does not exceed."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


def _schedules() -> dict[str, int]:
    """How many there are in each condition; reads them all, but of each only a few columns."""
    enabled = Q(schedule__enabled=True)
    conditions = {"paused": enabled & PAUSED, "flagged": enabled & ~Q(invalid_reason="")}
    counts = {name: Count("pk", filter=condition) for name, condition in conditions.items()}
    total = PeriodicTask.objects.aggregate(total=Count("pk"), enabled=Count("pk", filter=Q(enabled=True)))
    return {**total, **Policy.objects.aggregate(**counts)}
