"""When does the data window of a run start? At the previous due moment of its schedule; the window ends at its own.

Its one rule: a run has one window for ever, and a repeat of the run has the same. A scheduled run's follows from the
ledger, whatever was edited since, at no cost to the claim; requested runs and repeats store theirs (`window_start`).
"""

from datetime import datetime

from django.db.models import Case, F, Q, When

from jobs.models import Policy, Run, Trigger
from jobs.rules.errors import Invalid
from jobs.rules.moments import FIRST
from jobs.schedules import past


def window_start(run: Run) -> datetime | None:
    """The start of the run's data window; None if it has none, because nothing was due before."""
    if run.window_start is not None:
        return None if run.window_start == FIRST else run.window_start
    policy = getattr(run.schedule, "policy", None)
    recorded, deleted_until = _recorded(run), policy.forgotten_until if policy else None
    if deleted_until and deleted_until < run.due_at:  # the last of the runs that the clean-up has deleted
        recorded = max(filter(None, (recorded, deleted_until)))
    if recorded and run.trigger == Trigger.SCHEDULE and (deleted_until is None or deleted_until < run.due_at):
        return recorded
    return max(filter(None, (recorded, policy and _computed(policy, run.due_at))), default=None)


def written(start: datetime | None) -> datetime:
    """The start of a window as a run stores it."""
    return start or FIRST


def previous(policy: Policy, moment: datetime) -> datetime | None:
    """The last moment of a schedule before `moment` that was due, by its timings or in the ledger."""
    return window_start(Run(schedule=policy.schedule, trigger=Trigger.BACKFILL, due_at=moment))


def _recorded(run: Run) -> datetime | None:
    """The last due moment before the run's own in the ledger, which knows it under whatever timing it was due."""
    if run.schedule_id is None and run.trigger != Trigger.SCHEDULE:
        return None
    mine = Q(schedule=run.schedule_id) if run.schedule_id else Q(schedule=None, schedule_name=run.schedule_name)
    moment = Case(When(last_due_at__lt=run.due_at, then=F("last_due_at")), default=F("due_at"))
    rows = Run.objects.filter(mine, trigger=Trigger.SCHEDULE, due_at__lt=run.due_at).annotate(moment=moment)
    before: datetime | None = rows.order_by("-due_at").values_list("moment", flat=True).first()
    return before


def _computed(policy: Policy, moment: datetime) -> datetime | None:
    try:
        return past.previous(policy, moment)
    except Invalid:
        return None
