"""Beat as operators start it, with its options, and under faults: signals, a lost database, a wrong clock."""

import os
import signal
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from celery import current_app
from django.db import OperationalError, connection
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from jobs.beat.claim import BATCH
from jobs.beat.scheduler import SWEEP_EVERY, Scheduler
from jobs.ledger import backfills
from jobs.models import Backfill, Node, Policy, Run, State, Trigger, database_now
from jobs.models.audit import Actor
from jobs.schedules import calendar, entries
from tests.live.conftest import SHORT_LEASE
from tests.making import ends, lines, make_due, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def test_it_takes_the_options_of_operators_and_ends_in_the_middle_of_a_burst(processes, eventually, tmp_path):
    every = make_schedule().interval
    names = (f"s{number}" for number in range(2999))
    PeriodicTask.objects.bulk_create(PeriodicTask(name=name, task="tests.nothing", interval=every) for name in names)
    calendar.sweep()
    due_at = database_now()
    Policy.objects.update(next_due_at=due_at)
    pidfile = tmp_path / "beat.pid"
    options = ("-S", "jobs.beat:Scheduler", "--max-interval", "1", "--pidfile", str(pidfile))
    beat = processes.start_beat(*options)
    assert pidfile.read_text().strip() == str(beat.pid)
    queued = Run.objects.filter(state=State.QUEUED)
    eventually(queued.exists)
    beat.signal(signal.SIGSTOP)
    before = queued.count()
    beat.signal(signal.SIGTERM)
    beat.signal(signal.SIGCONT)
    beat.stop()
    assert queued.count() <= before + 2 * BATCH  # at most the batches in progress
    assert not pidfile.exists()
    processes.start_beat(*options)
    eventually(lambda: queued.count() == 3000)
    assert Run.objects.filter(due_at=due_at).count() == 3000


def test_it_runs_inside_a_worker(processes, eventually, path, tmp_path):
    schedule = make_schedule(every=SECOND, task="tests.note", args=[str(path)])
    processes.start_worker("-B", "--schedule", str(tmp_path / "unused"))
    eventually(lambda: Run.objects.filter(schedule=schedule, state=State.SUCCEEDED).count() >= 2)
    assert len(lines(path)) >= 2


@pytest.mark.parametrize("wrong_by", [3600, -3600])
def test_it_uses_the_database_s_clock_if_the_host_s_is_wrong(processes, eventually, path, wrong_by):
    folder = Path(__file__).parent / "wrong_clock"
    clock = {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "CLOCK_WRONG_BY": str(wrong_by),
    }
    processes.start_worker(env=clock)
    processes.start_beat(env=clock)
    start = database_now().replace(microsecond=0)
    schedule = make_schedule(every=SECOND, task="tests.note", args=[str(path)], start_time=start)
    runs = Run.objects.filter(schedule=schedule)
    eventually(lambda: runs.filter(state=State.SUCCEEDED).count() >= 3)
    assert not runs.filter(reason__startswith="missed").exists()
    for run in runs.filter(state=State.SUCCEEDED):
        assert run.due_at.microsecond == 0
        assert timedelta(0) <= run.lateness < HOUR / 2


@pytest.mark.parametrize("ahead", ["1 day", "-1 hour"])
def test_it_goes_on_after_the_database_s_clock_was_wrong(processes, eventually, path, wrong_clock, ahead):
    schedule = make_schedule(every=SECOND, task="tests.note", args=[str(path)])
    processes.start_worker()
    beat = processes.start_beat()
    runs = Run.objects.filter(schedule=schedule)
    eventually(lambda: runs.filter(state=State.SUCCEEDED).count() >= 2)
    wrong_clock(ahead)
    eventually(lambda: runs.filter(started_at__lt=database_now() - HOUR / 2).exists() or "1 day" in ahead)
    eventually(lambda: runs.filter(due_at__gt=database_now() + HOUR).exists() or "hour" in ahead)
    wrong_clock("0")
    back_at = database_now()
    eventually(lambda: runs.filter(due_at__gt=back_at, started_at__range=(back_at, back_at + HOUR)).count() >= 3)
    beat.stop()
    assert beat.log.count("clock went back") == 1
    ids = lines(path)
    assert len(ids) == len(set(ids))
    taken = sorted(runs.filter(due_at__lt=database_now()).values_list("due_at", "last_due_at"))
    assert all(end < due for (_, end), (due, _) in pairwise(taken))  # no moment has two outcomes
    if ahead == "1 day":
        moments = sum(runs.filter(due_at__lt=database_now()).values_list("count", flat=True))
        assert moments == (taken[-1][1] - taken[0][0]) / SECOND + 1  # and none is missing


