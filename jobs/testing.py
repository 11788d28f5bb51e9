"""How are jobs tested? A test names a moment, and the runs due then are executed in its own process.

Its one rule: the ledger, the policies and the start guard are those of production; only beat, broker and worker are
missing. Tasks that a job sends are executed in its place, so a run ends when its body does, and fails with any of them.
Neither a broker nor a committed transaction is needed.

Limits: nothing is cancelled, interrupted by a time limit or rescued, and `self.retry()` repeats at once, in the same
attempt. A test of those needs a worker: docs/testing.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from celery import current_app
from django.db.models import Min
from django.db.models.functions import Now

from jobs.beat.claim import claim_due
from jobs.messages.arguments import find_task
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import Policy, Run, State
from jobs.rules.errors import Invalid
from jobs.rules.occurrences import as_text, next_occurrence
from jobs.schedules.calendar import spec_of

PUNCTUAL = timedelta(minutes=1)  # a moment that is longer ago is missed, in production, too


def run_due(at: datetime) -> list[Run]:
    """Execute the runs of all schedules that are due at `at` or in the minute before, as if beat had never stopped.

    `at` may be past or future. Returns the runs as the ledger has them afterwards, moments that a policy skips too.
    """
    for policy in Policy.objects.filter(schedule__enabled=True).select_related("schedule"):
        _wind(policy, at)
    runs, done = Run.objects.filter(due_at__gt=at - PUNCTUAL, due_at__lte=at).order_by("due_at", "id"), at - PUNCTUAL
    while (moment := _next_moment(done)) and moment <= at:  # one after the other: policies look at the run before
        for _ in claim_due(moment):
            pass
        for run in runs.filter(state=State.WAITING, not_before__isnull=False):
            execute(run)
        done = moment
    return list(runs.all())


def _next_moment(after: datetime) -> datetime | None:
    moment: datetime | None = Policy.objects.filter(next_due_at__gt=after).aggregate(at=Min("next_due_at"))["at"]
    return moment


def execute(run: Run) -> Run:
    """Execute a waiting run here and now, whatever it waits for. Returns it as the ledger has it afterwards."""
    Run.objects.filter(id=run.id).update(expires_at=None, not_before=Now())  # the database's clock, which ignores `at`
    task = find_task(run.task)
    if task is None:
        raise LookupError(f"No job is named {run.task!r}: is its app in INSTALLED_APPS?")
    options = {**run.options, "headers": {**run.options.get("headers", {}), ATTEMPT_HEADER: run.attempt}}
    with _in_place():
        task.apply(run.args, run.kwargs, task_id=str(run.id), throw=False, **options)
    run.refresh_from_db()
    return run


def _wind(policy: Policy, at: datetime) -> None:
    """Set the next due moment of a schedule as it was at `at`, before beat claimed anything of the last minute."""
    try:
        spec = spec_of(policy.schedule, _since(policy, at), policy.wall_zone)
    except Invalid:  # beat would flag it
        return
    due = next_occurrence(spec, at - PUNCTUAL)
    since = min(filter(None, (policy.timing_since, due)), default=at)
    policy.next_due_at, policy.timing_since, policy.timing = due, since, as_text(spec)
    policy.owed_from = policy.former = None
    policy.save(update_fields=["next_due_at", "timing_since", "timing", "owed_from", "former"])


def _since(policy: Policy, at: datetime) -> datetime:
    """From when the schedule counts: for an interval, as many of it earlier that it was due before `at`, too."""
    since, interval = policy.timing_since or at, policy.schedule.interval
    if interval is None or since <= at - PUNCTUAL:
        return since
    every = timedelta(**{interval.period: interval.every})
    return since - every * -((at - PUNCTUAL - since) // every)


@contextmanager
def _in_place() -> Iterator[None]:
    """Celery executes in its place what the job sends."""
    conf = current_app.conf
    before, conf.task_always_eager = conf.task_always_eager, True
    try:
        yield
    finally:
        conf.task_always_eager = before
