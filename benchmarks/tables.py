"""A lookup table for tasks, held in several ways. Each task reports the duration of its look-up.

A row takes 48 bytes as a record, and several times that as Python objects.
"""

import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path

import redis
from celery import shared_task
from django.conf import settings

from jobs.cache.mapped import MappedResource
from jobs.cache.resources import Resource

Row = tuple[float, int, bytes]

ROW = struct.Struct("<dq32s")
KEY = "bench-table"
BUSY = 0.02  # seconds that a task sleeps afterwards, so that every process gets tasks

client = redis.Redis.from_url(settings.REDIS_URL)


def make(rows: int) -> None:
    """Store a table with so many rows in Redis."""
    table = {number: (number * 1.5, number, f"article {number}".encode()) for number in range(rows)}
    client.set(KEY, pickle.dumps(table))


def fetch() -> dict[int, Row]:
    return pickle.loads(client.get(KEY))  # noqa: S301 - `make` wrote it


def write(path: Path) -> None:
    """Write the same table to a file, record after record."""
    with path.open("wb") as file:
        file.writelines(ROW.pack(*row) for row in fetch().values())


table = Resource("bench.table", fetch, preload="BENCH_PRELOAD" in os.environ)
mapped = MappedResource("bench.mapped", write, Path(os.environ.get("BENCH_FOLDER", settings.VAR_DIR)))

LOOK_UPS: dict[str, Callable[[int], object]] = {
    "no table": lambda number: number,
    "Redis": lambda number: fetch()[number],
    "Resource": lambda number: table.get()[number],
    "Resource, preloaded": lambda number: table.get()[number],
    "MappedResource": lambda number: ROW.unpack_from(mapped.get(), number * ROW.size),
}


@shared_task(name="bench.look_up")
def look_up(how: str, number: int, replies: str) -> None:
    start = time.perf_counter()
    LOOK_UPS[how](number)
    client.rpush(replies, f"{os.getpid()} {time.perf_counter() - start}")
    time.sleep(BUSY)
