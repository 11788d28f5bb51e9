"""What can people and programs request? To run a schedule or a job, to repeat a run, to cancel runs.

Its one rule: a requested run is a run like any other, committed before it is sent. It does not change when the schedule
is due next, and ignores the policies on overlap and pauses. Requests with the same key make one run. Each function gets
the actor, checks the actor's permission and right for the job, names the actor in the run, and notes the act in the
same transaction; a door parses, calls and renders.

A new run is sent as soon as its transaction is committed (`sending`). While the broker is unavailable it waits, and
beat sends it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from types import NoneType
from typing import Any, TypeVar

from celery import current_app
from django.db import transaction
from django_celery_beat.models import PeriodicTask

from jobs.ledger import outcomes, windows
from jobs.ledger.new_runs import NewRun, new_run
from jobs.ledger.outcomes import Cancelled
from jobs.ledger.sending import send_after_commit
from jobs.messages import queues
from jobs.messages.arguments import check_fits, find_task, refuse_step
from jobs.messages.message import Message, message_of, read
from jobs.models import (
    ACTIVE,
    LONGEST_NAME,
    UNSTARTED,
    Policy,
    Run,
    RunQuerySet,
    State,
    Trigger,
    bulk,
    database_now,
    installation,
)
from jobs.models.audit import Act, Actor, Changed, Door, Kind, note
from jobs.rules.errors import Conflict, Invalid
from jobs.secrets import as_key, refuse_passwords

LONGEST_DELAY = timedelta(days=3650)
MOST_PRIORITY = 255
GONE = "its schedule was deleted meanwhile"
TAKEN = "another request had this key: choose a new key for each request"
T = TypeVar("T")
TRIGGERS = {Door.API: Trigger.API, Door.WEBHOOK: Trigger.WEBHOOK, Door.CODE: Trigger.CODE}  # the others: by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run of a job starts. Only the first request with a `key` makes a run.

    It starts `delay` after the request, or at the moment `at`; until then it waits in the ledger.
    """

    key: str | None = None
    delay: timedelta | None = None
    at: datetime | None = None
    priority: int | None = None
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Requested:
    """The new runs, the refused requests, each with the reason, and the runs of earlier requests with the same key."""

    runs: list[Run] = field(default_factory=list)
    refused: list[tuple[Any, str]] = field(default_factory=list)
    repeated: list[Run] = field(default_factory=list)


def run_now(schedules: Iterable[PeriodicTask], actor: Actor | str, key: str | None = None) -> Requested:
    """Run each of these schedules once, now. Only the first request with a key makes the runs."""
    actor = Actor.of(actor)
    actor.check_act(Kind.SCHEDULE, Act.RUN)
    return _request_each(partial(_now, actor=actor, key=_checked_key(key)), schedules, _Noted(actor, Act.RUN))


def retry(runs: Iterable[Run], actor: Actor | str, key: str | None = None) -> Requested:
    """Repeat each of these runs, which must be over, with the same message. The new run names it as its parent.

    The new run has the same due moment and the same data window. Only the first request with a key makes the runs.
    """
    actor = Actor.of(actor)
    actor.check_act(Kind.RUN, Act.RETRY)
    return _request_each(partial(_repeat, actor=actor, key=_checked_key(key)), runs, _Noted(actor, Act.RETRY))


def start(
    job: str, arguments: dict[str, Any], actor: Actor | str, options: RunOptions | None = None
) -> tuple[Run, bool]:
    """Run a job by itself, without a schedule; returns the run, and whether it is new.

    Only the first request with a key makes a run. Later ones get that run, even if their arguments differ. Raises
    `Invalid` with a sentence that says what to change, `Conflict` if the key was for another job, or `Forbidden`.
    """
    actor, options = Actor.of(actor), RunOptions() if options is None else options
    actor.check_act(Kind.RUN, Act.START)
    if not isinstance(options, RunOptions):
        kind = type(options).__name__
        raise Invalid(f"The options of a run are RunOptions, not {kind}: write RunOptions(key=...) or none.")
    key = _checked_key(options.key)
    if why := installation.refusal():
        raise Invalid(why)
    new = _of_job(arguments, job, actor, options)
    new.key = key
    with transaction.atomic():
        if bulk.insert(Run, [new]):
            note(actor, Kind.RUN, Act.START, [Changed(new.id, job)])
            run = Run.objects.get(id=new.id)
            send_after_commit([] if new.not_before == new.due_at else [run])  # a later one waits
            return run, True
    run = Run.objects.get(key=new.key)
    if run.task != job:
        raise Conflict(f"A request with this key was for {run.task}: choose another key.")
    return run, False


