"""How long does a change of many schedules hold others up? A saved crontab that they share, and the end of an outage.

Each is measured as Punctual does it, in portions, and all at once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import connection
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from benchmarks.figures import OURS, Figures
from benchmarks.ground import Ground
from jobs.beat import claim
from jobs.messages.arguments import find_task
from jobs.models import Policy, Run, database_now
from jobs.rules.occurrences import as_text
from jobs.schedules import calendar

AT_ONCE = "all at once"


@dataclass(frozen=True, slots=True)
class Size:
    sharing: int  # schedules with one crontab
    behind: int  # schedules that are due every minute
    days: int  # of the outage


FULL = Size(sharing=20_000, behind=200, days=7)
QUICK = Size(sharing=150, behind=5, days=1)


class Changes:
    """The benchmarks of changes: each method measures one round."""

    def __init__(self, _: Ground, size: Size, figures: Figures) -> None:
        self._size, self._figures = size, figures
        find_task("")  # else the first one measured would load all jobs

    def shared(self) -> None:
        """A crontab is saved that many schedules share: the save, and the longest step of beat after it."""
        crontab = CrontabSchedule.objects.create(minute="0", hour="4")
        self._make(self._size.sharing, crontab=crontab)
        for who, at_once in ((OURS, calendar.AT_ONCE), (AT_ONCE, self._size.sharing)):
            crontab.hour = str(int(crontab.hour) + 1)
            with _setting(calendar, "AT_ONCE", at_once):
                self._note("shared crontab", who, "save, s", crontab.save)
            steps = [_seconds(calendar.find_changes)]
            while Policy.objects.stale().exists():
                steps.append(_seconds(calendar.compute_marked))
            self._figures.note("shared crontab", who, "longest step of beat, s", max(steps))
        PeriodicTask.objects.all().delete()

    def outage(self) -> None:
        """Beat comes back after days: the longest transaction, and the time until all moments have their rows."""
        interval = IntervalSchedule.objects.create(every=1, period="minutes")
        self._make(self._size.behind, interval=interval)
        for who, moments in ((OURS, claim.MOMENTS), (AT_ONCE, self._size.behind * self._size.days * 2000)):
            self._be_behind()
            longest: list[float] = []
            with _setting(claim, "MOMENTS", moments), _setting(claim, "_claim_batch", _timed(longest)):
                self._note("outage", who, "all recorded, s", _claim_all)
            self._figures.note("outage", who, "longest transaction, s", max(longest))
        PeriodicTask.objects.all().delete()

    def _make(self, number: int, **timing: Any) -> None:
        names = (f"changes {each}" for each in range(number))
        rows = [PeriodicTask(name=name, task="jobs.heartbeat", **timing) for name in names]
        PeriodicTask.objects.bulk_create(rows, batch_size=2000)
        calendar.sweep()

    def _be_behind(self) -> None:
        Run.objects.all().delete()
        since = database_now() - timedelta(days=self._size.days)
        timing = as_text(calendar.spec_of(PeriodicTask.objects.all()[0], since))
        Policy.objects.update(next_due_at=since, timing_since=since, timing=timing)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")

    def _note(self, what: str, who: str, figure: str, work: Callable[[], object]) -> None:
        self._figures.note(what, who, figure, _seconds(work))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _timed(longest: list[float]) -> Callable[..., Any]:
    batch = claim._claim_batch

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = batch(*args)
        longest.append(time.perf_counter() - start)
        return result

    return timed


def _claim_all() -> None:
    now = database_now()
    while Policy.objects.due(now).exists():
        for _ in claim.claim_due(now):
            pass


@contextmanager
def _setting(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
