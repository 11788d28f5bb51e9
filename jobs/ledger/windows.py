"""When does the data window of a run start? At the previous due moment of its schedule; the window ends at its own.

Its one rule: a run has one window for ever, and a repeat of the run has the same. It follows from the ledger or, for a
requested run, also from the timings in force then. It is written down (`window_start`) where it could change: in a
repeat, in a backfill, and before the rows are deleted from which it follows.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Case, F, IntegerField, OuterRef, Q, Subquery, UUIDField, When
from django.db.models.signals import pre_delete

from jobs.models import Policy, Run, RunQuerySet, Trigger
from jobs.models.prepared import Update
from jobs.rules.errors import Invalid
from jobs.rules.moments import FIRST
from jobs.schedules import past


def window_start(run: Run) -> datetime | None:
    """The start of the run's data window; None if it has none, because nothing was due before."""
    if run.window_start is not None:
        return None if run.window_start == FIRST else run.window_start
    recorded = _recorded(run)
    if recorded and run.trigger == Trigger.SCHEDULE:
        return recorded
    policy = getattr(run.schedule, "policy", None)
    return max(filter(None, (recorded, policy and _computed(policy, run.due_at))), default=None)


def written(start: datetime | None) -> datetime:
    """The start of a window as a run stores it."""
    return start or FIRST


def previous(policy: Policy, moment: datetime) -> datetime | None:
    """The last moment of a schedule before `moment` that was due, by its timings or in the ledger."""
    return window_start(Run(schedule=policy.schedule, trigger=Trigger.BACKFILL, due_at=moment))


def _recorded(run: Run) -> datetime | None:
    """The last due moment before the run's own in the ledger, which knows it under whatever timing it was due."""
    mine = Q(schedule=run.schedule_id)
    if run.schedule_id is None:
        if run.trigger != Trigger.SCHEDULE:
            return None
        mine &= Q(schedule_name=run.schedule_name)  # plain SQL has deleted the schedule; its rows have its name
    before: datetime | None = _before(run.due_at).filter(mine).values_list("moment", flat=True).first()
    return before


def _before(due_at: Any) -> Any:
    """The rows of due moments before `due_at`, the latest first, each with its last `moment` before it, if known."""
    moment = Case(When(last_due_at__lt=due_at, then=F("last_due_at")), default=F("due_at"))
    rows = Run.objects.filter(trigger=Trigger.SCHEDULE, due_at__lt=due_at)
    return rows.annotate(moment=moment).order_by("-due_at")


def _computed(policy: Policy, moment: datetime) -> datetime | None:
    try:
        return past.previous(policy, moment)
    except Invalid:
        return None


def hold(runs: Iterable[UUID]) -> None:
    """Write down the windows of these runs as the ledger has them, before rows of it are deleted.

    One by one: a statement that locks many could wait for a claim that waits for it.
    """
    for run in runs:
        _HOLD(run=run)


def connect() -> None:
    """Hold the windows of a schedule's runs when Django deletes it, and so its policy."""
    pre_delete.connect(_before_deletion, sender=Policy, dispatch_uid="jobs.ledger.windows")


def _before_deletion(instance: Policy, **_: Any) -> None:
    _LOCK(schedule=instance.pk)  # before its runs, like a claim
    if not _HOLD_ALL(schedule=instance.pk):
        return
    runs = Run.objects.filter(schedule=instance.pk)
    for first in runs.filter(window_start=None, trigger=Trigger.SCHEDULE).select_related("schedule__policy"):
        runs.filter(pk=first.pk).update(window_start=written(window_start(first)))


def _holding(runs: RunQuerySet) -> tuple[RunQuerySet, dict[str, Any]]:
    before = _before(OuterRef("due_at")).filter(schedule=OuterRef("schedule"))
    return runs.filter(window_start=None), {"window_start": Subquery(before.values("moment")[:1])}


# Prepared, because Django announces the deletion of 20,000 schedules one by one.
_SCHEDULE = {"schedule": IntegerField()}
_LOCK = Update(lambda schedule: (Policy.objects.filter(pk=schedule), {"stretch": None}), _SCHEDULE)
_HOLD_ALL = Update(lambda schedule: _holding(Run.objects.filter(schedule=schedule)), _SCHEDULE)
_HOLD = Update(lambda run: _holding(Run.objects.filter(pk=run)), {"run": UUIDField()})
