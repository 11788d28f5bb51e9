"""When may a run start that waits for another one to end?

Its one rule: runs that are held form groups, those of a schedule and those of each backfill; a group never has more
runs under way than it may. Whoever releases locks the schedule's policy first, so two beats never release too many.
"""

from datetime import datetime
from uuid import UUID

from django.db import transaction

from jobs.ledger import outcomes
from jobs.ledger.new_runs import expires_at
from jobs.models import UNSTARTED, Backfill, Policy, Run, State, database_now


def release() -> int:
    """Let every held run start that may, the oldest of its group first; returns how many. For the outbox to send."""
    now = database_now()
    waiting = Run.objects.waiting_turn()
    orphans = waiting.filter(schedule=None)
    outcomes.end(orphans, UNSTARTED, State.CANCELLED, reason="cancelled: its schedule was deleted")
    groups = waiting.filter(schedule__isnull=False).values_list("schedule", "backfill").distinct()
    return sum(_release(schedule, backfill, now) for schedule, backfill in groups)


def _release(schedule: int, backfill: UUID | None, now: datetime) -> int:
    with transaction.atomic():
        mine = Policy.objects.filter(pk=schedule).select_related("schedule")
        policy = mine.select_for_update(of=("self",), skip_locked=True).first()
        if policy is None:  # somebody else is at it
            return 0
        group = Run.objects.active().filter(schedule=schedule, backfill=backfill)
        room = _room(backfill) - group.exclude(id__in=group.waiting_turn()).count()
        chosen = list(group.waiting_turn().order_by("due_at").values_list("id", flat=True)[: max(0, room)])
        seconds = None if backfill else policy.schedule.expire_seconds
        changes = {"not_before": now, "expires_at": _expires_at(seconds, now)}
        return Run.objects.filter(id__in=chosen).waiting_turn().update(**changes)


def _expires_at(seconds: int | None, now: datetime) -> datetime | None:
    try:
        return expires_at(seconds, now)
    except OverflowError:  # beyond every calendar it never comes
        return None


def _room(backfill: UUID | None) -> int:
    return Backfill.objects.values_list("at_once", flat=True).get(id=backfill) if backfill else 1
