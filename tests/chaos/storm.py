"""A storm: schedules of every kind under faults from a fixed seed, then calm, then a check of the ledger.

Its one rule: after any faults, four things hold at the end. The due moments of each schedule are in the ledger, each in
one row or one stretch, without a gap. Every run is over. No ended run has changed its outcome. No attempt was executed
twice, no effect under `once` happened twice, and every run that succeeded has its effect.
"""

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import redis as redis_client
from django.db import close_old_connections, connection
from django_celery_beat.models import PeriodicTask

from jobs.models import FeedEntry, Policy, Run, State, database_now
from tests.live.conftest import Process, Processes
from tests.making import lines, make_schedule
from tests.waiting import DEADLINE

SECOND = timedelta(seconds=1)
LEASE = "2"  # seconds; a starved process that misses it is one more fault
LAG = 5 * SECOND  # between a due moment and its claim, at the end of a storm

# Records every change of an ended run, except for the growth of a stretch of skipped moments.
WATCHER = """
CREATE TABLE IF NOT EXISTS changed_after_its_end (run uuid, was text, became text);
CREATE OR REPLACE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changed_after_its_end VALUES (OLD.id, OLD.state || ' ' || OLD.attempt, NEW.state || ' ' || NEW.attempt);
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER watch BEFORE UPDATE ON jobs_run FOR EACH ROW
WHEN (OLD.finished_at IS NOT NULL AND (OLD.state, OLD.attempt, OLD.finished_at, OLD.reason)
      IS DISTINCT FROM (NEW.state, NEW.attempt, NEW.finished_at, NEW.reason))
EXECUTE FUNCTION note_change();
"""


