"""What may the ledger forget, and when? Runs that ended long ago, each kind after its own time.

Its one rule: forgetting changes no answer. What was due up to the latest run that was deleted counts as done in a
backfill, the latest run of each schedule stays, and a run that is not over is never touched. Rows go in batches, each
in a transaction of its own, the oldest first; an interruption leaves the rest for the next time.
"""

import logging
from collections.abc import Collection, Iterator
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, Max, OuterRef, Q

from jobs.models import TERMINAL, Policy, Run, State, Trigger

log = logging.getLogger(__name__)

BATCH = 1000  # runs per transaction


def delete_ended(before: datetime, states: Collection[State]) -> Iterator[int]:
    """Delete runs that ended before a moment in one of `states`; yields how many in each batch. Index run_finished."""
    if not set(states) <= TERMINAL:
        raise ValueError("Only runs that are over can be forgotten.")
    younger = Run.objects.filter(schedule=OuterRef("schedule"), trigger=Trigger.SCHEDULE, due_at__gt=OuterRef("due_at"))
    not_the_latest = Q(schedule=None) | Exists(younger)
    old = Run.objects.filter(not_the_latest, finished_at__lt=before, state__in=states).order_by("finished_at")
    left = old
    while batch := list(left.values_list("id", "finished_at")[:BATCH]):
        _delete([run for run, _ in batch])
        yield len(batch)
        left = old.filter(finished_at__gte=batch[-1][1])  # or each batch would pass by all that stays


@transaction.atomic
def _delete(ids: list[UUID]) -> None:
    runs = Run.objects.filter(id__in=ids)
    last_due = runs.exclude(schedule=None).order_by().values("schedule").annotate(until=Max("last_due_at"))
    for schedule, until in last_due.values_list("schedule", "until"):
        earlier = Q(forgotten_until=None) | Q(forgotten_until__lt=until)
        Policy.objects.filter(earlier, schedule=schedule).update(forgotten_until=until)
    runs.only("id").delete()  # each may hold a long error
