"""Creates the rows that tests start with, through the models that users use."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from celery._state import _task_stack
from django.db import connection, transaction
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs.ledger import requests, sending
from jobs.messages.arguments import find_task
from jobs.models import ACTIVE, Policy, Run, State, database_now
from jobs.rules.errors import Invalid
from jobs.rules.occurrences import as_text
from jobs.schedules import calendar
from jobs.worker import context, pulse
from jobs.worker.context import Execution
from tests.waiting import DEADLINE, eventually

WAITING_FOR_A_LOCK = """
SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (
    SELECT pid FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
"""
T = TypeVar("T")


def make_schedule(name: str = "it", task: str = "tests.nothing", **options: Any) -> PeriodicTask:
    """A schedule every hour, unless `every` (a timedelta of whole seconds) or `cron` (its fields) says otherwise.

    `args` and `kwargs` are given as values; `policy` holds columns of its policy.
    """
    policy = options.pop("policy", {})
    every: timedelta = options.pop("every", timedelta(hours=1))
    if "cron" in options:
        options["crontab"] = CrontabSchedule.objects.create(**options.pop("cron"))
    elif not any(kind in options for kind in ("crontab", "interval", "clocked", "solar")):
        seconds = int(every.total_seconds())
        options["interval"], _ = IntervalSchedule.objects.get_or_create(every=seconds, period="seconds")
    for column in ("args", "kwargs"):
        if column in options and not isinstance(options[column], str):
            options[column] = json.dumps(options[column])
    schedule = PeriodicTask.objects.create(name=name, task=task, **options)
    Policy.objects.filter(schedule=schedule).update(**policy)
    return schedule


def make_due(schedule: PeriodicTask, ago: timedelta = timedelta(0)) -> datetime:
    """Make the schedule due since `ago`, as if it had existed then; returns the due moment."""
    moment = database_now() - ago
    timing = as_text(calendar.spec_of(schedule, moment))
    Policy.objects.filter(schedule=schedule).update(next_due_at=moment, timing_since=moment, timing=timing)
    return moment


def make_run(schedule: PeriodicTask | None = None, state: State = State.WAITING, **columns: Any) -> Run:
    """A run in `state`, due now."""
    now = database_now()
    defaults: dict[str, Any] = {"task": "tests.nothing", "due_at": now, "last_due_at": now, "not_before": now}
    if state == State.RUNNING:
        defaults |= {"started_at": now, "lease_until": now + timedelta(minutes=1), "node": "celery@here", "pid": 1}
    elif state not in (State.WAITING, State.QUEUED):
        defaults |= {"finished_at": now}
    name = schedule.name if schedule else "it"
    return Run.objects.create(schedule=schedule, schedule_name=name, state=state, **{**defaults, **columns})


def send(task: str, *args: object, **policy: object) -> Run:
    """A run of a new schedule, sent to the broker."""
    schedule = make_schedule(f"{task} {uuid4()}", task=task, args=list(args), policy=policy)
    return run_now(schedule)


def run_now(schedule: PeriodicTask, actor: str = "ada") -> Run:
    """A manual run of this schedule. Raises `Invalid` with the reason if it is refused."""
    requested = requests.run_now([schedule], actor)
    for _, why in requested.refused:
        raise Invalid(why)
    if not transaction.get_connection().in_atomic_block:
        assert sending.wait(DEADLINE)
    return requested.runs[0]


def expire_lease(run: Run) -> None:
    """As if so much time had passed that the lease of a run is over whose process no longer renews it."""
    Run.objects.filter(id=run.id).update(lease_until=database_now())


@contextmanager
def inside(run: Run) -> Iterator[Execution]:
    """Act as if this process executed the run."""
    task = find_task("tests.nothing")
    execution = Execution(str(run.id), run.id, run.attempt)
    task.push_request(id=str(run.id), called_directly=False)
    _task_stack.push(task)
    context.enter(task.request, execution)
    pulse.watch(execution)
    try:
        yield execution
    finally:
        pulse.release(execution)
        context.leave(execution)
        _task_stack.pop()
        task.pop_request()


@contextmanager
def beside_event_loop() -> Iterator[None]:
    """Act as if an event loop were running in this thread, as one that a job left behind."""
    with closing(asyncio.new_event_loop()) as loop:
        asyncio._set_running_loop(loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


def ends(run: Run) -> bool:
    """Read the run again; returns whether it is over."""
    run.refresh_from_db()
    return run.state not in ACTIVE


def lines(path: Path) -> list[str]:
    """The lines that tests.app.tasks left in a file."""
    return path.read_text().split() if path.exists() else []


only_where_rows_are_locked = pytest.mark.skipif(
    "config.getoption('database') == 'sqlite'", reason="SQLite locks no rows."
)


def elsewhere(act: Callable[[], T]) -> T:
    """Call `act` in another thread, on PostgreSQL. Raises OperationalError if it has to wait for a lock."""

    def call() -> T:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '10s'")
            return act()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(DEADLINE)


def blocked(act: Callable[[], object]) -> threading.Thread:
    """A thread in which `act` has come to wait for a lock of the caller's transaction."""

    def run() -> None:
        try:
            act()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()

    def waits() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(WAITING_FOR_A_LOCK)
            return bool(cursor.fetchone()[0])

    eventually(waits, stop=lambda: "" if thread.is_alive() or waits() else "it did not wait for a lock")
    return thread
