"""Writes down runs that somebody asks for, beside those that fall due.

Its one rule: a request is a run like any other, committed before it is sent; it leaves the calendar alone and asks no
policy whether it may run. Requests with the same key are one run. A backfill takes from the ledger what to run, and
starts a few of its runs at a time.
"""

import json
from typing import Any

from django_celery_beat.models import PeriodicTask

from jobs.ledger.new_runs import new_run
from jobs.messages.arguments import check_fits, find_task
from jobs.messages.message import Message, message_of, read
from jobs.models import (
    ACTIVE,
    LONGEST_ACTOR,
    LONGEST_NAME,
    Policy,
    Run,
    Trigger,
    bulk,
    database_now,
)
from jobs.rules.errors import Invalid


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


def _storable(arguments: dict[str, Any]) -> dict[str, Any]:
    """As a schedule's arguments would be read. Raises `Invalid`."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The arguments are not plain JSON: {error}.") from error
    return dict(read(text, "The arguments", dict))
