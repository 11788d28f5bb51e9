"""Writes due moments into the ledger, each exactly once, whichever beat comes first.

Its one rule: one transaction locks due schedules, inserts their runs (an existing run is left alone) and moves
`next_due_at` forward. So any number of beats may claim at once, and a beat that dies here has claimed nothing.
A schedule that cannot run is flagged with the reason and its moment is skipped with the same reason; all others go on.
A schedule that another process has locked is left to the next pass.
"""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from django.db import DataError, IntegrityError, transaction
from django.db.models import F
from django_celery_beat.models import PeriodicTask

from jobs import tracing
from jobs.beat.due import Claimed, Due, due_moments, is_clocked
from jobs.ledger import outcomes
from jobs.ledger.new_runs import NewRun, expires_at, new_run
from jobs.messages.message import Message, message_of
from jobs.models import SENDING, Ended, Policy, PolicyQuerySet, Run, State, bulk, database_now, worker_text
from jobs.monitoring import tallies
from jobs.rules import policies
from jobs.rules.errors import Invalid, UnknownJob

log = logging.getLogger(__name__)

BATCH = 500  # schedules per transaction
MOMENTS = 20_000  # due moments per transaction, so that it stays short after a long outage; the rest follows
LONGEST_PASS = 0.5  # seconds; after that, no second portion of a schedule is claimed before the next tick
MOST_BEHIND = 10_000  # schedules with more portions than one, at a time
FIRST_LOOK, LONGEST_LOOK = timedelta(seconds=1), timedelta(seconds=10)  # at a moment that is left to other beats
# The columns of a policy that a claim writes.
MOVED = frozenset(
    [
        *("next_due_at", "owed_from", "former", "decided_until", "stretch", "fingerprint", "invalid_reason"),
        *("remaining_runs", "skip_next"),
    ]
)


_OF_POLICY = {field.attname for field in Policy._meta.concrete_fields}
_COLUMNS = [column.name if column.name in _OF_POLICY else f"schedule__{column.name}" for column in fields(Claimed)]


def claim_due(now: datetime | None = None) -> Iterator[list[NewRun]]:
    """Claim every schedule that is due by the database's clock, or `now`; yields the runs to send, batch by batch.

    These runs are committed, and the caller's for `SENDING`; the outbox offers runs that are not sent by then. A
    schedule that is locked, or has more due moments than one pass takes, is still due for the next tick.
    """
    now, end = now or database_now(), time.monotonic() + LONGEST_PASS
    behind: set[int] = set()  # schedules with more due moments than one transaction takes: all others come first
    while (due := Policy.objects.due(now).exclude(pk__in=behind)).exists():
        try:
            runs, claimed = _claim_batch(due[:BATCH], now)
        except (DataError, IntegrityError, ValueError):
            log.warning("A batch of due schedules cannot be stored; claiming them one by one.", exc_info=True)
            runs, claimed = _claim_singly(now, behind)
        if runs:
            yield runs
        behind |= {policy.schedule_id for policy in claimed if policy.next_due_at and policy.next_due_at <= now}
        if len(claimed) < BATCH or len(behind) > MOST_BEHIND:  # all others are claimed, or locked
            if not behind or time.monotonic() > end:
                return
            behind.clear()


def _claim_singly(now: datetime, behind: Collection[int]) -> tuple[list[NewRun], list[Claimed]]:
    """Claim due schedules one by one, so that a run that cannot be stored stops no other schedule."""
    runs: list[NewRun] = []
    claimed: list[Claimed] = []
    for schedule in list(Policy.objects.due(now).exclude(pk__in=behind).values_list("schedule", flat=True)[:BATCH]):
        this = Policy.objects.filter(schedule=schedule)
        try:
            new, of_this = _claim_batch(this.due(now), now)
            runs, claimed = runs + new, claimed + of_this
        except (DataError, IntegrityError, ValueError) as error:
            log.exception("Schedule %s cannot be claimed.", schedule, extra={"action": "claim", "schedule": schedule})
            _record_unstorable(this.get(), f"Its run cannot be stored: {error}", now)
    return runs, claimed


def _record_unstorable(policy: Policy, reason: str, now: datetime) -> None:
    """Flag the schedule, and record its moment in a row that holds only the reason."""
    moment = policy.owed_from or policy.next_due_at or now
    row = new_run(policy.pk, "", Message(""), moment, now)
    row.state, row.finished_at, row.reason = State.SKIPPED.value, now, f"invalid: {reason}"
    tallies.note_skipped([row])
    _insert([row])
    Policy.objects.filter(pk=policy.pk).update(next_due_at=None, owed_from=None, invalid_reason=reason)


