"""Which due moments of a time range has a schedule not run, and how do they run now?

Its one rule: the ledger decides which moments are missing. A backfill is one request: sent twice, it is done once. Its
runs start oldest first, a few at a time.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from itertools import groupby, islice

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from jobs.ledger import windows
from jobs.ledger.new_runs import NewRun, new_run
from jobs.messages.message import Message, message_of
from jobs.models import ACTIVE, Backfill, Policy, Run, State, Trigger, bulk, database_now, installation
from jobs.models.audit import Act, Actor, Changed, Kind, note
from jobs.models.refusals import refusal
from jobs.models.runs import REQUESTED
from jobs.rules.errors import Invalid
from jobs.schedules import past

NO_POLICY = "The schedule was created a moment ago, and beat has not read it yet: try again in a few seconds."
MOST_BACKFILLED = 10_000  # due moments
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# The states that mean "it ran, or will run": a moment with such a run is not missing.
_PRESENT = {
    Backfill.Which.MISSING: ACTIVE | {State.SUCCEEDED, State.FAILED, State.LOST},
    Backfill.Which.FAILED: ACTIVE | {State.SUCCEEDED},
    Backfill.Which.ALL: ACTIVE,
}


@dataclass(frozen=True, slots=True)
class Preview:
    """The moments that a backfill would run, and how many others of the range it would leave alone.

    `starts` are the starts of their data windows. `assumed` moments lie before the schedule's timings are known.
    """

    moments: list[datetime]
    left_alone: int
    starts: list[datetime | None]
    assumed: int


def preview(request: Backfill) -> Preview:
    """The moments that `backfill` would run now, oldest first. Raises `Invalid`, which says what to choose instead."""
    if why := installation.refusal():
        raise Invalid(why)
    policy = Policy.objects.select_related("schedule").filter(schedule=request.schedule_id).first()
    if policy is None:
        raise Invalid(NO_POLICY)
    message_of(policy.schedule, policy)
    if not _EPOCH < request.start < request.end <= database_now():
        raise Invalid("Choose a range in the past, after 1970, that ends after it starts.")
    due = _due(request, policy)
    left_alone = _left_alone(request, policy, due)
    windows_of = zip(due, [windows.previous(policy, request.start), *due], strict=False)
    wanted = [(moment, start) for moment, start in windows_of if moment not in left_alone]
    known = past.known_since(policy) or request.end
    moments = [moment for moment, _ in wanted]
    return Preview(moments, len(left_alone), [start for _, start in wanted], sum(moment < known for moment in moments))


def _due(request: Backfill, policy: Policy) -> list[datetime]:
    """The moments of the range that were due, by the timings in force then or in the ledger. Raises `Invalid`."""
    runs = Run.objects.filter(schedule=policy.pk, trigger=Trigger.SCHEDULE)
    rows = runs.filter(due_at__gte=request.start, due_at__lt=request.end).order_by("due_at")
    pairs = rows.values_list("due_at", "last_due_at")[: MOST_BACKFILLED + 1]
    recorded = sorted(moment for pair in pairs for moment in pair if moment < request.end)
    due = groupby(merge(past.due(policy, request.start, request.end), recorded))
    moments = [moment for moment, _ in islice(due, MOST_BACKFILLED + 1)]
    if len(moments) > MOST_BACKFILLED:
        raise Invalid(f"There are more than {MOST_BACKFILLED} due moments in this range; choose a shorter one.")
    return moments


def _left_alone(request: Backfill, policy: Policy, due: list[datetime]) -> set[datetime]:
    """The moments that ran, or will run, or may have run before the clean-up, or that beat has yet to decide."""
    present = _present(request, _PRESENT[Backfill.Which(request.which)])
    undecided = policy.owed_from or policy.next_due_at or request.end
    left = {moment for moment in due if moment in present or moment >= undecided}
    if policy.forgotten_until and request.which != Backfill.Which.ALL:
        known = _present(request, list(State))
        left |= {moment for moment in due if moment <= policy.forgotten_until and moment not in known}
    return left


def _present(request: Backfill, states: Collection[State]) -> set[datetime]:
    of_range = Q(due_at__gte=request.start, due_at__lt=request.end)
    runs = Run.objects.of_schedule(request.schedule_id).filter(of_range, state__in=states)
    return set(runs.exclude(trigger__in=REQUESTED).values_list("due_at", flat=True))


def backfill(request: Backfill, actor: Actor | str) -> int:
    """Save this request and create its runs; returns how many. Beat starts them one after the other.

    A request with an id that exists creates none: then 0 is returned. Raises `Invalid`, also where `preview` does.
    """
    actor = Actor.of(actor)
    actor.check_act(Kind.SCHEDULE, Act.BACKFILL)
    request.actor = actor.name
    _check(request)
    with transaction.atomic():
        policies = Policy.objects.select_related("schedule").select_for_update(of=("self",))
        policy = policies.filter(pk=request.schedule_id).first()
        if Backfill.objects.filter(id=request.id).exists():
            return 0
        if policy is None:
            raise Invalid(NO_POLICY)
        actor.check_may(policy.schedule.task, schedule=policy.pk)
        seen = preview(request)
        if not bulk.insert_new(request):  # for another schedule, at the same time
            return 0
        message = message_of(policy.schedule, policy)
        due = zip(seen.moments, seen.starts, strict=True)
        bulk.insert(Run, [_backfilling(request, policy.schedule, message, *each) for each in due])
        after = {"backfill": str(request.id), "runs": len(seen.moments)}
        row = Changed(policy.pk, policy.schedule.name, None, after)
        note(actor, Kind.SCHEDULE, Act.BACKFILL, [row], f"Backfilled: {request}.")
    return len(seen.moments)


def _check(request: Backfill) -> None:
    """What the columns do not allow is refused here, for doors without a form. Raises `Invalid`."""
    try:
        request.clean_fields()
    except ValidationError as error:
        raise refusal(error) from error


def _backfilling(
    request: Backfill, schedule: PeriodicTask, asked: Message, moment: datetime, start: datetime | None
) -> NewRun:
    run = new_run(schedule.pk, schedule.name, asked, moment, moment)
    run.trigger, run.actor, run.backfill_id, run.not_before = Trigger.BACKFILL.value, request.actor, request.id, None
    run.window_start = windows.written(start)
    return run
