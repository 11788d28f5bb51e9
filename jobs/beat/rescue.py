"""What happens to runs whose process died, or that waited too long?

Its one rule: it decides by the ledger alone, by leases and expiries that have passed by the database's clock. Any beat
may do it at any time, even two at once: each change is conditional, and the loser changes nothing.
"""

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Case, TextField, Value, When
from django.db.models.functions import Concat, Now

from jobs.ledger import outcomes, steps
from jobs.messages import keys
from jobs.models import UNSTARTED, Attempt, Policy, Run, RunQuerySet, State, Step, database_now
from jobs.models.clock import lease
from jobs.models.steps import UNDER_WAY, StepQuerySet
from jobs.rules import policies

log = logging.getLogger(__name__)

BATCH = 500
TOO_LONG = 10  # leases: settings of two processes may differ a little


def rescue() -> int:
    """End or restart every run whose lease, or a step's lease, has run out, and expire runs that waited too long.

    Returns how many runs it changed.
    """
    now = database_now()
    orphans = Run.objects.orphaned(now)
    rescued = sum(_rescue(run, orphans, _why(run)) for run in orphans.select_related("schedule__policy")[:BATCH])
    return rescued + _rescue_by_steps(now) + _settle() + _expire(Run.objects.overdue(now))


def shorten_waits() -> None:
    """Shorten leases and patience that no right clock gives: the database's was ahead when they began."""
    impossible = Now() + lease() * TOO_LONG
    for rows in (Run.objects.filter(state=State.RUNNING), Step.objects.filter(state=Step.State.RUNNING)):
        rows.filter(lease_until__gt=impossible).update(lease_until=Now() + lease())
    Run.objects.filter(state=State.QUEUED, queued_at__gt=Now()).update(not_before=Now(), queued_at=Now())


def _rescue_by_steps(now: datetime) -> int:
    """A run is lost with any of its steps: the process of the step died, or its message is gone."""
    lost = Step.objects.under_way().filter(lease_until__lte=now)
    rescued = 0
    for step in lost.select_related("run__schedule__policy")[:BATCH]:
        with transaction.atomic():  # a lost step without a lost run would look like a success
            rescued += _rescue_by_step(step, lost)
    return rescued


def _rescue_by_step(step: Step, lost: StepQuerySet) -> bool:
    if not lost.filter(id=step.id).move(UNDER_WAY, Step.State.LOST):
        return False
    what = step.error_text or f"{_silent(step) if step.worker else 'no worker started it'} by {_until(step)}"
    reason = f"lost: step {step.task}, {what}"
    running = Run.objects.filter(state=State.RUNNING)
    return step.attempt == step.run.attempt and _rescue(step.run, running, reason)


def _settle() -> int:
    """End the runs whose last step ended in a process that then died, and the cancelled runs that wait for steps."""
    over, cancelled = list(steps.over()[:BATCH]), list(Run.objects.carried().exclude(cancel_reason="")[:BATCH])
    for run in cancelled:
        steps.cancel(run.id, run.attempt)
    for run in over + cancelled:
        outcomes.settle(run.id, run.attempt)
    return len(over) + len(cancelled)


def _expire(overdue: RunQuerySet) -> int:
    if not overdue.exists():  # cheaper than an UPDATE of no rows, for which SQLite's other writers would wait
        return 0
    text = TextField()
    known = Case(When(reason="", then=Value("", text)), default=Concat(Value("; ", text), "reason"))
    why = Value("expired: no worker started it in the time that its schedule allows", text)
    return outcomes.end(overdue, UNSTARTED, State.EXPIRED, reason=Concat(why, known))


def _silent(row: Run | Step) -> str:
    return f"{row.worker} did not renew its lease"


def _until(row: Run | Step) -> str:
    return f"{row.lease_until:%Y-%m-%d %H:%M:%S} UTC"


def _why(run: Run) -> str:
    """A running run has no reason, unless its worker noted why its process ended."""
    return f"lost: {run.reason or f'{_silent(run)} by {_until(run)}'}"


def _rescue(run: Run, among: RunQuerySet, reason: str) -> bool:
    this, policy = among.filter(id=run.id, attempt=run.attempt), Policy.of(run)
    if run.cancel_reason:
        done = bool(outcomes.end(this, {State.RUNNING}, State.CANCELLED, reason=run.cancel_reason))
    elif policies.runs_again_after_loss(run.attempt, policy.max_attempts, wanted=policy.rerun_if_lost):
        done = run.return_to_waiting(Attempt.Outcome.LOST, timedelta(0), among=among, reason=reason)
    else:
        done = bool(outcomes.end(this, {State.RUNNING}, State.LOST, reason=reason))
    if done:
        log.warning("Run %s: %s", run.id, reason, extra={**keys.of_run(run), "action": "rescue"})
    return done
