"""Faults on live beats and workers: killed, frozen, doubled, cut off from the broker; nothing is lost or done twice."""

import signal
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from django.db import connection
from django_celery_beat.models import PeriodicTask
from redis import Redis

from jobs.beat.scheduler import SWEEP_EVERY
from jobs.models import Attempt, Node, Policy, Run, State, database_now
from tests.live.conftest import SHORT_LEASE, Process
from tests.making import ends, expire_lease, lines, make_due, make_schedule, send
from tests.servers import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

# A process that starts jobs, and lives until its input ends.
CALLER = """
import sys
import django
django.setup()
from jobs.toolkit import run_job
for _ in range(3):
    print(run_job("tests.note", path=sys.argv[1]).id, flush=True)
sys.stdin.read()
"""

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def test_it_detects_a_change_without_a_signal_within_seconds(processes, eventually, path):
    make_schedule(task="tests.note", args=[str(path)])
    processes.start_beat()
    eventually(Node.objects.exists)  # its first pass has compared all schedules; the next sweep is minutes away
    PeriodicTask.objects.update(interval=None, crontab=None)
    eventually(lambda: Policy.objects.exclude(invalid_reason="").exists(), deadline=SWEEP_EVERY / 3)


def test_it_keeps_to_the_grid_with_two_beats_and_runs_nothing_twice(processes, eventually, path):
    schedule = make_schedule(every=SECOND, task="tests.note", args=[str(path)], policy={"overlap": "allow"})
    processes.start_worker()
    processes.start_beat()
    processes.start_beat()
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() >= 6)
    PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=False)
    eventually(lambda: not Policy.objects.filter(next_due_at__isnull=False).exists())
    eventually(lambda: not Run.objects.active().exists())
    moments = list(Run.objects.order_by("due_at").values_list("due_at", flat=True))
    assert {later - earlier for earlier, later in pairwise(moments)} == {SECOND}
    ran = Run.objects.filter(state=State.SUCCEEDED)
    assert sorted(lines(path)) == sorted(str(run.id) for run in ran)
    assert len(moments) - ran.count() <= 1  # the moment at which it was switched off


def test_it_restarts_a_run_whose_worker_was_killed_in_the_middle(processes, eventually, path):
    worker = processes.start_worker(env=SHORT_LEASE)
    processes.start_beat(env=SHORT_LEASE)
    run = send("tests.hold", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    worker.kill()
    processes.start_worker(env=SHORT_LEASE)
    eventually(lambda: len(lines(Path(f"{path}.started"))) == 2)
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 2)
    assert lines(path) == [str(run.id)]
    assert run.attempts.get().outcome == Attempt.Outcome.LOST


def test_it_keeps_the_lease_of_a_run_that_outlasts_it(processes, eventually, path):
    processes.start_worker(env=SHORT_LEASE)
    processes.start_beat(env=SHORT_LEASE)
    run = send("tests.hold", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    first = Run.objects.get(id=run.id)
    leases = set()

    def outlasts_its_lease() -> bool:
        leases.add(Run.objects.get(id=run.id).lease_until)
        return len(leases) > 3 and database_now() > first.lease_until

    eventually(outlasts_its_lease)
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, run.started_at) == (State.SUCCEEDED, 1, first.started_at)


def test_it_rejects_the_end_by_a_zombie_that_wakes_after_its_rescue(processes, eventually, path):
    frozen = processes.start_worker("--pool=solo")
    processes.start_beat()
    run = send("tests.hold", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    frozen.signal(signal.SIGSTOP)
    expire_lease(run)
    processes.start_worker("--pool=solo")
    eventually(lambda: len(lines(Path(f"{path}.started"))) == 2)
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    ended = Run.objects.get(id=run.id)
    frozen.signal(signal.SIGCONT)
    eventually(lambda: run.attempts.filter(outcome=Attempt.Outcome.FENCED).exists())
    after = Run.objects.get(id=run.id)
    assert {name: getattr(after, name) for name in _columns()} == {name: getattr(ended, name) for name in _columns()}


def _columns() -> list[str]:
    return [field.attname for field in Run._meta.concrete_fields]


def test_it_loses_nothing_when_the_broker_is_emptied(processes, eventually, redis, path):
    processes.start_beat()
    lost = send("tests.note", str(path))
    Run.objects.filter(id=lost.id).update(not_before=database_now() + HOUR)  # its patience lasts longer than this test
    redis.flushdb()
    processes.start_worker()
    redis.flushdb()
    schedule = make_schedule(task="tests.note", args=[str(path)])
    make_due(schedule)
    eventually(lambda: Run.objects.filter(schedule=schedule, state=State.SUCCEEDED).exists())
    Run.objects.filter(id=lost.id).update(not_before=database_now())  # its patience is over
    eventually(lambda: ends(lost))
    assert lines(path) == [str(Run.objects.get(schedule=schedule).id), str(lost.id)]


def test_it_goes_on_when_the_broker_was_killed_and_comes_back_empty(processes, eventually, mortal_broker, path):
    processes.start_worker(env=mortal_broker.address)
    beat = processes.start_beat(env=mortal_broker.address)
    schedule = make_schedule(task="tests.note", args=[str(path)])
    make_due(schedule)
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == len(lines(path)) == 1)
    mortal_broker.kill()
    make_due(schedule)
    eventually(lambda: "takes no messages" in beat.log)
    assert Run.objects.filter(state=State.WAITING).count() == 1
    mortal_broker.start()
    Run.objects.filter(state=State.WAITING).update(not_before=database_now())  # as if its sender had died
    eventually(lambda: len(lines(path)) == 2)
    eventually(lambda: not Run.objects.active().exists())
    assert Run.objects.filter(state=State.SUCCEEDED).count() == 2


