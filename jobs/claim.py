"""Writes due moments into the ledger, each exactly once, whoever comes first. Every run is made here.

Its one rule: one transaction locks due schedules, inserts their runs (one that exists is left alone) and moves
`next_due_at` forward. So any number of beats may claim at once, and a process that dies here has claimed nothing.
A schedule that cannot run is flagged with the reason, its moment is skipped with the same reason, all others go on.
A schedule whose row somebody else has locked is left to the next pass.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from django.db import DataError, IntegrityError, transaction
from django.db.models import F
from django_celery_beat.models import PeriodicTask

from jobs import policies
from jobs.calendar import KINDS, spec_of
from jobs.message import Message, message_of
from jobs.models import SENDING, Policy, PolicyQuerySet, Run, State, Trigger, database_now
from jobs.occurrences import Invalid, next_occurrence, occurrences

log = logging.getLogger(__name__)

BATCH = 500  # schedules per transaction
# Due moments of one schedule per pass; after a long outage of a one-second schedule the rest follows in later passes.
MOMENTS = 10_000


def claim_due() -> Iterator[list[Run]]:
    """Claim all that is due by the database's clock, batch by batch; yields the runs of each batch that are to be sent.

    They are committed, and the caller's for `SENDING`; what it does not send by then the outbox offers again. What is
    locked by others, or has more due moments than one pass takes, is still due afterwards: for the next tick.
    """
    now = database_now()
    claimed = BATCH
    while claimed == BATCH and Policy.objects.due(now).exists():
        try:
            runs, claimed = _claim_batch(Policy.objects.due(now)[:BATCH], now)
        except (DataError, IntegrityError, ValueError):
            log.warning("A batch of due schedules cannot be stored; claiming them one by one.", exc_info=True)
            runs, claimed = _claim_singly(now)
        yield runs


def _claim_singly(now: datetime) -> tuple[list[Run], int]:
    """Claim the due schedules each on its own, so that the one that cannot be stored stops no other."""
    runs: list[Run] = []
    due = list(Policy.objects.due(now).values_list("schedule", flat=True)[:BATCH])
    for schedule in due:
        this = Policy.objects.filter(schedule=schedule)
        try:
            runs += _claim_batch(this.due(now), now)[0]
        except (DataError, IntegrityError, ValueError) as error:
            log.exception("Schedule %s cannot be claimed.", schedule, extra={"action": "claim", "schedule": schedule})
            _record_unstorable(this.get(), f"Its run cannot be stored: {error}", now)
    return runs, len(due)


def _record_unstorable(policy: Policy, reason: str, now: datetime) -> None:
    """Flag the schedule, and account for its moment in a row that holds nothing of it but the reason."""
    moment = policy.next_due_at or now
    Run.objects.bulk_create(
        [
            Run(
                schedule_id=policy.pk,
                due_at=moment,
                last_due_at=moment,
                not_before=now,
                state=State.SKIPPED,
                finished_at=now,
                reason=f"invalid: {reason}",
            )
        ],
        ignore_conflicts=True,
    )
    Policy.objects.filter(pk=policy.pk).update(next_due_at=None, invalid_reason=reason)


def _claim_batch(due: PolicyQuerySet, now: datetime) -> tuple[list[Run], int]:
    """Claim these schedules in one transaction; returns the runs to send, and how many schedules were claimed."""
    with transaction.atomic():
        locked = list(
            due.select_related("schedule", *(f"schedule__{kind}" for kind in KINDS)).select_for_update(
                of=("self", "schedule"), skip_locked=True
            )
        )
        in_the_way = _in_the_way([policy.pk for policy in locked])
        runs = [run for policy in locked for run in _runs_of(policy, now, in_the_way.get(policy.pk))]
        runs = _grow_stretches(locked, runs)
        Run.objects.bulk_create(runs, ignore_conflicts=True)
        Policy.objects.bulk_create(
            locked,
            update_conflicts=True,
            unique_fields=["schedule"],
            update_fields=["next_due_at", "stretch", "invalid_reason"],
        )
        to_send = [run for run in runs if run.state == State.WAITING]
        _count(to_send, now)
    return to_send, len(locked)


def _in_the_way(schedules: list[int]) -> dict[int, policies.Busy]:
    """The oldest run that is not over, of each schedule that has one."""
    active = Run.objects.active().filter(schedule__in=schedules).order_by("-due_at")
    rows = active.values_list("schedule_id", "due_at", "state", "worker")
    return {schedule: policies.Busy(due_at, state, worker) for schedule, due_at, state, worker in rows}


def _grow_stretches(locked: list[Policy], runs: list[Run]) -> list[Run]:
    """Add skipped moments to the row before them where the reason is the same; returns the rows that are new.

    A one-second schedule that is blocked for a day leaves one row, not 86,400. Only `count` and `last_due_at` grow.
    """
    stretches = Run.objects.in_bulk([policy.stretch for policy in locked if policy.stretch])
    last = {policy.pk: stretches.get(policy.stretch) for policy in locked}
    new = []
    for run in runs:
        stretch = last[run.schedule_id]
        if stretch and run.state == State.SKIPPED and run.reason == stretch.reason:
            stretch.count, stretch.last_due_at = stretch.count + run.count, run.last_due_at
        else:
            new.append(run)
            last[run.schedule_id] = run if run.state == State.SKIPPED else None
    Run.objects.bulk_update(stretches.values(), ["count", "last_due_at"])
    for policy in locked:
        policy.stretch = stretch.id if (stretch := last[policy.pk]) else None
    return new


def _runs_of(policy: Policy, now: datetime, busy: policies.Busy | None) -> list[Run]:
    """The rows for all that is due of one schedule; moves `policy.next_due_at` and sets `policy.invalid_reason`."""
    first = policy.next_due_at or now
    try:
        moments, policy.next_due_at = _moments(policy, first, now)
        more = policy.next_due_at is not None and policy.next_due_at <= now
        decisions, message = _decide(policy, moments, now, busy, more=more)
        return [_run(policy, decision, message, now) for decision in decisions]
    except Exception as error:
        log.exception("Schedule %s cannot be computed.", policy.pk, extra={"action": "claim", "schedule": policy.pk})
        policy.next_due_at, policy.invalid_reason = None, f"It cannot be computed: {error}"
        policy.schedule.expire_seconds = None  # it may be what could not be computed
        (decision,) = policies.skip([first], f"invalid: {policy.invalid_reason}")
        return [_run(policy, decision, None, now)]


def _moments(policy: Policy, first: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """The moments that are due, oldest first, and the one after them.

    A moment that was due when the timing changed comes first; of the new timing only what lies after the change.
    """
    since = policy.timing_since or now
    spec = spec_of(policy.schedule, since)
    further = occurrences(spec, after=max(first, since), until=now)
    moments = [first, *islice(further, MOMENTS - 1)]
    upcoming = next_occurrence(spec, after=max(moments[-1], since))
    return moments, upcoming if policy.schedule.enabled else None


def _decide(
    policy: Policy, moments: list[datetime], now: datetime, busy: policies.Busy | None, *, more: bool
) -> tuple[list[policies.Decision], Message | None]:
    policy.invalid_reason = ""
    if not policy.schedule.enabled:
        return policies.skip(moments, "disabled before it could start"), None
    try:
        message = message_of(policy.schedule, policy)
    except Invalid as error:
        policy.invalid_reason = str(error)
        return policies.skip(moments, f"invalid: {error}"), None
    decisions = policies.decide(policy.rule, moments, now, busy=busy, more=more)
    if policy.schedule.one_off and (ran := next((d for d in decisions if not d.reason), None)):
        decisions = decisions[: decisions.index(ran) + 1]
        policy.next_due_at = None
    return decisions, message


def _run(policy: Policy, decision: policies.Decision, message: Message | None, now: datetime) -> Run:
    run = _new_run(policy.schedule, message or Message(policy.schedule.task), decision.due_at, now)
    run.last_due_at, run.count, run.reason = decision.last_due_at, decision.count, decision.reason
    if decision.reason:
        run.state, run.finished_at = State.SKIPPED, now
    return run


def _new_run(schedule: PeriodicTask, message: Message, due_at: datetime, now: datetime) -> Run:
    return Run(
        schedule=schedule,
        schedule_name=schedule.name,
        task=message.task,
        args=message.args,
        kwargs=message.kwargs,
        queue=message.queue,
        priority=message.priority,
        options=message.options,
        due_at=due_at,
        last_due_at=due_at,
        not_before=now + SENDING,
        expires_at=_expires_at(schedule, now),
    )


def _expires_at(schedule: PeriodicTask, now: datetime) -> datetime | None:
    """Counted from now: a moment that is caught up late is still to have its time."""
    return now + timedelta(seconds=schedule.expire_seconds) if schedule.expire_seconds else None


def _count(runs: list[Run], now: datetime) -> None:
    """Keep django-celery-beat's own columns true, and switch off what was to run once."""
    counts = Counter(run.schedule_id for run in runs)
    for times in set(counts.values()):
        ran = PeriodicTask.objects.filter(pk__in=[pk for pk, count in counts.items() if count == times])
        ran.update(last_run_at=now, total_run_count=F("total_run_count") + times)
    if once := [run.schedule_id for run in runs if run.schedule and run.schedule.one_off]:
        PeriodicTask.objects.filter(pk__in=once).update(enabled=False)


def request(schedule: PeriodicTask, actor: str) -> Run:
    """Write down a run that a person asks for, beside the schedule's own and whatever its policy says.

    Raises `Invalid` where the schedule cannot run. The caller's to send for `SENDING`, then any beat's.
    """
    now = database_now()
    policy = Policy.objects.filter(schedule=schedule).first() or Policy(schedule=schedule)
    run = _new_run(schedule, message_of(schedule, policy), now, now)
    run.trigger, run.actor = Trigger.MANUAL, actor
    run.save(force_insert=True)
    return run
