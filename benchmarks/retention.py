"""What does deleting old runs cost? The clean-up deletes nearly all runs of many schedules, oldest first.

The schedules take turns, so that each batch holds runs of most of them. Beside it stands one DELETE of the same rows in
SQL, which keeps none of the ledger's answers.
"""

import time
from dataclasses import dataclass
from datetime import timedelta

from django.db import connection
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from benchmarks.figures import OURS, Figures
from benchmarks.ground import Ground
from jobs.ledger import retention
from jobs.models import Run, State, database_now

AGE, KEPT = timedelta(days=60), timedelta(days=30)
IN_SQL = "one DELETE in SQL"
FILL = """
INSERT INTO jobs_run (id, schedule_id, schedule_name, task, args, kwargs, queue, options, trigger, actor, due_at,
    last_due_at, count, state, reason, attempt, sends, started_at, finished_at, node, pid, cancel_reason, progress_done,
    progress_message, error_class, error_text)
SELECT gen_random_uuid(), min + number %% %(schedules)s, 'it', 'tests.nothing', '[]', '{}', '', '{}', 'schedule', '',
    at, at, 1, 'succeeded', '', 1, 1, at, at, 'celery@here', 1, '', 0, '', '', ''
FROM (SELECT min(id) FROM django_celery_beat_periodictask) AS first,
    generate_series(1, %(runs)s) AS number, LATERAL (SELECT %(since)s + number * interval '1 second' AS at) AS moment
"""


@dataclass(frozen=True, slots=True)
class Size:
    runs: int
    schedules: int


FULL = Size(runs=500_000, schedules=1_000)
QUICK = Size(runs=5_000, schedules=100)


class Retention:
    """The benchmark of the clean-up: its method measures one round."""

    def __init__(self, _: Ground, size: Size, figures: Figures) -> None:
        self._size, self._figures = size, figures

    def retention(self) -> None:
        """Delete the runs of two months ago: how long does it take, and how much does PostgreSQL write?"""
        for who, delete in ((OURS, self._clean_up), (IN_SQL, self._delete)):
            self._fill()
            what = f"clean-up of {self._size.runs:,} runs of {self._size.schedules:,} schedules"
            start, written = time.monotonic(), _wal()
            delete()
            self._figures.note(what, who, "seconds", time.monotonic() - start)
            self._figures.note(what, who, "MB of WAL", (_wal() - written) / 1e6)
            if (left := Run.objects.count()) != self._size.schedules:
                raise RuntimeError(f"{left} runs are left, not the latest one of each schedule.")

    def _clean_up(self) -> None:
        for _ in retention.delete_ended(database_now() - KEPT, {State.SUCCEEDED}):
            pass

    def _delete(self) -> None:
        _execute("DELETE FROM jobs_run WHERE finished_at < now() - interval '30 days'")

    def _fill(self) -> None:
        """Old runs of each schedule in turn, and one of today, which stays."""
        _execute("TRUNCATE jobs_run CASCADE")
        PeriodicTask.objects.all().delete()
        interval = IntervalSchedule.objects.create(every=1, period="hours")
        for number in range(self._size.schedules):
            PeriodicTask.objects.create(name=f"bench {number}", task="tests.nothing", interval=interval)
        for runs, age in ((self._size.runs, AGE), (self._size.schedules, timedelta(hours=1))):
            sizes = {"runs": runs, "schedules": self._size.schedules}
            _execute(FILL, {**sizes, "since": database_now() - age})
        _execute("VACUUM ANALYZE")
        _execute("CHECKPOINT")


def _wal() -> int:
    """How many bytes PostgreSQL has written to its write-ahead log."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
        return int(cursor.fetchone()[0])


def _execute(statement: str, values: dict[str, object] | None = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
