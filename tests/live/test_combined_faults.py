"""Faults that meet a state of the process: a broker too late or with an error, a database that stands still."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import redis as redis_client
from celery import current_app
from django.db import OperationalError

from jobs.models import Run, State
from jobs.scheduler import Scheduler
from tests.making import lines, make_due, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


@contextmanager
def frozen_database(servers) -> Iterator[None]:
    folder = servers.workspace.folder / "postgresql"
    server = psutil.Process(int((folder / "data" / "postmaster.pid").read_text().split()[0]))
    stopped = [server, *server.children()]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def test_a_beat_ends_when_asked_to_though_the_database_stands_still(processes, servers):
    """What tidies up after the signal fails, and an error in the place of the signal must not keep beat."""
    beat = processes.start_beat()
    time.sleep(2)
    with frozen_database(servers):
        time.sleep(3.5)  # a tick is in the middle of a query
        beat.expect_end()
        beat.signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while beat.running and time.monotonic() < until:
            time.sleep(0.1)
        assert not beat.running


def test_a_tick_passes_on_that_a_signal_asked_for_the_end():
    class Failing(Scheduler):
        def _pass(self) -> float:
            try:
                raise SystemExit
            finally:
                raise OperationalError("the rollback failed, too")

    with pytest.raises(SystemExit):
        Failing(app=current_app, lazy=True).tick()


def _started(path: Path) -> int:
    return len(lines(path.with_name(f"{path.name}.started")))


def _takes_another(eventually, worker) -> None:
    make_due(make_schedule("another", task="tests.nothing"))
    eventually(lambda: Run.objects.filter(schedule_name="another", state=State.SUCCEEDED).exists())
    assert worker.running


def test_a_worker_goes_on_when_a_task_outlives_the_connection_it_came_over(processes, eventually, mortal_broker, path):
    worker = processes.start_worker("--prefetch-multiplier=4", env=mortal_broker.address)
    processes.start_beat(env=mortal_broker.address)
    for number in range(3):
        make_due(make_schedule(f"s{number}", task="tests.hold_late", args=[str(path)]))
    eventually(lambda: worker.log.count("] received") == 3 and _started(path) == 2)
    mortal_broker.kill()
    mortal_broker.start()
    eventually(lambda: worker.log.count("Connected to") == 2)
    path.with_name(f"{path.name}.go").touch()
    eventually(lambda: len(lines(path)) >= 2)
    _takes_another(eventually, worker)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_takes_messages_after_its_broker_stood_still(processes, eventually, mortal_broker, path, pool):
    worker = processes.start_worker(f"--pool={pool}", "--concurrency=1", env=mortal_broker.address)
    processes.start_beat(env=mortal_broker.address)
    for number in range(2):
        make_due(make_schedule(f"s{number}", task="tests.hold", args=[str(path)]))
    eventually(lambda: worker.log.count("] received") == 2 and _started(path) == 1)
    time.sleep(0.5)
    mortal_broker._child.send_signal(signal.SIGSTOP)
    path.with_name(f"{path.name}.go").touch()  # the next one starts, and its message cannot be acknowledged
    eventually(lambda: "acknowledge in time" in worker.log or "Couldn't ack" in worker.log)
    mortal_broker._child.send_signal(signal.SIGCONT)
    eventually(lambda: len(lines(path)) == 2)
    _takes_another(eventually, worker)


def test_a_worker_goes_on_when_its_broker_is_a_replica_for_a_while(processes, eventually, mortal_broker):
    worker = processes.start_worker(env=mortal_broker.address)
    processes.start_beat(env=mortal_broker.address)
    client = redis_client.Redis.from_url(mortal_broker._server.url)
    client.replicaof("127.0.0.1", "1")
    eventually(lambda: "Connection to broker lost" in worker.log or "Unrecoverable" in worker.log)
    client.replicaof("NO", "ONE")
    _takes_another(eventually, worker)
