"""How fast is beat, compared with django-celery-beat's DatabaseScheduler? A burst, queries, idling, edits.

The burst also compares two beats of Punctual with one. Only the stock scheduler gets a notice of every change
(`PeriodicTasks.update_changed()`); Punctual finds changes by itself. The stock bursts are watched for `Size.watched`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psutil
from celery import current_app
from django.db import connection
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks
from django_celery_beat.schedulers import DatabaseScheduler

from benchmarks.figures import OURS, Figures
from benchmarks.ground import POLL, Ground, cpu, memory, wait_for
from jobs.beat.scheduler import Scheduler
from jobs.models import Policy, database_now
from jobs.schedules import calendar

TWO, STOCK = "Punctual, two beats", "django-celery-beat"
SCHEDULERS = {OURS: "jobs.beat:Scheduler", STOCK: "django_celery_beat.schedulers:DatabaseScheduler"}
QUEUE, PULSE, EDITED = "celery", "pulse", "edited"  # in the broker: for bursts, signs of life and edits
EDITED_EVERY = 1  # second


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of the benchmarks; times in seconds."""

    schedules: int
    due: Sequence[int]
    edited: int
    pulse: int  # interval of a beat's sign of life
    lead: int  # from the start of a beat to its burst
    watched: float  # how long the stock scheduler's burst is watched
    idle: float
    edits: int


FULL = Size(schedules=50_000, due=(1_000, 10_000), edited=10_000, pulse=5, lead=30, watched=30, idle=30, edits=3)
QUICK = Size(schedules=300, due=(100,), edited=50, pulse=1, lead=7, watched=8, idle=1, edits=1)


