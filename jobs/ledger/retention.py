"""Which runs may the ledger delete, and when? Those that ended long ago, each state after its own time.

Its one rule: deleting changes no answer. A backfill counts every moment up to the latest deleted run as done, the
latest run of each schedule stays, and an unfinished run is never touched. Rows are deleted in batches, oldest first,
each batch in its own transaction; an interruption leaves the rest for the next time.
"""

from collections.abc import Collection, Iterator
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, Max, OuterRef, Q

from jobs.models import TERMINAL, Policy, Run, State, Trigger

BATCH = 1000  # runs per transaction


def delete_ended(before: datetime, states: Collection[State]) -> Iterator[int]:
    """Delete runs that ended before a moment in one of `states`; yields the size of each batch. Index run_finished."""
    if not set(states) <= TERMINAL:
        raise ValueError("Only runs that have ended can be deleted.")
    younger = Run.objects.filter(schedule=OuterRef("schedule"), trigger=Trigger.SCHEDULE, due_at__gt=OuterRef("due_at"))
    not_the_latest = Q(schedule=None) | Exists(younger)
    old = Run.objects.filter(not_the_latest, finished_at__lt=before, state__in=states).order_by("finished_at")
    left = old
    while batch := list(left.values_list("id", "finished_at")[:BATCH]):
        _delete([run for run, _ in batch])
        yield len(batch)
        left = old.filter(finished_at__gte=batch[-1][1])  # or each batch would read the kept runs again


@transaction.atomic
def _delete(ids: list[UUID]) -> None:
    runs = Run.objects.filter(id__in=ids)
    last_due = runs.exclude(schedule=None).order_by().values("schedule").annotate(until=Max("last_due_at"))
    for schedule, until in last_due.values_list("schedule", "until"):
        earlier = Q(forgotten_until=None) | Q(forgotten_until__lt=until)
        Policy.objects.filter(earlier, schedule=schedule).update(forgotten_until=until)
    runs.only("id").delete()  # the other columns may hold long errors