def _claim_batch(due: PolicyQuerySet, now: datetime) -> tuple[list[NewRun], list[Claimed]]:
    """Claim these schedules in one transaction; returns the runs to send, and the schedules."""
    with tracing.span("claim"), transaction.atomic():
        locked = [Claimed(*row) for row in due.select_for_update(skip_locked=True).values_list(*_COLUMNS)]
        if not locked:
            return [], []
        busy = _busy([policy.schedule_id for policy in locked if policy.overlap != policies.Overlap.ALLOW])
        most = max(1, MOMENTS // len(locked))
        runs = [run for policy in locked for run in _runs_of(policy, now, busy.get(policy.schedule_id, ()), most)]
        tallies.note_skipped(runs)
        started = _insert(_grow_stretches(locked, runs))
        _cancel_previous(locked, started, busy)
        bulk.update(Policy, locked, MOVED)
        _count(locked, started, now)
    return [run for run in started if run.not_before == now + SENDING], locked


def _insert(runs: list[NewRun]) -> list[NewRun]:
    """Write the rows and announce the skipped ones; returns the runs that are new to the ledger and not skipped."""
    if bulk.insert(Run, runs) != len(runs):
        new = set(Run.objects.filter(id__in=[run.id for run in runs]).values_list("id", flat=True))
        runs = [run for run in runs if run.id in new]
    outcomes.announce([Ended(run.id, run.schedule_id, State.SKIPPED) for run in runs if run.reason])
    return [run for run in runs if not run.reason]


def _cancel_previous(locked: list[Claimed], started: list[NewRun], busy: Collection[int]) -> None:
    ones = {policy.schedule_id for policy in locked if policy.overlap == policies.Overlap.CANCEL_PREVIOUS}
    if replaced := ones.intersection(run.schedule_id for run in started).intersection(busy):
        previous = Run.objects.active().filter(schedule__in=replaced, backfill=None)
        previous = previous.exclude(id__in=[run.id for run in started])
        outcomes.cancel(previous, "the next run of its schedule takes its place; policy: cancel previous")


def _busy(schedules: list[int]) -> dict[int, list[policies.Busy]]:
    """The active runs of each schedule, oldest first; runs of backfills do not count.

    Schedules whose runs may overlap are left out: without a worker, they may have any number of runs.
    """
    active = Run.objects.active().filter(schedule__in=schedules, backfill=None).order_by("due_at")
    busy: dict[int, list[policies.Busy]] = {}
    rows = active.values_list("schedule_id", "due_at", "state", "node", "pid", "not_before")
    for schedule, due_at, state, node, pid, not_before in rows:
        busy.setdefault(schedule, []).append(
            policies.Busy(due_at, state, worker_text(node, pid), waiting_turn=not_before is None)
        )
    return busy


def _runs_of(policy: Claimed, now: datetime, busy: Sequence[policies.Busy], most: int) -> list[NewRun]:
    """The rows for at most `most` due moments of one schedule; moves it on, and sets `policy.invalid_reason`."""
    first = policy.owed_from or policy.next_due_at or now
    due = Due([first], None)
    try:
        message = _message(policy)
        until = now - policies.MISSED_AFTER if isinstance(message, UnknownJob) else now
        if first > until:
            _leave_to_others(policy, first, str(message), now)
            return []
        due = due_moments(policy, first, now, until, most)
        _move(policy, due, now)
        decisions = _decide(policy, due, message, now, busy)
        if due.upcoming is None and is_clocked(policy):
            _switch_off(policy)
        ends = [*(decision.due_at for decision in decisions[1:]), due.upcoming]
        asked = message if isinstance(message, Message) else None
        return [_run(policy, decision, end, asked, now) for decision, end in zip(decisions, ends, strict=False)]
    except Exception as error:
        schedule = policy.schedule_id
        log.exception("Schedule %s cannot be claimed.", schedule, extra={"action": "claim", "schedule": schedule})
        policy.next_due_at, policy.owed_from, policy.former = due.upcoming, None, None
        policy.invalid_reason = f"It cannot be computed: {error}"
        decisions = policies.skip(due.moments or [first], f"invalid: {policy.invalid_reason}")
        return [_run(policy, decision, None, None, now) for decision in decisions]


def _message(policy: Claimed) -> Message | Invalid:
    """The message of the schedule's runs, or why there is none."""
    try:
        return message_of(policy, policy)
    except Invalid as error:
        return error


def _leave_to_others(policy: Claimed, first: datetime, why: str, now: datetime) -> None:
    """Leave moments on time to beats whose newer code may know their job, as while a new version is rolled out."""
    wait = max(FIRST_LOOK, min(now - first, LONGEST_LOOK))
    policy.owed_from, policy.next_due_at, policy.invalid_reason = first, now + wait, why


def _move(policy: Claimed, due: Due, now: datetime) -> None:
    policy.owed_from, policy.next_due_at = due.held_back, due.upcoming
    if due.held_back:
        policy.next_due_at = policy.paused_until
    elif due.upcoming is None or due.upcoming > now:
        policy.former = None


def _decide(
    policy: Claimed, due: Due, message: Message | Invalid, now: datetime, busy: Sequence[policies.Busy]
) -> list[policies.Decision]:
    if policy.timing:  # without a timing the reason is that it cannot be computed, and stays
        policy.invalid_reason = ""
    if not due.moments:
        return []
    if not policy.enabled:
        if due.upcoming is None or due.upcoming > now:
            policy.next_due_at, policy.fingerprint = None, ""  # computed again when it is enabled
        return policies.skip(due.moments, "disabled before it could start")
    if isinstance(message, Invalid):
        policy.invalid_reason = str(message)
        return policies.skip(due.moments, f"invalid: {message}")
    if due.named_late:
        return policies.skip(due.moments, policies.NAMED_LATE)
    rule = policies.Rule.of(policy, one_off=policy.one_off)
    decisions = policies.decide(rule, due.moments, now, busy=busy, later=due.later)
    _count_down(policy, rule, due.moments, sum(not decision.reason for decision in decisions))
    return decisions


def _count_down(policy: Claimed, rule: policies.Rule, moments: Sequence[datetime], ran: int) -> None:
    """Count down the moments to skip and the runs of a limited schedule; its last run disables it."""
    policy.skip_next -= len(rule.by_hand(moments))
    if policy.remaining_runs is not None:
        policy.remaining_runs = max(0, policy.remaining_runs - ran)
    if rule.limit is not None and ran >= rule.limit and not is_clocked(policy):
        _switch_off(policy)


def _switch_off(policy: Claimed) -> None:
    policy.next_due_at, policy.owed_from, policy.enabled, policy.fingerprint = None, None, False, ""


def _run(
    policy: Claimed, decision: policies.Decision, upcoming: datetime | None, message: Message | None, now: datetime
) -> NewRun:
    run = new_run(policy.schedule_id, policy.name, message or Message(policy.task), decision.due_at, now)
    if decision.reason:
        run.last_due_at, run.count, run.reason = decision.last_due_at, decision.count, decision.reason
        run.state, run.finished_at = State.SKIPPED.value, now
    elif decision.waiting_turn:
        run.not_before = None
    else:
        start_at = policies.jittered(decision.due_at, upcoming, policy.jitter) if policy.jitter else now
        run.not_before = start_at if start_at > now else run.not_before
        run.expires_at = expires_at(policy.expire_seconds, max(now, start_at))
    return run


def _grow_stretches(locked: list[Claimed], runs: list[NewRun]) -> list[NewRun]:
    """Add skipped moments to the row before them if the reason is the same; returns the new rows.

    A one-second schedule that is blocked for a day leaves one row, not 86,400. Only `count` and `last_due_at` grow.
    """
    open_ones = [policy.stretch for policy in locked if policy.stretch]
    stretches = Run.objects.in_bulk(open_ones) if open_ones else {}
    last: dict[int | None, Any] = {policy.schedule_id: stretches.get(policy.stretch) for policy in locked}
    new = []
    for run in runs:
        stretch = last[run.schedule_id]
        if stretch and run.reason and run.reason == stretch.reason:
            stretch.count, stretch.last_due_at = stretch.count + run.count, run.last_due_at
        else:
            new.append(run)
            last[run.schedule_id] = run if run.reason else None
    bulk.update(Run, list(stretches.values()), ("count", "last_due_at"))
    for policy in locked:
        policy.stretch = stretch.id if (stretch := last[policy.schedule_id]) else None
    return new


def _count(locked: list[Claimed], started: list[NewRun], now: datetime) -> None:
    """Update django-celery-beat's own columns, and disable schedules that have had their last run."""
    counts = Counter(run.schedule_id for run in started)
    for times in set(counts.values()):
        ran = PeriodicTask.objects.filter(pk__in=[pk for pk, count in counts.items() if count == times])
        ran.update(last_run_at=now, total_run_count=F("total_run_count") + times)
    if over := [policy.schedule_id for policy in locked if not policy.enabled]:
        PeriodicTask.objects.filter(pk__in=over).update(enabled=False)
