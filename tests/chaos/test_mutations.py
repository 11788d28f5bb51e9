"""Do the storms detect faults? Each test disables one of Punctual's guards, and its storm must fail."""

import os
import signal

import pytest

from jobs.models import Run, State
from tests.chaos.storm import Storm
from tests.live.conftest import Process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos]


def _wait_until_at_work(storm: Storm, worker: Process) -> None:
    node = worker.name.replace("-", "")
    mine = Run.objects.filter(state=State.RUNNING, lease_until__isnull=False, node__startswith=f"{node}@")
    storm.processes.eventually(mine.exists)


def worker_killed_at_work(storm: Storm) -> None:
    for worker in storm.workers:
        _wait_until_at_work(storm, worker)
        worker.kill()
    storm.workers.clear()
    storm.start_worker()


def broker_emptied_without_workers(storm: Storm) -> None:
    for worker in storm.workers:
        worker.stop()
    storm.wait(2)
    storm.redis.flushall()
    storm.workers.clear()
    storm.start_worker()


def message_three_times(storm: Storm) -> None:
    storm.wait(4)


def worker_frozen(storm: Storm) -> None:
    """A zombie: it wakes after its runs were rescued."""
    for worker in storm.workers:
        _wait_until_at_work(storm, worker)
        os.killpg(worker.pid, signal.SIGSTOP)
    frozen, storm.workers = storm.workers, []
    storm.start_worker()
    storm.wait(6)
    for worker in frozen:
        os.killpg(worker.pid, signal.SIGCONT)
    storm.wait(2)


@pytest.mark.parametrize(
    ("guard", "fault", "also"),
    [
        ("no_rescue", worker_killed_at_work, ""),
        ("no_redispatch", broker_emptied_without_workers, ""),
        ("no_start_guard", message_three_times, ",thrice"),
        ("no_fence", worker_frozen, ""),
    ],
)
def test_a_storm_fails_with(storm, guard, fault, also):
    storm.sabotage = f"hasty,{guard}{also}"
    storm.make_schedules()
    storm.start_all()
    storm.wait(1)
    fault(storm)
    with pytest.raises(AssertionError):
        _end(storm)


def _end(storm: Storm) -> None:
    storm.calm(deadline=15)
    storm.reckon()
