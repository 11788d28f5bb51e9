"""How much does a large table cost that every task needs? Each task fetches it, each process loads it, or all map it.

Each way uses a worker with four processes. The first look-up of a process, which loads, is measured separately from the
later ones. Memory is the amount that the end of the worker would free: memory shared by processes counts once (PSS).
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

from benchmarks.figures import Figures
from benchmarks.ground import Ground, wait_for

PROCESSES = 4
REPLIES, QUEUE = "bench-replies", "celery"
AT_ONCE = 8  # tasks waiting in the queue


@dataclass(frozen=True, slots=True)
class Size:
    rows: int
    look_ups: int  # at least, in each process
    ways: Sequence[str]


FULL = Size(1_050_000, 6, ways=("no table", "Redis", "Resource", "Resource, preloaded", "MappedResource"))
QUICK = Size(2_000, 2, ways=("Redis", "Resource, preloaded", "MappedResource"))


class Resources:
    """The resources benchmark: its method measures one round."""

    def __init__(self, ground: Ground, size: Size, figures: Figures) -> None:
        self._ground, self._size, self._figures = ground, size, figures

    def resources(self) -> None:
        """The time of a look-up and the memory of the whole worker, for each way to hold the table."""
        from benchmarks import tables  # late: it reads the settings

        what = f"a table of {self._size.rows * tables.ROW.size / 1e6:,.1f} MB, {PROCESSES} processes"
        self._ground.broker.flushdb()
        tables.make(self._size.rows)
        for way in self._size.ways:
            env = {"BENCH_FOLDER": str(self._ground.workspace.folder / f"tables-{time.monotonic_ns()}")}
            env |= {"BENCH_PRELOAD": "1"} if way == "Resource, preloaded" else {}
            self._ground.broker.delete(REPLIES, QUEUE)
            with self._ground.running(self._command(), env=env) as (worker,):
                times = self._times(way)
                used = sum(each.memory_full_info().pss for each in [worker, *worker.children(recursive=True)])
            later = chain.from_iterable(seconds[1:] for seconds in times)
            self._figures.note(what, way, "first look-up, s", max(seconds[0] for seconds in times))
            self._figures.note(what, way, "later look-ups, us", median(later) * 1e6)
            self._figures.note(what, way, "MB", used / 1e6)

    def _times(self, way: str) -> list[list[float]]:
        """The seconds of all look-ups of each process, in order."""
        from benchmarks import tables

        sent = 0

        def have_enough() -> bool:
            nonlocal sent
            while self._ground.broker.llen(QUEUE) < AT_ONCE:
                tables.look_up.delay(way, sent * 7919 % self._size.rows, REPLIES)
                sent += 1
            numbers = [len(seconds) for seconds in self._replies().values()]
            return len(numbers) == PROCESSES and min(numbers) > self._size.look_ups

        wait_for(have_enough)
        return list(self._replies().values())

    def _replies(self) -> dict[bytes, list[float]]:
        times = defaultdict(list)
        for reply in self._ground.broker.lrange(REPLIES, 0, -1):
            process, seconds = reply.split()
            times[process].append(float(seconds))
        return times

    def _command(self) -> list[str]:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        return ["celery", "-A", "project", "worker", f"--concurrency={PROCESSES}", "-I", "benchmarks.tables", *quiet]
