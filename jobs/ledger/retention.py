"""What may the ledger delete, and when? Runs that ended long ago, each state after its own time; old alerts, too.

Its one rule: deleting changes no answer. A backfill counts every moment up to the latest deleted run as done, the
latest run of each schedule stays, and an unfinished run is never touched. So a pass first writes into each policy how
far it will delete, once, and then deletes nothing beyond. Rows are deleted in batches, oldest first, each batch in its
own transaction; an interruption leaves the rest for the next time.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, Max, OuterRef, Q, QuerySet

from jobs.models import (
    TERMINAL,
    Alert,
    AuditEntry,
    Condition,
    Notice,
    PastTiming,
    Policy,
    Run,
    RunQuerySet,
    SetAside,
    Silence,
    State,
    Trigger,
    bulk,
)

BATCH = 1000  # runs, or policies, per transaction
_NEVER = datetime.min.replace(tzinfo=UTC)


def delete_ended(before: datetime, states: Collection[State]) -> Iterator[int]:
    """Delete runs that ended before a moment in one of `states`; yields the size of each batch. Index run_finished."""
    if not set(states) <= TERMINAL:
        raise ValueError("Only runs that have ended can be deleted.")
    ended = Run.objects.filter(finished_at__lt=before, state__in=states)
    last = _forget(ended)
    for batch in _batches(ended):
        wanted = [run for run, schedule, due, _ in batch if schedule is None or due <= last.get(schedule, _NEVER)]
        if wanted:
            bulk.delete(Run, wanted)
            yield len(wanted)


def delete_timings(before: datetime) -> None:
    """Delete the timings that ended before a moment. The first one that is left then counts for their time, too."""
    old = PastTiming.objects.filter(until__lt=before)
    ends = dict(old.values_list("schedule").annotate(Max("until")))
    schedules = sorted(ends)
    for start in range(0, len(schedules), BATCH):
        _delete_timings(old.filter(schedule__in=schedules[start : start + BATCH]), ends)


def delete_set_aside(before: datetime) -> None:
    """Delete the messages set aside that workers last met before a moment. The table is small: it is bounded."""
    SetAside.objects.filter(last_at__lt=before).delete()


def delete_audit(before: datetime) -> None:
    """Delete the audit entries before a moment (index audit_at)."""
    _delete(AuditEntry.objects.filter(at__lt=before).order_by("at"))


def delete_alerts(before: datetime, pings_before: datetime) -> None:
    """Delete alerts with their notices (index alert_at), silences that were over before, and pings that were sent.

    Those of a subject that is still ill are kept: they say who is to be told that it is well again.
    """
    old = Alert.objects.filter(~Exists(Condition.objects.filter(subject=OuterRef("subject"))), at__lt=before)
    _delete(old.order_by("at"))
    _delete(Silence.objects.filter(ends_at__lt=before).order_by("ends_at"))
    _delete(Notice.objects.filter(alert=None, done_at__lt=pings_before).order_by("pk"))


def _delete(old: QuerySet[Any]) -> None:
    """Delete these rows in batches, in their order."""
    while batch := list(old.values_list("pk", flat=True)[:BATCH]):
        old.model._default_manager.filter(pk__in=batch).delete()


@transaction.atomic
def _delete_timings(old: QuerySet[PastTiming], ends: dict[int, datetime]) -> None:
    locked = Policy.objects.select_for_update().filter(schedule__in=old.values("schedule")).order_by("pk")
    policies = list(locked.only("known_since"))
    for policy in policies:
        policy.known_since = ends[policy.pk]
    bulk.update(Policy, policies, ["known_since"])
    old.delete()


def _batches(ended: RunQuerySet) -> Iterator[Sequence[tuple[UUID, int | None, datetime, datetime | None]]]:
    """These runs, oldest first: each with its schedule, its last due moment and its end."""
    left = ended.order_by("finished_at", "id").values_list("id", "schedule", "last_due_at", "finished_at")
    rest = left
    while batch := list(rest[:BATCH]):
        yield batch
        run, *_, end = batch[-1]
        rest = left.filter(Q(finished_at__gt=end) | Q(id__gt=run), finished_at__gte=end)


def _forget(ended: RunQuerySet) -> dict[int, datetime]:
    """Write into each policy up to when its moments count as done; returns that by schedule.

    The latest run of a schedule is beyond it, and so is a run of a schedule without a policy, which has none yet.
    """
    younger = Run.objects.filter(schedule=OuterRef("schedule"), trigger=Trigger.SCHEDULE, due_at__gt=OuterRef("due_at"))
    followed = ended.filter(Exists(younger), schedule__isnull=False).order_by()
    last = dict(followed.values_list("schedule").annotate(Max("last_due_at")))
    schedules = sorted(last)
    known: dict[int, datetime] = {}
    for start in range(0, len(schedules), BATCH):
        known |= _forget_until(last, schedules[start : start + BATCH])
    return known


@transaction.atomic
def _forget_until(last: dict[int, datetime], schedules: list[int]) -> dict[int, datetime]:
    locked = Policy.objects.select_for_update().filter(schedule__in=schedules).order_by("pk")
    policies = list(locked.only("forgotten_until"))
    behind = [each for each in policies if not each.forgotten_until or each.forgotten_until < last[each.pk]]
    for policy in behind:
        policy.forgotten_until = last[policy.pk]
    bulk.update(Policy, behind, ["forgotten_until"])
    return {policy.pk: last[policy.pk] for policy in policies}