def start_each(job: str, arguments: Iterable[dict[str, Any]], actor: Actor | str) -> Requested:
    """Run a job once for each of these arguments."""
    actor = Actor.of(actor)
    actor.check_act(Kind.RUN, Act.START)
    make = partial(_of_job, job=job, actor=actor, options=RunOptions())
    return _request_each(make, arguments, _Noted(actor, Act.START))


def run_job(job: Any, options: RunOptions | None = None, /, **arguments: Any) -> Run:
    """Run a job with these arguments, once the surrounding transaction is committed; returns its run.

    The job is a task or its name. Without a transaction the run is committed, and sent, at once. Raises `Invalid`.
    """
    name = getattr(job, "name", job)
    if not isinstance(name, str):
        raise Invalid(f"{job!r} is no job: give a task or its name.")
    run, _ = start(name, arguments, "code", options)
    return run


def cancel(runs: RunQuerySet, actor: Actor | str) -> Cancelled:
    """End unstarted runs at once, and ask running ones to end. Raises `Forbidden` before it ends any."""
    actor = Actor.of(actor)
    actor.check_act(Kind.RUN, Act.CANCEL)
    actor.check_rows(runs)
    with transaction.atomic():
        # Locked: a run that starts or ends meanwhile is noted as what it is then, or not at all.
        active = Run.objects.filter(pk__in=runs.values("pk"), state__in=ACTIVE).order_by("pk")
        chosen = list(
            active.select_for_update(no_key=True).values_list("pk", "schedule_name", "state", "cancel_reason")
        )
        cancelled = outcomes.cancel(Run.objects.filter(pk__in=[key for key, *_ in chosen]), f"by {actor.name}")
        rows = [Changed(key, name, *_cancelled(state, why, actor)) for key, name, state, why in chosen]
        note(actor, Kind.RUN, Act.CANCEL, [row for row in rows if row.before != row.after])
    return cancelled


