"""How is each schedule doing? The facts about those that may have changed, which `rules.health` judges.

Its one rule: the cost follows what happens, not what exists. A look reads the schedules whose runs have ended since the
last look, or wait, or run for long, and those that cannot run, are paused or were not well. All others are as before.
Limits: runs of backfills are left out. A run that ends while a look reads may count in the next one.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django_celery_beat.models import PeriodicTask

from jobs.models import UNSTARTED, Condition, Policy, Run, RunQuerySet, State, Trigger, UsualRuntime
from jobs.models.schedules import LONGEST, PAUSED
from jobs.rules.health import (
    LEAST_RUNS,
    MOST_FAILURES,
    SAMPLE,
    Active,
    Facts,
    Finding,
    Health,
    Limits,
    Outcome,
    judge,
    usual_range,
)
from jobs.rules.policies import Pause

BATCH = 500  # schedules per query
MEASURED_AT_ONCE = 200  # schedules of a look whose usual runtime is computed
MEASURED_EVERY = timedelta(hours=1)
# Ends that say how a schedule is doing. A cancelled run, and a moment that was skipped on purpose, say nothing.
TELLING = Q(state__in=[State.SUCCEEDED, State.FAILED, State.LOST, State.EXPIRED]) | Q(
    state=State.SKIPPED, reason__startswith="missed:"
)
SUBJECT = "schedule:{}"


def findings(since: datetime, now: datetime) -> Iterator[dict[PeriodicTask, Finding]]:
    """The health of each schedule that may have changed since the last look, in batches."""
    ended = _ended(since, now)
    noticeable = _noticeable(now)
    changed = UsualRuntime.objects.filter(schedule__in=noticeable, computed_at__lt=F("schedule__date_changed"))
    measure(ended | set(changed.values_list("schedule", flat=True)), now)
    candidates = sorted(ended | noticeable)
    for start in range(0, len(candidates), BATCH):
        yield _judged(candidates[start : start + BATCH], now)


def health_of(schedule: PeriodicTask, now: datetime) -> Finding | None:
    """The health of one schedule now; None if beat has not read it yet."""
    return next(iter(_judged([schedule.pk], now).values()), None)


def measure(schedules: Collection[int], now: datetime) -> None:
    """Compute the usual runtime of the current jobs of some of these schedules again, if it is old."""
    recent = UsualRuntime.objects.filter(schedule__in=schedules, computed_at__gt=now - MEASURED_EVERY)
    unchanged = recent.filter(computed_at__gte=F("schedule__date_changed"))
    wanted = sorted(set(schedules) - set(unchanged.values_list("schedule", flat=True)))[:MEASURED_AT_ONCE]
    for schedule, job in PeriodicTask.objects.filter(pk__in=wanted).values_list("pk", "task"):
        succeeded = Run.objects.of_schedule(schedule).filter(state=State.SUCCEEDED, started_at__isnull=False)
        rows = succeeded.values_list("task", "started_at", "finished_at")[:SAMPLE]
        times = [end - start for task, start, end in rows if task == job and start and end]
        shortest, longest = usual_range(times)
        values = {"runs": len(times), "shortest": shortest, "longest": longest, "computed_at": now}
        if len(times) >= LEAST_RUNS or UsualRuntime.objects.filter(pk=schedule).exists():
            UsualRuntime.objects.update_or_create(schedule_id=schedule, defaults=values)


# --- which schedules may have changed --------------------------------------------------------------------------------


def _ended(since: datetime, now: datetime) -> set[int]:
    """The schedules of the runs that ended since then (index run_finished)."""
    ended = Run.objects.filter(finished_at__gt=since, finished_at__lte=now, schedule__isnull=False)
    return set(ended.order_by().values_list("schedule", flat=True).distinct())


def _noticeable(now: datetime) -> set[int]:
    """The schedules that are not well, or that a limit of time may concern now."""
    is_paused_long = PAUSED & Q(paused_at__lt=now - F("longest_pause"))
    flagged = Policy.objects.filter(Q(schedule__enabled=True) & (~Q(invalid_reason="") | is_paused_long))
    unclaimed = Policy.objects.filter(next_due_at__lt=now - F("late_after"))
    found = {*flagged.values_list("pk", flat=True), *unclaimed.values_list("pk", flat=True)}
    active = Run.objects.active().filter(schedule__isnull=False)
    late = active.filter(state__in=UNSTARTED, due_at__lt=now - F("schedule__policy__late_after"))
    limit = Coalesce("schedule__policy__longest_runtime", "schedule__usual_runtime__longest")
    running = active.filter(state=State.RUNNING).annotate(limit=limit)  # a filter alone would need both rows
    long = running.filter(started_at__lt=now - F("limit"))
    for runs in (late, long):
        found |= set(runs.order_by().values_list("schedule", flat=True).distinct())
    ill = Condition.objects.exclude(health=Health.OK.value).filter(schedule__isnull=False)
    return found | set(ill.values_list("schedule", flat=True))


# --- what the ledger says about them ---------------------------------------------------------------------------------


def _judged(schedules: Collection[int], now: datetime) -> dict[PeriodicTask, Finding]:
    policies = Policy.objects.filter(pk__in=schedules).select_related("schedule__usual_runtime", "schedule__condition")
    unstarted, running, last = _unstarted(schedules), _running(schedules), _last_outcomes(schedules)
    found = {}
    for policy in policies:
        pk, pause = policy.pk, policy.pause if policy.pause and policy.pause.covers(now) else None
        facts = Facts(
            is_watched=_is_watched(policy),
            invalid_reason=policy.invalid_reason if policy.schedule.enabled else "",
            paused_since=pause.start if pause else None,
            pause=pause.sentence if pause else "",
            unstarted=unstarted.get(pk) or _unclaimed(policy, pause, now),
            running=running.get(pk),
            outcomes=last.get(pk, ()),
        )
        found[policy.schedule] = judge(*_with_history(policy, facts), now)
    return found


def _with_history(policy: Policy, facts: Facts) -> tuple[Facts, Limits]:
    """These facts with earlier outcomes, where they matter. A failing one stays so until a success."""
    limits = _limits(policy)
    last = facts.outcomes[0] if facts.outcomes else None
    if last is None or last.state == State.SUCCEEDED:
        return facts, limits
    if _is_failing(policy):
        limits = replace(limits, failures=1)
    if last.is_missed if _is_failing(policy) else last.is_bad and limits.failures > 1:
        facts = replace(facts, outcomes=_outcomes(policy.pk))
    return facts, limits


def _is_watched(policy: Policy) -> bool:
    """Whether anything is expected of it. The last run of a limited schedule disables it, and may fail."""
    schedule = policy.schedule
    return schedule.enabled or schedule.one_off or policy.remaining_runs == 0 or schedule.clocked_id is not None


def _is_failing(policy: Policy) -> bool:
    condition: Condition | None = getattr(policy.schedule, "condition", None)
    return condition is not None and condition.health == Health.FAILING


def _limits(policy: Policy) -> Limits:
    usual: UsualRuntime | None = getattr(policy.schedule, "usual_runtime", None)
    if usual and usual.computed_at < policy.schedule.date_changed:  # perhaps of another job
        usual = None
    return Limits(
        late_after=policy.late_after + min(policy.jitter, LONGEST),
        failures=policy.failures_allowed + 1,
        longest=policy.longest_runtime or (usual.longest if usual else None),
        shortest=usual.shortest if policy.shortest_runtime is None and usual else policy.shortest_runtime,
        longest_pause=policy.longest_pause,
    )


def _of_schedules(schedules: Collection[int]) -> RunQuerySet:
    found: RunQuerySet = Run.objects.filter(schedule__in=schedules).exclude(trigger=Trigger.BACKFILL).order_by("due_at")
    return found


def _unstarted(schedules: Collection[int]) -> dict[int, Active]:
    """The oldest due moment of each schedule whose run has not started yet (index run_active)."""
    runs = _of_schedules(schedules).filter(state__in=UNSTARTED, trigger=Trigger.SCHEDULE, attempt=1)
    return _first(runs, "due_at", "reason")


def _running(schedules: Collection[int]) -> dict[int, Active]:
    """The run of each schedule that has been running for longest (index run_active)."""
    return _first(_of_schedules(schedules).filter(state=State.RUNNING).order_by("started_at"), "started_at", "node")


def _first(runs: RunQuerySet, since: str, why: str) -> dict[int, Active]:
    found: dict[int, Active] = {}
    for schedule, begun, due_at, run, text in runs.values_list("schedule_id", since, "due_at", "id", why):
        found.setdefault(schedule, Active(begun, due_at, run, text))
    return found


def _unclaimed(policy: Policy, pause: Pause | None, now: datetime) -> Active | None:
    """The due moment that no beat has claimed yet, unless it is one of the current pause."""
    due_at = policy.next_due_at
    if due_at is None or due_at > now or not policy.schedule.enabled or (pause and pause.covers(due_at)):
        return None
    return Active(due_at, policy.owed_from or due_at, None, "no beat has claimed it")


COLUMNS = ("id", "due_at", "state", "reason", "started_at", "finished_at")


def _last_outcomes(schedules: Collection[int]) -> dict[int, list[Outcome]]:
    """The last outcome of each schedule that says how it is doing (index run_one_per_occurrence)."""
    telling = Run.objects.filter(TELLING, schedule=OuterRef("pk")).exclude(trigger=Trigger.BACKFILL)
    latest = Subquery(telling.order_by("-due_at", "-id").values("id")[:1])
    ids = PeriodicTask.objects.filter(pk__in=schedules).annotate(latest=latest).values_list("latest", flat=True)
    rows = Run.objects.filter(pk__in=[each for each in ids if each]).values_list("schedule_id", *COLUMNS)
    return {schedule: [_outcome(*row)] for schedule, *row in rows}


def _outcomes(schedule: int) -> list[Outcome]:
    """The last outcomes of a schedule, the latest first."""
    runs = (
        Run.objects.of_schedule(schedule).filter(TELLING).exclude(trigger=Trigger.BACKFILL).order_by("-due_at", "-id")
    )
    return [_outcome(*row) for row in runs.values_list(*COLUMNS)[:MOST_FAILURES]]


def _outcome(run: UUID, due_at: datetime, state: str, reason: str, start: datetime | None, end: datetime) -> Outcome:
    return Outcome(run, due_at, state, reason, end - start if start else None)