def _lose_broker_with_a_message_in_hand(processes, eventually, broker, path, *options: str) -> Process:
    worker = processes.start_worker(*options, env=broker.address)
    processes.start_beat(env=broker.address)
    for number in range(3):
        make_due(make_schedule(f"s{number}", task="tests.hold", args=[str(path)]))
    eventually(lambda: worker.log.count("] received") >= 3)
    eventually(lambda: _started(path) == 2)  # the third message waits for a process
    worker.expect_end()
    broker.kill()
    return worker


def test_it_runs_jobs_that_code_started_while_the_broker_was_away(processes, eventually, mortal_broker, path):
    mortal_broker.kill()
    command, env = [sys.executable, "-c", CALLER, str(path)], processes.environment | mortal_broker.address
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as code:
        ids = [code.stdout.readline().strip() for _ in range(3)]
        assert set(Run.objects.values_list("state", "sends")) == {(State.WAITING, 0)}
        mortal_broker.start()
        processes.start_worker(env=mortal_broker.address)
        processes.start_beat(env=mortal_broker.address)
        eventually(lambda: not Run.objects.active().exists())
        code.stdin.close()
    assert sorted(lines(path)) == sorted(ids) == sorted(str(run.id) for run in Run.objects.all())


def test_a_worker_goes_on_when_its_broker_is_killed(processes, eventually, mortal_broker, path):
    worker = _lose_broker_with_a_message_in_hand(processes, eventually, mortal_broker, path)
    eventually(lambda: "Cannot connect" in worker.log)
    path.with_name(f"{path.name}.go").touch()
    mortal_broker.start()
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() >= 2)
    Run.objects.filter(state=State.QUEUED).update(not_before=database_now())  # its patience is over
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == 3)
    assert worker.running


def test_a_worker_with_celerys_own_consumer_ends_when_its_broker_is_killed(processes, eventually, mortal_broker, path):
    """It ends if the loss meets it at certain lines: nearly always on an idle machine, less often on a busy one."""
    own = "worker.consumer=celery.worker.consumer:Consumer"
    for attempt in range(6):
        mine = path.with_name(f"{path.name}.{attempt}")
        worker = _lose_broker_with_a_message_in_hand(processes, eventually, mortal_broker, mine, "--", own)
        eventually(lambda: "Unrecoverable error" in worker.log or worker.log.count("Trying again in") > 1)  # noqa: B023
        mine.with_name(f"{mine.name}.go").touch()
        if "Unrecoverable error" in worker.log:
            eventually(lambda: not worker.running)  # noqa: B023
            return
        worker.kill()
        mortal_broker.start()
        PeriodicTask.objects.all().delete()
        Run.objects.all().delete()
    pytest.fail("Celery's own worker went on six times: the overrides of its consumer may go.")


def _takes_another(worker: Process, eventually) -> bool:
    make_due(make_schedule("another", task="tests.nothing"))
    eventually(lambda: Run.objects.filter(schedule_name="another", state=State.SUCCEEDED).exists())
    return worker.running


def _started(path: Path) -> int:
    return len(lines(path.with_name(f"{path.name}.started")))