@dataclass
class Storm:
    """The processes at work, and their faults."""

    processes: Processes
    redis: redis_client.Redis
    path: Path
    seed: int = 1
    sabotage: str = "hasty"
    clock_was_wrong: bool = False
    workers: list[Process] = field(default_factory=list)
    beats: list[Process] = field(default_factory=list)
    schedules: list[PeriodicTask] = field(default_factory=list)
    firsts: dict[int, datetime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        with connection.cursor() as cursor:
            cursor.execute(WATCHER)
            cursor.execute("TRUNCATE changed_after_its_end")

    # --- processes and schedules ------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        settings = {"DJANGO_SETTINGS_MODULE": "tests.chaos.settings", "SABOTAGE": self.sabotage}
        return settings | {"LEASE_SECONDS": LEASE, "STEP_PATIENCE_SECONDS": "10"}

    def start_worker(self, *arguments: str, **env: str) -> Process:
        worker = self.processes.start_worker(*arguments, env=self.environment | env)
        self.workers.append(worker)
        return worker

    def start_beat(self, **env: str) -> Process:
        beat = self.processes.start_beat(env=self.environment | env)
        self.beats.append(beat)
        return beat

    def start_all(self) -> None:
        """Two workers and two beats."""
        for _ in range(2):
            self.start_worker()
            self.start_beat()

    def make_schedules(self, catch_up: str = "all", **policy: Any) -> None:
        """Short and longer jobs with effects under `once`, and a workflow, every second or every two seconds."""
        tasks: list[tuple[str, list[Any], int]] = [
            ("tests.execute", [str(self.path), 0], 1),
            ("tests.execute", [str(self.path), 0], 1),
            ("tests.execute", [str(self.path), 0.3], 1),
            ("tests.execute", [str(self.path), 0.7], 2),
            ("tests.workflow", ["chord", str(self.path.with_suffix(".chords"))], 2),
        ]
        usual = {"overlap": "allow", "catch_up": catch_up, "max_attempts": 20}
        for number, (task, args, every) in enumerate(tasks):
            schedule = make_schedule(f"s{number}", task, every=every * SECOND, args=args, policy=usual | policy)
            self.schedules.append(schedule)
            self.firsts[schedule.pk] = Policy.objects.get(schedule=schedule).next_due_at

    # --- faults -----------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let the processes work for a while."""
        time.sleep(seconds)

    def kill(self, among: list[Process]) -> None:
        """Kill one process with all its children, and start another one."""
        victim = self.random.choice(among)
        victim.kill()
        among.remove(victim)
        self.start_worker() if among is self.workers else self.start_beat()

    def kill_child(self) -> None:
        """Kill one child of a worker's pool."""
        if children := psutil.Process(self.random.choice(self.workers).pid).children():
            try:
                self.random.choice(children).kill()
            except psutil.NoSuchProcess:
                return

    def freeze(self, among: list[Process], seconds: float) -> None:
        """Freeze one process in the middle of its work, for a while."""
        victim = self.random.choice(among)
        victim.signal(signal.SIGSTOP)
        self.wait(seconds)
        victim.signal(signal.SIGCONT)

    def cut(self) -> None:
        """End every other connection to the database."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )

    # --- the end ----------------------------------------------------------------------------------------------------

    def calm(self, deadline: float = DEADLINE) -> None:
        """Wait until beats keep up, disable all schedules, and wait until nothing is due and every run is over."""
        self.processes.eventually(self._keeps_up, deadline=deadline)
        PeriodicTask.objects.update(enabled=False)
        self.processes.eventually(_is_calm, deadline=deadline)

    def _keeps_up(self) -> bool:
        close_old_connections()
        self.stopped_at = database_now()
        return not Policy.objects.filter(next_due_at__lt=self.stopped_at - LAG).exists()

    def reckon(self) -> None:
        """Check the ledger. Raises AssertionError with all faults."""
        wrong = [*self._gaps(), *self._changed(), *self._executions(), *self._effects()]
        assert not wrong, "\n".join([f"seed {self.seed}: {len(wrong)} wrong", *wrong[:30]])

    def _gaps(self) -> list[str]:
        wrong = []
        for schedule in self.schedules:
            every, expected = schedule.interval.every * SECOND, self.firsts[schedule.pk]
            runs = Run.objects.filter(schedule=schedule, trigger="schedule").order_by("due_at")
            if self.clock_was_wrong:  # it showed moments before the schedule was made, and ran some that have not come
                runs = runs.filter(due_at__range=(expected, self.stopped_at))
            for run in runs:
                if run.due_at != expected:
                    wrong.append(f"{schedule.name}: due {expected:%X} expected, {run.due_at:%X} found")
                if (run.last_due_at - run.due_at) / every + 1 != run.count:
                    wrong.append(f"{schedule.name}: {run.count} moments from {run.due_at:%X} to {run.last_due_at:%X}")
                expected = run.last_due_at + every
            if expected < self.stopped_at - LAG:
                wrong.append(f"{schedule.name}: nothing from {expected:%X} to {self.stopped_at:%X}")
        return wrong

    def _changed(self) -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT run, was, became FROM changed_after_its_end")
            return [f"run {run} was {was} and became {became}" for run, was, became in cursor.fetchall()]

    def _executions(self) -> list[str]:
        executed = Counter(lines(self.path))
        return [f"executed {times} times: {attempt}" for attempt, times in executed.items() if times > 1]

    def _effects(self) -> list[str]:
        """`tests.execute` writes a line for each execution, and one effect for each run into the database."""
        done = Counter(FeedEntry.objects.filter(feed="effects").values_list("title", flat=True))
        succeeded = Run.objects.filter(task="tests.execute", state=State.SUCCEEDED).values_list("id", flat=True)
        missing = [f"no effect of run {run}" for run in map(str, succeeded) if run not in done]
        return missing + [f"{times} effects of run {run}" for run, times in done.items() if times > 1]


def _is_calm() -> bool:
    close_old_connections()
    return not Run.objects.active().exists() and not Policy.objects.filter(next_due_at__isnull=False).exists()
