"""Would the storms notice? With one of Punctual's guards taken away, each time, a storm must end badly."""

import os
import signal

import pytest

from tests.chaos.storm import Storm
from tests.chaos.test_storms import broker_emptied, worker_tree

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos]


def message_three_times(storm: Storm) -> None:
    storm.wait(4)


def worker_frozen(storm: Storm) -> None:
    """A zombie: it wakes while the run that it had is over."""
    for worker in storm.workers:
        os.killpg(worker.pid, signal.SIGSTOP)
    storm.wait(0.1)
    frozen, storm.workers = storm.workers, []
    storm.start_worker()
    storm.wait(6)
    for worker in frozen:
        os.killpg(worker.pid, signal.SIGCONT)
    storm.wait(2)


@pytest.mark.parametrize(
    ("guard", "fault", "also"),
    [
        ("no_rescue", worker_tree, ""),
        ("no_redispatch", broker_emptied, ""),
        ("no_start_guard", message_three_times, ",thrice"),
        ("no_fence", worker_frozen, ""),
    ],
)
def test_a_storm_notices_that_there_is(storm, guard, fault, also):
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