def test_it_recovers_by_itself_after_the_database_was_unavailable(processes, eventually):
    schedule = make_schedule(every=SECOND, policy={"overlap": "allow", "catch_up": "all"})
    beat = processes.start_beat()
    eventually(Run.objects.exists)
    name = connection.settings_dict["NAME"]
    connection.close()
    with connection._nodb_cursor() as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            processes.eventually(lambda: "This tick failed" in beat.log)
        finally:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    back_at = database_now()
    eventually(lambda: Run.objects.filter(schedule=schedule, due_at__gt=back_at).exists())
    moments = list(Run.objects.filter(schedule=schedule).order_by("due_at").values_list("due_at", flat=True))
    assert moments == [moments[0] + n * SECOND for n in range(len(moments))]


def test_it_detects_a_timing_changed_without_a_signal_and_fires_nothing(processes, eventually):
    away = database_now() + 12 * HOUR
    schedule = make_schedule(cron={"minute": "0", "hour": str(away.hour)})
    processes.start_beat()
    eventually(Node.objects.exists)  # its first pass has compared all schedules; the next sweep is minutes away
    CrontabSchedule.objects.filter(pk=schedule.crontab_id).update(minute="59")
    expected = calendar.next_occurrence(calendar.spec_of(PeriodicTask.objects.get(), database_now()), database_now())
    eventually(lambda: Policy.objects.get().next_due_at == expected, deadline=SWEEP_EVERY / 3)
    assert not Run.objects.exists()


def test_it_leaves_the_schedules_of_the_settings_to_newer_beats_until_they_have_gone(processes, eventually):
    """The settings of these beats define no entry, so a beat that installs finds that of this schedule gone."""

    def start(version: str):
        return processes.start_beat(env={"CODE_VERSION": version, "PROJECT": "live"})

    old = start("1")
    eventually(Node.objects.filter(release__version="1").exists)
    newer = start("2")
    eventually(Node.objects.filter(release__version="2").exists)
    make_schedule("of the newer one", policy={"entry": "{}", "owner": "live"})
    old.kill()
    newer.kill()
    restarted = start("1")
    eventually(lambda: "This beat leaves CELERY_BEAT_SCHEDULE to them" in restarted.log)
    assert PeriodicTask.objects.get().enabled
    Node.objects.filter(release__version="2").update(seen_at=database_now() - entries.SILENT)
    eventually(lambda: not PeriodicTask.objects.get().enabled)
    eventually(lambda: "The entry 'of the newer one' of project live is gone" in restarted.log)


def test_it_runs_a_backfill_a_few_runs_at_a_time(processes, eventually, path):
    end = (database_now() - HOUR / 2).replace(second=0, microsecond=0)  # nothing else is due for half an hour
    cron = {"minute": str(end.minute)}
    schedule = make_schedule(task="tests.note", args=[str(path)], cron=cron, policy={"overlap": "queue_one"})
    processes.start_worker()
    processes.start_beat()
    backfills.backfill(Backfill(schedule=schedule, start=end - 6 * HOUR, end=end, at_once=2), Actor("ada"))
    mine = Run.objects.filter(trigger=Trigger.BACKFILL)
    eventually(lambda: mine.filter(state=State.SUCCEEDED).count() == 6)
    assert len(lines(path)) == 6


def test_it_cancels_the_previous_run_if_the_policy_says_so(processes, eventually, path):
    schedule = make_schedule(task="tests.hold", args=[str(path)], policy={"overlap": "cancel_previous"})
    processes.start_worker(env=SHORT_LEASE)
    processes.start_beat(env=SHORT_LEASE)
    make_due(schedule)
    eventually(lambda: lines(Path(f"{path}.started")))
    first = Run.objects.get()
    make_due(schedule)
    eventually(lambda: ends(first))
    assert (first.state, first.error_class) == (State.CANCELLED, "SoftTimeLimitExceeded")
    assert first.reason == "cancelled: the next run of its schedule takes its place; policy: cancel previous"
    eventually(lambda: len(lines(Path(f"{path}.started"))) == 2)
    Path(f"{path}.go").touch()
    second = Run.objects.exclude(id=first.id).get()
    eventually(lambda: ends(second))
    assert second.state == State.SUCCEEDED


def test_it_ends_when_asked_to_even_if_the_cleanup_fails():
    class Interrupted(Scheduler):
        def _pass(self) -> float:
            try:
                raise SystemExit
            finally:
                raise OperationalError("the transaction cannot be undone")

    with pytest.raises(SystemExit):
        Interrupted(app=current_app, lazy=True).tick()