def test_a_worker_goes_on_when_a_task_outlives_its_connection(processes, eventually, mortal_broker, path):
    worker = processes.start_worker("--prefetch-multiplier=4", env=mortal_broker.address)
    processes.start_beat(env=mortal_broker.address)
    for number in range(3):
        make_due(make_schedule(f"s{number}", task="tests.hold_late", args=[str(path)]))
    eventually(lambda: worker.log.count("] received") >= 3 and _started(path) == 2)
    mortal_broker.kill()
    mortal_broker.start()
    eventually(lambda: worker.log.count("Connected to") >= 2)
    path.with_name(f"{path.name}.go").touch()
    eventually(lambda: len(lines(path)) >= 2)
    assert _takes_another(worker, eventually)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_takes_messages_after_its_broker_was_frozen(processes, eventually, mortal_broker, path, pool):
    worker = processes.start_worker(f"--pool={pool}", "--concurrency=1", env=mortal_broker.address)
    processes.start_beat(env=mortal_broker.address)
    for number in range(2):
        make_due(make_schedule(f"s{number}", task="tests.hold", args=[str(path)]))
    eventually(lambda: worker.log.count("] received") >= 2 and _started(path) == 1)
    with mortal_broker.frozen():
        path.with_name(f"{path.name}.go").touch()  # the next one starts, and its message cannot be acknowledged
        eventually(lambda: "did not take an acknowledgement" in worker.log)
    eventually(lambda: len(lines(path)) == 2)
    assert _takes_another(worker, eventually)


def test_a_worker_goes_on_when_its_broker_is_a_replica_for_a_while(processes, eventually, mortal_broker):
    worker = processes.start_worker(env=mortal_broker.address)
    processes.start_beat(env=mortal_broker.address)
    with Redis.from_url(mortal_broker.url) as client:
        client.replicaof("127.0.0.1", "1")
        eventually(lambda: "Connection to broker lost" in worker.log)
        client.replicaof("NO", "ONE")
    assert _takes_another(worker, eventually)


def test_it_claims_while_the_broker_is_unavailable_and_sends_when_it_is_back(processes, eventually, path):
    schedule = make_schedule(task="tests.note", args=[str(path)])
    cut_off = processes.start_beat(env={"BROKER_URL": "redis://127.0.0.1:1/0"})
    make_due(schedule)
    eventually(lambda: Run.objects.filter(state=State.WAITING).exists())
    eventually(lambda: "takes no messages" in cut_off.log)
    cut_off.stop()
    assert Run.objects.get().state == State.WAITING
    Run.objects.update(not_before=database_now())  # as if its sender had died
    processes.start_worker()
    processes.start_beat()
    eventually(lambda: ends(Run.objects.get(schedule=schedule)))
    assert lines(path) == [str(Run.objects.get(schedule=schedule).id)]


@pytest.mark.parametrize("code", ["25006", "42501"], ids=["read-only", "no rights"])
def test_it_records_an_end_when_the_database_accepts_it_again(processes, eventually, path, code):
    worker = processes.start_worker()
    run = send("tests.hold", str(path))
    eventually(lambda: _started(path))
    with connection.cursor() as cursor:
        raising = f"BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END"
        cursor.execute(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${raising}$$")
        cursor.execute("CREATE TRIGGER refuse BEFORE UPDATE ON jobs_run FOR EACH ROW EXECUTE FUNCTION refuse()")
        try:
            path.with_name(f"{path.name}.go").touch()
            eventually(lambda: "waits for the ledger: not now" in worker.log)
        finally:
            cursor.execute("DROP FUNCTION refuse CASCADE")
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_fails_and_is_not_lost_if_its_error_cannot_be_stored(processes, eventually, mortal_broker, pool):
    worker = processes.start_worker(f"--pool={pool}", env={"RESULT_BACKEND": mortal_broker.address["BROKER_URL"]})
    with Redis.from_url(mortal_broker.url) as client:
        client.replicaof("127.0.0.1", "1")
    run = send("tests.fail", "its own", keep_result=True)
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, "its own" in run.error_text) == (State.FAILED, 1, True)
    assert worker.running


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_worker_that_must_end_at_once_finishes_tasks_that_it_cannot_kill(processes, eventually, path, pool):
    worker = processes.start_worker(f"--pool={pool}")
    run = send("tests.hold", str(path))
    eventually(lambda: _started(path))
    worker.expect_end()
    worker.signal(signal.SIGQUIT)
    eventually(lambda: "Hitting Ctrl+C again" in worker.log)
    path.with_name(f"{path.name}.go").touch()
    eventually(lambda: ends(run) and not worker.running)
    assert (run.state, run.attempt, "NotImplementedError" in worker.log) == (State.SUCCEEDED, 1, False)
