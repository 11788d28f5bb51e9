"""How are the runs doing, in a few figures? They are computed at most every 30 seconds and cached for all callers.

Its one rule: the cost depends on the recent runs and the number of schedules, never on the age of the ledger. Each
query on runs finds the recent ones by an index.

Limits: a schedule that is saved, deleted or changed by an act (jobs/schedules/acts.py) shows at once. Changes by beat,
`QuerySet.update()` or SQL show when the figures expire.
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
SECONDS = 30  # lifetime of the figures in the cache
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SAMPLE = 10_000  # the newest runs, as a sample of the hour


def _fits(value: Any) -> bool:
    """Whether a cached value has the shape of the figures."""
    return isinstance(value, dict) and isinstance(at := value.get("generated_at"), str) and at.isprintable()


@shared.cached(NAME, seconds=SECONDS, fits=_fits)
def figures() -> dict[str, Any]:
    """Runs by state, schedules by condition, and how late runs started, as plain JSON."""
    now = database_now()
    return {
        "generated_at": now.isoformat(),
        "active": _by_state(Run.objects.active(), ACTIVE),
        "ended_in_24_hours": _by_state(Run.objects.filter(finished_at__gt=now - DAY), TERMINAL),
        "late_by_seconds_in_1_hour": _lateness(now - HOUR),
        "schedules": _schedules(),
    }


def connect() -> None:
    """Invalidate the figures after each saved or deleted schedule or policy, and after each act."""
    for model in (PeriodicTask, Policy):
        for signal in (post_save, post_delete):
            signal.connect(_on_change, sender=model, dispatch_uid=f"jobs.monitoring.statistics.{model.__name__}")
    acted.connect(_on_change, dispatch_uid="jobs.monitoring.statistics.acts")


def _on_change(**_: Any) -> None:
    shared.invalidate(NAME)


def _by_state(runs: RunQuerySet, states: Collection[State]) -> dict[str, int]:
    """The number of runs in each state (indexes run_active and run_finished)."""
    counts = dict(runs.order_by().values_list("state").annotate(Count("pk")))
    return {state.value: counts.get(state, 0) for state in sorted(states)}


def _lateness(since: datetime) -> dict[str, Any]:
    """How late scheduled runs that ended since then started, first attempts only (index run_finished)."""
    ended = Run.objects.filter(finished_at__gt=since, trigger=Trigger.SCHEDULE, attempt=1, started_at__isnull=False)
    late = ended.order_by("-finished_at").values_list(F("started_at") - F("due_at"), flat=True)[:SAMPLE]
    seconds = sorted(length.total_seconds() for length in late)
    return {"runs": len(seconds), "p50": _percentile(seconds, 0.50), "p95": _percentile(seconds, 0.95)}


def _percentile(ordered: list[float], share: float) -> float | None:
    """The smallest value that at least this share of all values does not exceed."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


def _schedules() -> dict[str, int]:
    """The number of schedules in each condition. Reads a few columns of every schedule."""
    enabled = Q(schedule__enabled=True)
    conditions = {"paused": enabled & PAUSED, "flagged": enabled & ~Q(invalid_reason="")}
    counts = {name: Count("pk", filter=condition) for name, condition in conditions.items()}
    total = PeriodicTask.objects.aggregate(total=Count("pk"), enabled=Count("pk", filter=Q(enabled=True)))
    return {**total, **Policy.objects.aggregate(**counts)}
