"""Which due moments of a time range has a schedule not run, and how do they run now?

Its one rule: the ledger decides which moments are missing. A backfill is one request: sent twice, it is done once. Its
runs start oldest first, a few at a time.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from jobs.ledger.new_runs import NewRun, new_run
from jobs.messages.message import Message, message_of
from jobs.models import ACTIVE, Backfill, Policy, Run, State, Trigger, bulk, database_now
from jobs.models.audit import Actor, note
from jobs.rules.errors import Invalid
from jobs.rules.occurrences import occurrences
from jobs.schedules.calendar import spec_of

NO_POLICY = "The schedule was created a moment ago, and beat has not read it yet: try again in a few seconds."
MOST_BACKFILLED = 10_000  # due moments
_INSTANT = timedelta.resolution
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# The states that mean "it ran, or will run": a moment with such a run is not missing.
_PRESENT = {
    Backfill.Which.MISSING: ACTIVE | {State.SUCCEEDED, State.FAILED, State.LOST},
    Backfill.Which.FAILED: ACTIVE | {State.SUCCEEDED},
    Backfill.Which.ALL: ACTIVE,
}


@dataclass(frozen=True, slots=True)
class Preview:
    """The moments that a backfill would run, and how many others of the range it would leave alone."""

    moments: list[datetime]
    left_alone: int


def preview(request: Backfill) -> Preview:
    """The moments that `backfill` would run now, oldest first. Raises `Invalid`, which says what to choose instead."""
    policy = Policy.objects.select_related("schedule").filter(schedule=request.schedule_id).first()
    if policy is None:
        raise Invalid(NO_POLICY)
    message_of(policy.schedule, policy)
    if not _EPOCH < request.start < request.end <= database_now():
        raise Invalid("Choose a range in the past, after 1970, that ends after it starts.")
    spec = spec_of(policy.schedule, policy.timing_since or database_now())
    moments = list(islice(occurrences(spec, request.start - _INSTANT, request.end - _INSTANT), MOST_BACKFILLED + 1))
    if len(moments) > MOST_BACKFILLED:
        raise Invalid(f"There are more than {MOST_BACKFILLED} due moments in this range; choose a shorter one.")
    present = _present(request, _PRESENT[Backfill.Which(request.which)])
    forgotten = policy.forgotten_until if request.which != Backfill.Which.ALL else None
    known = _present(request, list(State)) if forgotten else set()
    undecided = policy.owed_from or policy.next_due_at or request.end  # beat has yet to decide about later moments
    wanted = [
        moment
        for moment in moments
        if moment < undecided
        and moment not in present
        and not (forgotten and moment <= forgotten and moment not in known)
    ]
    return Preview(wanted, len(moments) - len(wanted))


def _present(request: Backfill, states: Collection[State]) -> set[datetime]:
    of_range = Q(due_at__gte=request.start, due_at__lt=request.end)
    runs = Run.objects.of_schedule(request.schedule_id).filter(of_range, state__in=states)
    return set(runs.exclude(trigger=Trigger.MANUAL).values_list("due_at", flat=True))


def backfill(request: Backfill, actor: Actor | str) -> int:
    """Save this request and create its runs; returns how many. Beat starts them one after the other.

    A request with an id that exists creates none: then 0 is returned. Raises `Invalid`, also where `preview` does.
    """
    actor = Actor.of(actor)
    request.actor = actor.name
    _check(request)
    with transaction.atomic():
        policies = Policy.objects.select_related("schedule").select_for_update(of=("self",))
        policy = policies.filter(pk=request.schedule_id).first()
        if Backfill.objects.filter(id=request.id).exists():
            return 0
        if policy is None:
            raise Invalid(NO_POLICY)
        moments = preview(request).moments
        request.save(force_insert=True)
        message = message_of(policy.schedule, policy)
        bulk.insert(Run, [_backfilling(request, policy.schedule, message, moment) for moment in moments])
        note(actor, PeriodicTask, [(policy.pk, policy.schedule.name)], f"Backfilled: {request}.")
    return len(moments)


def _check(request: Backfill) -> None:
    """What the columns do not allow is refused here, for doors without a form. Raises `Invalid`."""
    try:
        request.clean_fields()
    except ValidationError as error:
        raise Invalid(" ".join(f"{name}: {' '.join(texts)}" for name, texts in error.message_dict.items())) from error


def _backfilling(request: Backfill, schedule: PeriodicTask, asked: Message, moment: datetime) -> NewRun:
    run = new_run(schedule.pk, schedule.name, asked, moment, moment)
    run.trigger, run.actor, run.backfill_id, run.not_before = Trigger.BACKFILL.value, request.actor, request.id, None
    return run
