"""What becomes of runs that nobody will finish: their process died, or they waited too long.

Its one rule: it decides by the ledger alone, by leases and moments that have passed by the database's clock. Any beat
may do it at any time, also two at once: each change is conditional, and the loser finds nothing left to do.
"""

import logging
from datetime import timedelta

from jobs import policies
from jobs.models import UNSTARTED, Attempt, Policy, Run, RunQuerySet, State, database_now

log = logging.getLogger(__name__)

BATCH = 500


def rescue() -> int:
    """End or restart every run whose lease ran out, expire what waited too long; returns how many were changed."""
    now = database_now()
    orphans = Run.objects.orphaned(now)
    rescued = sum(_rescue(run, orphans) for run in orphans.select_related("schedule__policy")[:BATCH])
    return rescued + _expire(Run.objects.overdue(now))


def _expire(overdue: RunQuerySet) -> int:
    if not overdue.exists():  # a look is cheaper than an UPDATE of nothing, which makes SQLite's other writers wait
        return 0
    return overdue.move(
        UNSTARTED, State.EXPIRED, reason="expired: no worker started it in the time its schedule gives it"
    )


def _rescue(run: Run, orphans: RunQuerySet) -> bool:
    reason = f"lost: {run.worker} gave no sign of life until {run.lease_until:%Y-%m-%d %H:%M:%S} UTC"
    this, policy = orphans.filter(id=run.id, attempt=run.attempt), run.policy
    if run.cancel_reason:
        done = bool(this.move({State.RUNNING}, State.CANCELLED, reason=run.cancel_reason))
    elif policies.runs_again_after_loss(run.attempt, policy.max_attempts, wanted=policy.rerun_if_lost):
        done = run.return_to_waiting(orphans, Attempt.Outcome.LOST, timedelta(0), reason=reason)
    else:
        done = bool(this.move({State.RUNNING}, State.LOST, reason=reason))
        Policy.objects.filter(pk=run.schedule_id).pause_if_failing()
    if done:
        log.warning("Run %s: %s", run.id, reason, extra={"action": "rescue", "run": str(run.id)})
    return done
