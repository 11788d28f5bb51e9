"""How much does chunking save? Two child processes check the numbers of `jobs.fan_out` in chunks and one by one.

As runs: chunks of 100 (the job's default), chunks of 1,000, and one step for each number. Without ledger or results:
plain Celery with one `delay()` for each number. One step for each number is slow, so it uses fewer numbers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import psutil
from celery import current_app
from django.db import connection
from django_celery_results.models import TaskResult

from benchmarks.figures import OURS, Figures
from benchmarks.ground import Ground, cpu, wait_for
from jobs.ledger import outbox, requests
from jobs.models import ACTIVE, Run, State

QUEUE = "celery"
LONGER, SINGLE, DELAYED = "chunks of 1,000", "one step for each", "one delay() for each"


@dataclass(frozen=True, slots=True)
class Size:
    items: int
    single: int


FULL = Size(items=100_000, single=5_000)
QUICK = Size(items=1_000, single=50)


class FanOut:
    """The fan-out benchmark: its method measures one round."""

    def __init__(self, ground: Ground, size: Size, figures: Figures) -> None:
        self._ground, self._size, self._figures = ground, size, figures

    def fan_out(self) -> None:
        """Many small items: how many per second, with how many messages, at what cost?"""
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        with self._ground.running(["celery", "-A", "project", "worker", "--concurrency=2", *quiet]) as (worker,):
            self._run(items=2, chunk=1)  # starts the children and their imports
            family = [worker, *worker.children(recursive=True)]
            for who, items, work in (
                (OURS, self._size.items, partial(self._run, chunk=100)),
                (LONGER, self._size.items, partial(self._run, chunk=1_000)),
                (SINGLE, self._size.single, partial(self._run, chunk=1)),
                (DELAYED, self._size.items, self._delay),
            ):
                self._measure(who, items, work, family)

    def _measure(self, who: str, items: int, work: Callable[[int], int], family: Sequence[psutil.Process]) -> None:
        """Measure time and CPU time of `work`, which returns its number of messages."""
        self._empty()
        start, before = time.time(), cpu(family)
        messages = work(items)
        took, used = time.time() - start, cpu(family) - before
        self._figures.note("numbers checked", who, "per second", items / took)
        self._figures.note("numbers checked", who, "messages", messages)
        self._figures.note("numbers checked", who, "worker's CPU µs each", used / items * 1e6)

    def _run(self, items: int, chunk: int) -> int:
        run, _ = requests.start("jobs.fan_out", {"items": items, "chunk": chunk}, "bench")
        outbox.send([run])
        wait_for(lambda: not Run.objects.filter(id=run.id, state__in=ACTIVE).exists())
        run.refresh_from_db()
        if run.state != State.SUCCEEDED:
            raise RuntimeError(f"The run has {run.state}: {run.reason}")
        return 1 + run.steps.count()

    def _delay(self, items: int) -> int:
        check = current_app.tasks["jobs.fan_out.check"]
        for number in range(items):
            check.delay(number, number + 1)
        wait_for(lambda: not self._ground.broker.llen(QUEUE))
        return items

    def _empty(self) -> None:
        TaskResult.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE jobs_run CASCADE")
            cursor.execute("VACUUM ANALYZE")
