"""What can people request? To run a schedule or a job now, to repeat a run, to cancel runs.

Its one rule: a requested run is a run like any other, committed before it is sent. It does not change when the schedule
is due next, and ignores the policies on overlap and pauses. Requests with the same key make one run. Each function gets
the actor, checks the actor's right for the job, and records the actor in the run; a door checks the permission, parses,
calls and renders.

A new run is sent as soon as its transaction is committed. While the broker is unavailable it waits, and beat sends it.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from django.db import IntegrityError, transaction
from django_celery_beat.models import PeriodicTask

from jobs.ledger import outbox, outcomes, windows
from jobs.ledger.new_runs import NewRun, new_run
from jobs.ledger.outcomes import Cancelled
from jobs.messages.arguments import check_fits, find_task, refuse_step
from jobs.messages.dispatch import BrokerUnavailableError
from jobs.messages.message import Message, message_of, read
from jobs.models import ACTIVE, LONGEST_NAME, Policy, Run, RunQuerySet, Trigger, bulk, database_now, installation
from jobs.models.audit import Actor
from jobs.rules.errors import Invalid, logged
from jobs.secrets import as_key, refuse_passwords

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Requested:
    """The new runs, and the refused requests, each with the reason."""

    runs: list[Run] = field(default_factory=list)
    refused: list[tuple[Any, str]] = field(default_factory=list)


def run_now(schedules: Iterable[PeriodicTask], actor: Actor | str) -> Requested:
    """Run each of these schedules once, now."""
    return _request_each(partial(_now, actor=Actor.of(actor)), schedules)


def retry(runs: Iterable[Run], actor: Actor | str) -> Requested:
    """Repeat each of these runs, which must be over, with the same message. The new run names it as its parent.

    The new run has the same due moment and the same data window.
    """
    return _request_each(partial(_repeat, actor=Actor.of(actor)), runs)


def run_job(job: str, arguments: dict[str, Any], actor: Actor | str, key: str | None = None) -> tuple[Run, bool]:
    """Run a job by itself, without a schedule; returns the run, and whether it is new.

    Only the first request with a key (at most 200 characters) makes a run. Later ones get that run, even if their
    arguments differ. A plain name as the actor stands for code, which needs no right. Raises `Invalid` with a
    sentence that says what to change, or `Forbidden` if the actor is a user without the right for the job.
    """
    if key is not None and not (0 < len(key) <= LONGEST_NAME and key.isprintable()):
        raise Invalid(f"The key of a request is text of at most {LONGEST_NAME} characters, all printable.")
    if why := installation.refusal():
        raise Invalid(why)
    new = _of_job(arguments, job, Actor.of(actor))
    new.key = key and as_key(key, LONGEST_NAME)
    if bulk.insert(Run, [new]):
        run = Run.objects.get(id=new.id)
        _send_after_commit([run])
        return run, True
    run = Run.objects.get(key=new.key)
    if run.task != job:
        raise Invalid(f"A request with this key was for {run.task}: choose another key.")
    return run, False


def run_job_each(job: str, arguments: Iterable[dict[str, Any]], actor: Actor | str) -> Requested:
    """Run a job once for each of these arguments."""
    return _request_each(partial(_of_job, job=job, actor=Actor.of(actor)), arguments)


def cancel(runs: RunQuerySet, actor: Actor | str) -> Cancelled:
    """End unstarted runs at once, and ask running ones to end. Raises `Forbidden` before it ends any."""
    actor = Actor.of(actor)
    actor.check_rows(runs)
    return outcomes.cancel(runs, f"by {actor.name}")


def _request_each(make: Callable[[T], NewRun], wanted: Iterable[T]) -> Requested:
    if why := installation.refusal():
        return Requested([], [(each, why) for each in wanted])
    made, refused = [], []
    for each in wanted:
        try:
            made.append((each, make(each)))
        except Invalid as error:
            refused.append((each, str(error)))
    _insert([new for _, new in made])
    runs = Run.objects.in_bulk([new.id for _, new in made])
    _send_after_commit(list(runs.values()))
    refused += [(each, "its schedule was deleted meanwhile") for each, new in made if new.id not in runs]
    return Requested([runs[new.id] for _, new in made if new.id in runs], refused)


def _insert(new: list[NewRun]) -> None:
    """Write the runs together; one by one where a schedule of theirs was deleted meanwhile."""
    try:
        with transaction.atomic():
            bulk.insert(Run, new)
    except IntegrityError:
        for run in new:
            with suppress(IntegrityError), transaction.atomic():
                bulk.insert(Run, [run])


def _send_after_commit(runs: Sequence[Run]) -> None:
    transaction.on_commit(partial(_send, runs))


def _send(runs: Sequence[Run]) -> None:
    """Send runs that are committed. An error would tell the caller that there is no run; beat sends unsent runs."""
    with logged(log, "Requested runs are not sent yet; beat sends them."):
        try:
            outbox.send(runs)
        except BrokerUnavailableError as error:
            log.warning("%s", error, extra={"action": "dispatch"})


def _now(schedule: PeriodicTask, actor: Actor) -> NewRun:
    actor.check_may(schedule.task)
    policy = Policy.objects.filter(schedule=schedule).first() or Policy(schedule=schedule)
    now = database_now()
    new = new_run(schedule.pk, schedule.name, message_of(schedule, policy), now, now)
    new.trigger, new.actor = Trigger.MANUAL.value, actor.name
    new.window_start = windows.written(windows.previous(policy, now))
    return new


def _repeat(run: Run, actor: Actor) -> NewRun:
    actor.check_may(run.task)
    if run.state in ACTIVE:
        raise Invalid(f"it is still {run.state}")
    if run.count > 1:
        raise Invalid(f"it stands for {run.count} due moments: backfill their range instead")
    if find_task(run.task) is None:
        raise Invalid(f"no job is named {run.task!r} any more")
    refuse_step(run.task)
    options = {
        name: value for name, value in run.options.items() if name != "retries"
    }  # the new run has all its retries again
    message = Message(run.task, run.args, run.kwargs, run.queue, run.priority, options)
    new = new_run(run.schedule_id, run.schedule_name, message, run.due_at, database_now())
    new.trigger, new.actor, new.parent_id = Trigger.RETRY.value, actor.name, run.id
    new.window_start = windows.written(windows.window_start(run))
    return new


def _of_job(arguments: dict[str, Any], job: str, actor: Actor) -> NewRun:
    actor.check_may(job)
    arguments = _storable(arguments)
    check_fits(job, [], arguments)
    now = database_now()
    new = new_run(None, job, Message(job, kwargs=arguments), now, now)
    new.trigger, new.actor = Trigger.MANUAL.value, actor.name
    return new


def _storable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, read like those of a schedule. Raises `Invalid`."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The arguments are not plain JSON: {error}.") from error
    refuse_passwords(arguments)
    return dict(read(text, "The arguments", dict))
