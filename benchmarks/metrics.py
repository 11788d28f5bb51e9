"""What does a scrape cost beside many schedules and a long history? `/metrics` through all middleware, in one process.

Each job has all its counts, and some runs are unfinished, as on a busy site. Beside it stands the fold of the runs that
ended in ten seconds, which the watch does between two scrapes.
"""

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.test import Client
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from benchmarks.figures import OURS, Figures
from benchmarks.ground import Ground
from benchmarks.retention import FILL
from jobs.models import ACTIVE, Condition, Node, Policy, Run, State, Tally, Trigger, bulk, database_now
from jobs.monitoring import tallies

TOKEN = "of-the-benchmark"  # noqa: S105 - it opens nothing else
SCRAPES, FOLDS = 20, 5
JOBS, QUEUES, SECONDS = 100, 20, 10
HISTORY = timedelta(days=12)  # one run a second


@dataclass(frozen=True, slots=True)
class Size:
    runs: int
    schedules: int
    unfinished: int
    ended: int  # in `SECONDS`


FULL = Size(runs=1_000_000, schedules=10_000, unfinished=10_000, ended=5_000)
QUICK = Size(runs=5_000, schedules=100, unfinished=100, ended=100)


class Metrics:
    """The benchmark of scrapes: its method measures one round."""

    def __init__(self, _: Ground, size: Size, figures: Figures) -> None:
        self._size, self._figures, self._is_filled = size, figures, False
        settings.METRICS_TOKEN = TOKEN

    def metrics(self) -> None:
        """Scrape some times, and fold some times."""
        if not self._is_filled:
            self._fill()
        client = Client(headers={"authorization": f"Bearer {TOKEN}"})
        size = self._size
        what = (
            f"a scrape at {size.schedules:,} schedules and {size.runs:,} runs, {size.unfinished:,} of them unfinished"
        )
        for _ in range(SCRAPES):
            start = time.perf_counter()
            answer = client.get("/metrics")
            self._figures.note(what, OURS, "ms", (time.perf_counter() - start) * 1000)
            if answer.status_code != 200:
                raise RuntimeError(answer.content.decode())
        self._figures.note(
            what, OURS, "samples", sum(not line.startswith(b"#") for line in answer.content.splitlines())
        )
        now = database_now()
        for _ in range(FOLDS):
            start = time.perf_counter()
            with transaction.atomic():
                tallies.add_ended(now - timedelta(seconds=SECONDS), now)
            what = f"the fold of {size.ended:,} runs that ended in {SECONDS} s"
            self._figures.note(what, OURS, "ms", (time.perf_counter() - start) * 1000)

    def _fill(self) -> None:
        size, now = self._size, database_now()
        _execute("TRUNCATE jobs_run CASCADE")
        PeriodicTask.objects.all().delete()
        interval = IntervalSchedule.objects.create(every=1, period="hours")
        rows = [PeriodicTask(name=f"bench {n}", task=_job(n), interval=interval) for n in range(size.schedules)]
        schedules = PeriodicTask.objects.bulk_create(rows)
        later = now + timedelta(hours=1)
        Policy.objects.bulk_create(
            [Policy(schedule=each, next_due_at=later) for each in schedules], ignore_conflicts=True, batch_size=1_000
        )
        ill = schedules[: size.schedules // 10]
        columns: dict[str, Any] = {"health": "failing", "sentence": "It is so.", "since": now}
        Condition.objects.bulk_create(
            [Condition(subject=f"schedule:{each.pk}", schedule=each, **columns) for each in ill]
        )
        _execute(FILL, {"runs": size.runs, "schedules": size.schedules, "since": now - HISTORY})
        states = sorted(ACTIVE)
        bulk.insert(Run, [_unfinished(states[n % len(states)], n, now) for n in range(size.unfinished)])
        bulk.insert(Run, [_ended(n, now) for n in range(size.ended)])
        Node.objects.bulk_create(
            [Node(name=f"celery@{n}", kind=Node.Kind.WORKER, pid=1, queues=f"q{n}") for n in range(QUEUES)]
        )
        _fill_tallies()
        _execute("VACUUM ANALYZE")
        _execute("CHECKPOINT")
        self._is_filled = True


def _job(number: int) -> str:
    return f"tests.job_{number % JOBS}"


def _unfinished(state: State, number: int, now: Any) -> Run:
    moments = dict.fromkeys(("due_at", "last_due_at", "queued_at"), now)
    return Run(task=_job(number), queue=f"q{number % QUEUES}", state=state, not_before=now, sends=1, **moments)


def _ended(number: int, now: Any) -> Run:
    end = now - timedelta(seconds=SECONDS) * (number + 1) / 100_000
    moments = dict.fromkeys(("due_at", "last_due_at", "queued_at", "started_at", "finished_at"), end)
    return Run(task=_job(number), state=State.SUCCEEDED, trigger=Trigger.SCHEDULE, sends=1, **moments)


def _fill_tallies() -> None:
    buckets = [1_000] * (len(tallies.BOUNDS) + 1)
    columns = {"count": sum(buckets), "total": 1.5, "buckets": buckets}
    for number in range(JOBS):
        labels = json.dumps([_job(number)])
        for metric in tallies.MEASURED:
            Tally.objects.create(metric=metric, labels=labels, **columns)
        Tally.objects.create(metric=tallies.SKIPPED, labels=labels, count=7)
        for outcome in ("succeeded", "failed", "lost", "cancelled", "expired"):
            Tally.objects.create(metric=tallies.RUNS, labels=json.dumps([_job(number), outcome]), count=7)


def _execute(statement: str, values: dict[str, object] | None = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