class Beat:
    """The beat benchmarks: each method measures one round. The constructor makes the schedules."""

    def __init__(self, ground: Ground, size: Size, figures: Figures) -> None:
        self._ground, self._size, self._figures = ground, size, figures
        self._make_schedules()

    # --- measurements -----------------------------------------------------------------------------------------------

    def burst(self) -> None:
        """Many crontabs are due in one minute: how fast and how late are they sent, and at what cost?"""
        for due in self._size.due:
            for who, beats in ((OURS, 1), (STOCK, 1), (TWO, 2)):
                self._burst(f"{due:,} due in one minute", who, beats, due)

    def queries(self) -> None:
        """Database queries for each run, counted in this process."""
        due = self._size.due[0]
        for who, beat in ((OURS, self._our_tick), (STOCK, self._stock_ticks)):
            self._arrange(due)
            queries = Counter[str]()
            with connection.execute_wrapper(partial(_count, queries)):
                sent = beat(due)
            self._figures.note("queries", who, "for each run", queries.total() / sent)

    def idle(self) -> None:
        """The cost of a beat while only its pulse is due."""
        for who in (OURS, STOCK):
            with self._beats(who) as beats:
                backends, before = _backends(), cpu(beats)
                before_there = cpu(backends)
                time.sleep(self._size.idle)
                self._figures.note("idle", who, "CPU %", 100 * (cpu(beats) - before) / self._size.idle)
                self._figures.note(
                    "idle", who, "CPU % in PostgreSQL", 100 * (cpu(backends) - before_there) / self._size.idle
                )
                self._figures.note("idle", who, "MB", memory(beats))

    def edit(self) -> None:
        """The time until a change takes effect: one saved schedule, and many changed by `update()`."""
        for who in (OURS, STOCK):
            with self._beats(who):
                for _ in range(self._size.edits):
                    self._figures.note("edits", who, "one save, s", self._effect(self._save_one, who))
                self._figures.note(
                    "edits", who, f"update() of {self._size.edited:,}, s", self._effect(self._update_many, who)
                )
                self._many().update(enabled=False)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _burst(self, what: str, who: str, beats: int, due: int) -> None:
        at = self._arrange(due)
        with self._beats(who, beats) as running:
            if time.time() > at.timestamp() - 0.5:
                raise TimeoutError("the beat was not ready when the burst was due: give it a longer lead")
            wait_for(lambda: time.time() > at.timestamp() - 0.3)
            before = cpu(running)
            times = self._arrivals(due, at.timestamp(), self._size.watched if who == STOCK else 120)
            used = cpu(running) - before
        late = [moment - at.timestamp() for moment in times] or [float("nan")]
        end = late[-1] if len(times) == due else self._size.watched
        self._figures.note(what, who, "sent", len(times))
        self._figures.note(what, who, "per second", len(times) / end)
        self._figures.note(what, who, "p50 late, s", late[len(late) // 2])
        self._figures.note(what, who, "p99 late, s", late[len(late) * 99 // 100])
        self._figures.note(what, who, "CPU µs each", used / max(1, len(times)) * 1e6)

    def _arrivals(self, expected: int, since: float, patience: float) -> list[float]:
        """The arrival time of each message in the queue."""
        times: list[float] = []
        while len(times) < expected and time.time() < since + patience:
            there = self._ground.broker.llen(QUEUE)
            times += [time.time()] * (there - len(times))
            time.sleep(POLL)
        return times

    def _our_tick(self, due: int) -> int:
        Policy.objects.filter(schedule__in=self._due(due)).update(next_due_at=database_now())
        scheduler = Scheduler(app=current_app)
        while self._ground.broker.llen(QUEUE) < due:
            scheduler.tick()
        return self._ground.broker.llen(QUEUE)

    def _stock_ticks(self, due: int) -> int:
        """Send only a few: the cost for each run does not depend on their number."""
        self._due(due).update(last_run_at=datetime.now(UTC) - timedelta(days=3))
        scheduler = DatabaseScheduler(app=current_app)
        scheduler._finalize.cancel()
        while self._ground.broker.llen(QUEUE) < min(due, 50):
            scheduler.tick()
        scheduler.sync()
        return self._ground.broker.llen(QUEUE)

    def _effect(self, change: Callable[[], float], who: str) -> float:
        """Seconds from a change to its first message, minus the interval of the schedule."""
        self._ground.broker.delete(EDITED)
        PeriodicTask.objects.filter(queue=EDITED).update(enabled=False)
        changed_at = change()
        if who == STOCK:
            PeriodicTasks.update_changed()
        return wait_for(lambda: bool(self._ground.broker.llen(EDITED))) - changed_at - EDITED_EVERY

    def _save_one(self) -> float:
        interval, _ = IntervalSchedule.objects.get_or_create(every=EDITED_EVERY, period="seconds")
        PeriodicTask.objects.filter(name=EDITED).delete()
        PeriodicTask.objects.create(name=EDITED, task="tests.nothing", interval=interval, queue=EDITED)
        return time.time()

    def _update_many(self) -> float:
        self._many().update(enabled=True)
        return time.time()

    @contextmanager
    def _beats(self, who: str, number: int = 1) -> Iterator[list[psutil.Process]]:
        """Running beats that have sent their first pulse, on a vacuumed database."""
        self._clear()
        scheduler = SCHEDULERS.get(who, SCHEDULERS[OURS])
        app = "benchmarks.bare" if who == STOCK else "project"  # Punctual refuses to start it
        command = ["celery", "-A", app, "beat", "-S", scheduler, "--pidfile="]
        with self._ground.running(*[command] * number) as processes:
            wait_for(lambda: bool(self._ground.broker.llen(PULSE)))
            yield processes

    # --- rows -------------------------------------------------------------------------------------------------------

    def _make_schedules(self) -> None:
        """Make crontabs that are not due today, a pulse, and disabled schedules to enable, one of which sends then."""
        day = (datetime.now(UTC).day + 14) % 28 + 1
        crontabs = CrontabSchedule.objects.bulk_create(
            CrontabSchedule(minute=minute, hour=hour, day_of_month=day) for hour in range(24) for minute in range(60)
        )
        self._never = {"crontab": crontabs[0], "interval": None}
        names = [f"s{n}" for n in range(self._size.schedules)] + [f"e{n}" for n in range(self._size.edited)]
        rows = [
            PeriodicTask(name=name, task="tests.nothing", args=f"[{n}]", crontab=crontabs[n % len(crontabs)])
            for n, name in enumerate(names)
        ]
        for row in rows[self._size.schedules :]:
            row.enabled = False
        second, pulse = (
            IntervalSchedule.objects.get_or_create(every=every, period="seconds")[0]
            for every in (EDITED_EVERY, self._size.pulse)
        )
        rows[-1].crontab, rows[-1].interval, rows[-1].queue = None, second, EDITED
        rows.append(PeriodicTask(name="pulse", task="tests.nothing", interval=pulse, queue=PULSE))
        PeriodicTask.objects.bulk_create(rows, batch_size=2000)
        PeriodicTasks.update_changed()
        calendar.sweep()

    def _clear(self) -> None:
        self._ground.broker.flushdb()
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE jobs_run CASCADE")
            cursor.execute("VACUUM ANALYZE")

    def _due(self, due: int) -> Any:
        return PeriodicTask.objects.filter(name__in=[f"s{n}" for n in range(due)])

    def _many(self) -> Any:
        return PeriodicTask.objects.filter(name__startswith="e", name__regex=r"^e\d+$")

    def _arrange(self, due: int) -> datetime:
        """Make so many schedules due at one moment, as if they had never been due before. Returns the moment.

        It is the next full minute after the lead. `--quick` uses intervals, which need no full minute.
        """
        self._clear()
        all_that_was_due = self._due(max(self._size.due))
        all_that_was_due.update(last_run_at=None, **self._never)
        Policy.objects.filter(schedule__in=all_that_was_due).delete()
        at = (datetime.now(UTC) + timedelta(seconds=self._size.lead)).replace(second=0, microsecond=0)
        if self._size is QUICK:
            lead, _ = IntervalSchedule.objects.get_or_create(every=self._size.lead, period="seconds")
            self._due(due).update(interval=lead, crontab=None, last_run_at=datetime.now(UTC))
        else:
            at += timedelta(minutes=1)
            self._due(due).update(crontab=CrontabSchedule.objects.create(minute=at.minute, hour=at.hour))
        calendar.sweep()
        first = Policy.objects.get(schedule__name="s0").next_due_at
        return first if first and self._size is QUICK else at


def _count(queries: Counter[str], execute: Callable[..., Any], *statement: Any) -> Any:
    queries[statement[0]] += 1
    return execute(*statement)


def _backends() -> list[psutil.Process]:
    """The database's backend processes for clients other than this one. Empty if it runs on another machine."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        return [psutil.Process(pid) for (pid,) in cursor.fetchall() if psutil.pid_exists(pid)]
