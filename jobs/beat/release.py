"""When may a run start that waits for another one to end?

Its one rule: waiting runs form groups, one for each schedule and one for each backfill; a group never has more
unfinished released runs than it may. Beat locks the schedule's policy first, so two beats never release too many.
"""

from datetime import datetime
from uuid import UUID

from django.db import transaction

from jobs.ledger import outcomes
from jobs.ledger.new_runs import expires_at
from jobs.models import UNSTARTED, Backfill, Policy, Run, State, database_now


def release() -> int:
    """Release every run whose turn has come, the oldest of its group first; returns how many. The outbox sends them."""
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
        if policy is None:  # another transaction has locked it
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
    except OverflowError:  # a moment after the year 9999 never comes
        return None


def _room(backfill: UUID | None) -> int:
    return Backfill.objects.values_list("at_once", flat=True).get(id=backfill) if backfill else 1
