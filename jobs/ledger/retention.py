"""Which runs may the ledger delete, and when? Those that ended long ago, each state after its own time.

Its one rule: deleting changes no answer. A backfill counts every moment up to the latest deleted run as done, the
latest run of each schedule stays, and an unfinished run is never touched. So a pass first writes into each policy how
far it will delete, once, and then deletes nothing beyond. Rows are deleted in batches, oldest first, each batch in its
own transaction; an interruption leaves the rest for the next time.
"""

from collections.abc import Collection, Iterator
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, F, Max, OuterRef, Q

from jobs.models import TERMINAL, Policy, Run, RunQuerySet, State, Trigger, bulk

BATCH = 1000  # runs, or policies, per transaction


def delete_ended(before: datetime, states: Collection[State]) -> Iterator[int]:
    """Delete runs that ended before a moment in one of `states`; yields the size of each batch. Index run_finished."""
    if not set(states) <= TERMINAL:
        raise ValueError("Only runs that have ended can be deleted.")
    younger = Run.objects.filter(schedule=OuterRef("schedule"), trigger=Trigger.SCHEDULE, due_at__gt=OuterRef("due_at"))
    ended = Run.objects.filter(finished_at__lt=before, state__in=states)
    _forget(ended.filter(Exists(younger), schedule__isnull=False))
    forgotten = Exists(younger) & Q(schedule__policy__forgotten_until__gte=F("last_due_at"))
    left = old = ended.filter(Q(schedule=None) | forgotten).order_by("finished_at")
    while batch := list(left.values_list("id", "finished_at")[:BATCH]):
        bulk.delete(Run.objects.filter(id__in=[run for run, _ in batch]))
        yield len(batch)
        left = old.filter(finished_at__gte=batch[-1][1])  # or each batch would read the kept runs again


def _forget(runs: RunQuerySet) -> None:
    """Write into the policies of these runs up to when their moments count as done."""
    last = dict(runs.order_by().values_list("schedule").annotate(Max("last_due_at")))
    schedules = sorted(last)
    for start in range(0, len(schedules), BATCH):
        with transaction.atomic():
            locked = (
                Policy.objects.select_for_update().filter(schedule__in=schedules[start : start + BATCH]).order_by("pk")
            )
            policies = list(locked.only("forgotten_until"))
            behind = [each for each in policies if not each.forgotten_until or each.forgotten_until < last[each.pk]]
            for policy in behind:
                policy.forgotten_until = last[policy.pk]
            bulk.update(Policy, behind, ["forgotten_until"])
