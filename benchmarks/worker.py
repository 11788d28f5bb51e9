"""How much does the ledger cost a worker, compared with Celery without history and with django-celery-results?

All run the same no-op task on the same servers, each with a worker of two children. A drain is timed by the length of
the queue, from its first to its last twentieth.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from celery import current_app
from django.db import connection
from django_celery_results.models import TaskResult

from benchmarks.figures import OURS, Figures
from benchmarks.ground import Ground, wait_for
from jobs.ledger import outbox
from jobs.ledger.new_runs import new_run
from jobs.messages.message import Message
from jobs.models import Run, State, bulk, database_now, lease, new_run_id, runs

BARE, RESULTS, PLAIN = "Celery without history", "django-celery-results", "delay() beside Punctual"
QUEUE = "celery"
BATCH = 500


@dataclass(frozen=True, slots=True)
class Size:
    drained: int
    timed: int
    results: int
    started: int


FULL = Size(drained=20_000, timed=300, results=10_000, started=2_000)
QUICK = Size(drained=300, timed=10, results=200, started=20)


class Worker:
    """The worker benchmarks: each method measures one round."""

    def __init__(self, ground: Ground, size: Size, figures: Figures) -> None:
        self._ground, self._size, self._figures = ground, size, figures

    def drain(self) -> None:
        """The number of no-ops that a worker executes per second."""
        number = self._size.drained
        for who, app, fill in (
            (OURS, "project", self._send_runs),
            (BARE, "benchmarks.bare", _delay("tests.nothing")),
            (PLAIN, "project", _delay("tests.nothing")),
            (RESULTS, "benchmarks.bare", _delay("tests.answer")),
        ):
            self._empty()
            fill(number)
            with self._ground.running(self._command(app)):
                started = wait_for(lambda: self._waiting() <= number * 0.95)
                ended = wait_for(lambda: self._waiting() <= number * 0.05)
                wait_for(lambda: not self._waiting())
                if who == OURS:
                    wait_for(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == number)
            self._figures.note(f"draining {number:,} no-ops", who, "per second", 0.9 * number / (ended - started))

    def latency(self) -> None:
        """The time from sending one job to an idle worker until its body starts."""
        path = self._ground.workspace.folder / "stamps"
        for who, app in ((OURS, "project"), (BARE, "benchmarks.bare")):
            self._empty()
            with self._ground.running(self._command(app)):
                times = [self._time_one(who, path) for _ in range(self._size.timed + 5)][5:]
            times.sort()
            self._figures.note("from sending to start", who, "p50, ms", median(times) * 1000)
            self._figures.note("from sending to start", who, "p99, ms", times[len(times) * 99 // 100] * 1000)

    def results(self) -> None:
        """The load of results on Redis, if one task in twenty opts in or all do."""
        number = self._size.results
        for who, backend, every in (
            (OURS, "django-db", 20),
            ("results in Redis, 5% opted in", "redis", 20),
            ("results in Redis, all", "redis", 1),
        ):
            self._empty()
            before = self._ground.broker.info()
            for n in range(number):
                current_app.tasks["tests.answer" if n % every == 0 else "tests.nothing"].delay()
            env = {"RESULT_BACKEND": self._ground.environment["REDIS_URL"].replace("unix://", "redis+socket://")}
            with self._ground.running(self._command("project"), env=env if backend == "redis" else {}):
                wait_for(lambda: not self._waiting())
                time.sleep(1)
                after = self._ground.broker.info()
                keys = len(self._ground.broker.keys("celery-task-meta-*"))
            used = after["used_memory"] - before["used_memory"]
            commands = after["total_commands_processed"] - before["total_commands_processed"]
            for figure, value in (("keys", keys), ("kB of memory", used / 1e3), ("commands each", commands / number)):
                self._figures.note(f"{number:,} tasks", who, figure, value)

    def statements(self) -> None:
        """The CPU time of starting a run with a statement that is compiled once, and with one compiled each time."""
        self._empty()
        values = {"run_id": new_run_id(), "attempt": 1, "node": "bench", "pid": 1, "lease": lease()}
        values["task"] = "tests.nothing"

        def compiled_each_time() -> None:
            queryset, changes = runs._starting(**values, sent_args=[], sent_kwargs={})
            queryset.update(**changes)

        for who, start in (
            (OURS, partial(runs._START_SENT, **values, sent_args="[]", sent_kwargs="{}")),
            ("compiled each time", compiled_each_time),
        ):
            start()
            before = time.process_time()
            for _ in range(self._size.started):
                start()
            spent = time.process_time() - before
            self._figures.note("starting a run", who, "us of CPU", spent / self._size.started * 1e6)

    def _send_runs(self, number: int) -> None:
        for start in range(0, number, BATCH):
            now = database_now()
            size = min(BATCH, number - start)
            new = [new_run(None, "bench", Message("tests.nothing"), now, now) for _ in range(size)]
            bulk.insert(Run, new)
            outbox.send(new)

    def _time_one(self, who: str, path: Path) -> float:
        path.unlink(missing_ok=True)
        message = Message("tests.stamp", [str(path)])
        if who == OURS:
            now = database_now()
            run = new_run(None, "bench", message, now, now)
            bulk.insert(Run, [run])
            sent = time.time()
            outbox.send([run])
        else:
            sent = time.time()
            current_app.tasks["tests.stamp"].delay(str(path))
        wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
        return float(path.read_text()) - sent

    def _waiting(self) -> int:
        return int(self._ground.broker.llen(QUEUE))

    def _command(self, app: str) -> Sequence[str]:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        return ["celery", "-A", app, "worker", "--concurrency=2", *quiet]

    def _empty(self) -> None:
        self._ground.broker.flushdb()
        TaskResult.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE jobs_run CASCADE")
            cursor.execute("VACUUM ANALYZE")


def _delay(task: str) -> Callable[[int], None]:
    def fill(number: int) -> None:
        job: Any = current_app.tasks[task]
        for _ in range(number):
            job.delay()

    return fill
