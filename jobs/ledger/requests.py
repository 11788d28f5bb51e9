"""Writes down runs that somebody asks for, beside those that fall due.

Its one rule: a request is a run like any other, committed before it is sent; it leaves the calendar alone and asks no
policy whether it may run. Requests with the same key are one run. A backfill takes from the ledger what to run, and
starts a few of its runs at a time.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import Q
from django_celery_beat.models import PeriodicTask

from jobs.beat.claim import NewRun, new_run
from jobs.messages.message import Message, check_fits, find_task, message_of, read
from jobs.models import (
    ACTIVE,
    LONGEST_ACTOR,
    LONGEST_NAME,
    Backfill,
    Policy,
    Run,
    State,
    StoredFile,
    Trigger,
    bulk,
    database_now,
)
from jobs.rules.occurrences import Invalid, occurrences
from jobs.schedules.calendar import spec_of
from jobs.toolkit import files

MOST_BACKFILLED = 10_000  # due moments
_INSTANT = timedelta.resolution
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What stands for "it ran, or is about to": a moment that has such a run is not missing.
_PRESENT = {
    Backfill.Which.MISSING: ACTIVE | {State.SUCCEEDED, State.FAILED, State.LOST},
    Backfill.Which.FAILED: ACTIVE | {State.SUCCEEDED},
    Backfill.Which.ALL: ACTIVE,
}


@dataclass(frozen=True, slots=True)
class Preview:
    """What a backfill would do: the moments it would run, and how many of the range it would leave alone."""

    moments: list[datetime]
    left_alone: int


def run_now(schedule: PeriodicTask, actor: str) -> Run:
    """Write down a run that a person asks for. Raises `Invalid` where the schedule cannot run.

    The caller's to send for `SENDING`, then any beat's.
    """
    now = database_now()
    policy = Policy.objects.filter(schedule=schedule).first() or Policy(schedule=schedule)
    new = new_run(schedule.pk, schedule.name, message_of(schedule, policy), now, now)
    new.trigger, new.actor = Trigger.MANUAL.value, actor
    bulk.insert(Run, [new])
    return Run.objects.get(id=new.id)


def run_job(job: str, arguments: dict[str, Any], actor: str, key: str | None = None) -> tuple[Run, bool]:
    """Write down a run of a job by itself, without a schedule; returns it, and whether it is new.

    Of all requests with the same key (at most 200 characters) the first makes a run, and the others are given that one,
    whatever their arguments. A new run is the caller's to send for `SENDING`, then any beat's. Raises `Invalid` for
    what cannot be.
    """
    if key is not None and not (0 < len(key) <= LONGEST_NAME and key.isprintable()):
        raise Invalid(f"The key of a request is text of at most {LONGEST_NAME} characters, all printable.")
    arguments = _storable(arguments)
    check_fits(job, [], arguments)
    now = database_now()
    new = new_run(None, job, Message(job, kwargs=arguments), now, now)
    new.trigger, new.actor, new.key = Trigger.MANUAL.value, actor[:LONGEST_ACTOR], key
    if bulk.insert(Run, [new]):
        return Run.objects.get(id=new.id), True
    run = Run.objects.get(key=key)
    if run.task != job:
        raise Invalid(f"A request with this key was for {run.task}: choose another key.")
    return run, False


def take_upload(
    upload: UploadedFile[bytes], actor: str, key: str | None = None, job: str = "jobs.process_upload"
) -> tuple[Run, bool]:
    """Keep what was uploaded, and write down a run of a job for the file; returns as `run_job` does.

    The file comes first: who dies before the run is there is asked again, and the file nobody wanted is removed by
    `jobs.cleanup`. Raises `Invalid` for a file that is too large, and as `run_job` does.
    """
    if upload.size is None or upload.size > files.LARGEST_UPLOAD:
        raise Invalid(f"The file is larger than {files.LARGEST_UPLOAD:,} bytes: upload a smaller one.")
    row = files.keep(str(upload.name), upload, StoredFile.Kind.UPLOAD, str(upload.content_type or ""))
    is_new = False
    try:
        run, is_new = run_job(job, {"file": str(row.id)}, actor, key)
    finally:
        if not is_new:
            files.remove(row)
    return run, is_new


def retry(run: Run, actor: str) -> Run:
    """Write down a run that repeats one that is over, with the same message. Raises `Invalid` where it cannot be.

    It stands for the same due moment, so it has the same data window. The caller's to send for `SENDING`.
    """
    if run.state in ACTIVE:
        raise Invalid(f"it is still {run.state}")
    if run.count > 1:
        raise Invalid(f"it stands for {run.count} due moments: backfill their range instead")
    if find_task(run.task) is None:
        raise Invalid(f"no job is named {run.task!r} any more")
    options = {name: value for name, value in run.options.items() if name != "retries"}  # it has all of them again
    repeated = Message(run.task, run.args, run.kwargs, run.queue, run.priority, options)
    new = new_run(run.schedule_id, run.schedule_name, repeated, run.due_at, database_now())
    new.trigger, new.actor, new.parent_id = Trigger.RETRY.value, actor, run.id
    bulk.insert(Run, [new])
    return Run.objects.get(id=new.id)


def preview(request: Backfill) -> Preview:
    """What `backfill` would run now, the oldest moment first. Raises `Invalid` with what to choose instead."""
    policy = Policy.objects.select_related("schedule").filter(schedule=request.schedule_id).first()
    if policy is None:
        raise Invalid("The schedule was made a moment ago, and nothing is known of it yet: try again in a few seconds.")
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
    undecided = policy.owed_from or policy.next_due_at or request.end  # beat is about to decide about those
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


def backfill(request: Backfill) -> int:
    """Save this request and write down its runs; returns how many. They start one after the other, by any beat.

    Asked twice with the same id it is done once, and 0 is returned. Raises `Invalid` as `preview` does.
    """
    with transaction.atomic():
        policy = Policy.objects.select_related("schedule").select_for_update().get(schedule=request.schedule_id)
        if Backfill.objects.filter(id=request.id).exists():
            return 0
        moments = preview(request).moments
        request.save(force_insert=True)
        asked = message_of(policy.schedule, policy)
        bulk.insert(Run, [_backfilling(request, policy.schedule, asked, moment) for moment in moments])
    return len(moments)


def _backfilling(request: Backfill, schedule: PeriodicTask, asked: Message, moment: datetime) -> NewRun:
    run = new_run(schedule.pk, schedule.name, asked, moment, moment)
    run.trigger, run.actor, run.backfill_id, run.not_before = Trigger.BACKFILL.value, request.actor, request.id, None
    return run


def _storable(arguments: dict[str, Any]) -> dict[str, Any]:
    """As a schedule's arguments would be read. Raises `Invalid`."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The arguments are not plain JSON: {error}.") from error
    return dict(read(text, "The arguments", dict))