def _cancelled(state: str, why: str, actor: Actor) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a cancellation changes in a run: an unstarted one ends, a running one is asked to end."""
    if state in UNSTARTED:
        return {"state": state}, {"state": State.CANCELLED.value}
    return {"cancel_reason": why}, {"cancel_reason": f"cancelled: by {actor.name}"}


@dataclass(frozen=True, slots=True)
class _Noted:
    """Who requests the runs, and by which act."""

    actor: Actor
    act: Act

    def note(self, made: Sequence[tuple[Any, Run]]) -> None:
        """Note the act for the schedules, or for the runs, that the new runs were made from."""
        rows = [Changed(run.id, run.schedule_name) if isinstance(of, dict) else _with_run(of, run) for of, run in made]
        note(self.actor, Kind.SCHEDULE if self.act == Act.RUN else Kind.RUN, self.act, rows)


def _with_run(of: Any, run: Run) -> Changed:
    return Changed(of.pk, run.schedule_name, None, {"run": str(run.id)})


def _request_each(make: Callable[[T], NewRun], wanted: Iterable[T], noted: _Noted) -> Requested:
    if why := installation.refusal():
        return Requested([], [(each, why) for each in wanted])
    made, refused = [], []
    for each in wanted:
        try:
            made.append((each, make(each)))
        except Invalid as error:
            refused.append((each, str(error)))
    with transaction.atomic():
        existing = bulk.hold(PeriodicTask, {new.schedule_id for _, new in made} - {None})
        bulk.insert(Run, [new for _, new in made if new.schedule_id in {None, *existing}])
        runs = Run.objects.in_bulk([new.id for _, new in made])
        noted.note([(each, runs[new.id]) for each, new in made if new.id in runs])
        send_after_commit(list(runs.values()))
    missing = [(each, new) for each, new in made if new.id not in runs]
    earlier = {run.key: run for run in Run.objects.filter(key__in=[new.key for _, new in missing if new.key])}
    repeated = [run for _, new in missing if (run := earlier.get(new.key)) and run.schedule_id == new.schedule_id]
    keys = {run.key for run in repeated}
    refused += [(each, TAKEN if new.key in earlier else GONE) for each, new in missing if new.key not in keys]
    return Requested([runs[new.id] for _, new in made if new.id in runs], refused, repeated)


def _checked_key(key: str | None) -> str | None:
    """A key as a run stores it. Raises `Invalid`."""
    if key is None:
        return None
    if not (isinstance(key, str) and 0 < len(key) <= LONGEST_NAME and key.isprintable()):
        raise Invalid(f"The key of a request is text of at most {LONGEST_NAME} characters, all printable.")
    return as_key(key, LONGEST_NAME)


def _now(schedule: PeriodicTask, actor: Actor, key: str | None) -> NewRun:
    actor.check_may(schedule.task, schedule=schedule.pk)
    policy = Policy.objects.filter(schedule=schedule).first() or Policy(schedule=schedule)
    now = database_now()
    new = new_run(schedule.pk, schedule.name, message_of(schedule, policy), now, now)
    new.trigger, new.actor = TRIGGERS.get(actor.door, Trigger.MANUAL).value, actor.name
    new.window_start = windows.written(windows.previous(policy, now))
    new.key = key and as_key(f"{key} {schedule.pk}", LONGEST_NAME)
    return new


def _repeat(run: Run, actor: Actor, key: str | None) -> NewRun:
    actor.check_may(run.task, schedule=run.schedule_id)
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
    new.key = key and as_key(f"{key} {run.id}", LONGEST_NAME)
    new.window_start = windows.written(windows.window_start(run))
    return new


def _of_job(arguments: dict[str, Any], job: str, actor: Actor, options: RunOptions) -> NewRun:
    actor.check_may(job)
    arguments = _storable(arguments)
    check_fits(job, [], arguments)
    _check_destination(options)
    now = database_now()
    due_at = _due_at(options, now)
    new = new_run(None, job, Message(job, [], arguments, options.queue or "", options.priority), due_at, now)
    new.trigger, new.actor = TRIGGERS.get(actor.door, Trigger.MANUAL).value, actor.name
    if due_at > now:
        new.not_before = due_at
    return new


def _check_destination(options: RunOptions) -> None:
    """Refuse a queue or a priority that no message can have. Raises `Invalid`."""
    queue, priority = options.queue, options.priority
    if not isinstance(queue, (str, NoneType)):
        raise Invalid(f"The queue of a run is a name, not {type(queue).__name__}: write it as text.")
    if queue:
        queues.check(queue, current_app)
    is_number = isinstance(priority, int) and not isinstance(priority, bool)
    if priority is not None and not (is_number and 0 <= priority <= MOST_PRIORITY):
        raise Invalid(f"The priority of a run is a number from 0 to {MOST_PRIORITY}.")


def _due_at(options: RunOptions, now: datetime) -> datetime:
    """When the run should start. Raises `Invalid`."""
    if options.delay is not None and options.at is not None:
        raise Invalid("Give a delay or a moment to start at, not both.")
    delay = _delay(options.delay) if options.at is None else _moment(options.at) - now
    if not -LONGEST_DELAY < delay < LONGEST_DELAY or (options.at is None and delay < timedelta(0)):
        raise Invalid(f"A run starts at the latest {LONGEST_DELAY.days:,} days after its request; a delay is positive.")
    return max(now, now + delay)


def _delay(value: Any) -> timedelta:
    if not isinstance(value, (timedelta, NoneType)):
        kind = type(value).__name__
        raise Invalid(f"The delay of a run is a timedelta, not {kind}: write timedelta(seconds=...).")
    return value or timedelta(0)


def _moment(value: Any) -> datetime:
    if not isinstance(value, datetime):
        kind = type(value).__name__
        raise Invalid(
            f"The moment to start at is a datetime, not {kind}: write datetime(2026, 12, 24, 18, tzinfo=UTC)."
        )
    if value.utcoffset() is None:
        raise Invalid("The moment to start at has no time zone: add one, such as +00:00.")
    return value


def _storable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, read like those of a schedule. Raises `Invalid`."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The arguments are not plain JSON: {error}.") from error
    refuse_passwords(arguments)
    return dict(read(text, "The arguments", dict))
