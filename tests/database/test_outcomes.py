"""Every end of every run passes through ledger.outcomes once, after its commit, and reaches the listeners."""

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection, transaction

from jobs.beat import claim, release, rescue
from jobs.ledger import outbox, outcomes
from jobs.models import Ended, Policy, Run, State, Step, database_now
from jobs.worker import finish
from tests.making import inside, make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def heard() -> Iterator[list[Ended]]:
    """All ends that a listener was called with."""
    found: list[Ended] = []
    outcomes.listen(found.extend)
    yield found
    outcomes._listeners.remove(found.extend)


def running(**columns) -> Run:
    return make_run(state=State.RUNNING, **columns)


def lost() -> None:
    running(lease_until=database_now() - timedelta(seconds=1), attempt=3)
    rescue.rescue()


def cancelled_and_lost() -> None:
    running(lease_until=database_now() - timedelta(seconds=1), cancel_reason="cancelled: by ada")
    rescue.rescue()


def expired() -> None:
    make_run(expires_at=database_now() - timedelta(seconds=1))
    rescue.rescue()


def cancelled_unstarted() -> None:
    make_run()
    outcomes.cancel(Run.objects.all(), "by ada")


def without_schedule() -> None:
    make_run(not_before=None)
    release.release()


def succeeded() -> None:
    with inside(running()) as execution:
        finish.finish(execution, State.SUCCEEDED)


def succeeded_with_progress() -> None:
    with inside(running()) as execution:
        execution.progress = {"progress_done": 1}
        finish.finish(execution, State.SUCCEEDED)


def failed() -> None:
    with inside(running()) as execution:
        finish.fail(execution, ValueError("bad"), "Traceback")


def failed_by_a_step() -> None:
    run = running(lease_until=None)
    Step.objects.create(id="s", run=run, attempt=1, task="t", state=Step.State.FAILED, finished_at=database_now())
    outcomes.settle(run.id, 1)


def refused() -> None:
    outbox.send([make_run(task="tests.gone")])


def skipped() -> None:
    make_due(make_schedule(policy={"skip_next": 1}))
    list(claim.claim_due())


def skipped_as_unstorable() -> None:
    claim._record_unstorable(Policy.objects.get(schedule=make_schedule()), "it is too long", database_now())


ENDS = [
    *((succeeded, State.SUCCEEDED), (succeeded_with_progress, State.SUCCEEDED)),
    *((failed, State.FAILED), (failed_by_a_step, State.FAILED), (refused, State.FAILED)),
    *((lost, State.LOST), (expired, State.EXPIRED), (skipped, State.SKIPPED), (skipped_as_unstorable, State.SKIPPED)),
    *((cancelled_unstarted, State.CANCELLED), (cancelled_and_lost, State.CANCELLED)),
    (without_schedule, State.CANCELLED),
]


@pytest.mark.parametrize(("end", "state"), ENDS, ids=[end.__name__ for end, _ in ENDS])
def test_it_announces_each_end_once(heard, end, state):
    end()
    run = Run.objects.get()
    assert run.state == state
    assert heard == [Ended(run.id, run.schedule_id, state)]


@pytest.mark.parametrize("end", [end for end, _ in ENDS], ids=[end.__name__ for end, _ in ENDS])
def test_it_announces_no_end_that_is_rolled_back(heard, end):
    with transaction.atomic():
        end()
        assert heard == []
        transaction.set_rollback(True)
    assert heard == []


def test_it_announces_an_end_after_its_commit(heard):
    run = running()
    with transaction.atomic():
        outcomes.finish(run.id, 1, State.SUCCEEDED)
        assert heard == []
    assert heard == [Ended(run.id, None, State.SUCCEEDED)]


def test_it_announces_many_ends_in_one_batch(heard):
    runs = [make_run() for _ in range(3)]
    told = []
    outcomes.listen(told.append)
    try:
        outcomes.cancel(Run.objects.all(), "by ada")
    finally:
        outcomes._listeners.remove(told.append)
    assert len(told) == 1
    assert {run.run for run in heard} == {run.id for run in runs}


def test_it_announces_once_when_processes_race_for_an_end(heard):
    run, barrier, wins = running(), threading.Barrier(8), []

    def race() -> None:
        barrier.wait()
        wins.append(outcomes.finish(run.id, 1, State.SUCCEEDED))
        connection.close()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert heard == [Ended(run.id, None, State.SUCCEEDED)]


def test_it_announces_nothing_if_the_run_was_already_over(heard):
    run = make_run(state=State.SUCCEEDED)
    assert not outcomes.finish(run.id, 1, State.FAILED)
    assert heard == []


def test_it_logs_a_listener_that_raises_and_calls_the_others(heard, caplog):
    def failing(_: object) -> None:
        raise RuntimeError("the pager is on fire")

    run = running()
    outcomes._listeners.insert(0, failing)
    try:
        with caplog.at_level(logging.ERROR):
            assert outcomes.finish(run.id, 1, State.SUCCEEDED)
    finally:
        outcomes._listeners.remove(failing)
    assert "the pager is on fire" in caplog.text
    assert heard == [Ended(run.id, None, State.SUCCEEDED)]
    assert Run.objects.get().state == State.SUCCEEDED


def test_it_adds_a_listener_once():
    before = len(outcomes._listeners)
    outcomes.listen(outcomes.pause_failing)
    assert len(outcomes._listeners) == before


@pytest.mark.parametrize("end", [failed, lost], ids=["failed", "lost"])
def test_it_pauses_a_schedule_after_as_many_failures_as_its_policy_allows(end):
    schedule = make_schedule(policy={"pause_after_failures": 1, "rerun_if_lost": False})
    past = database_now() - timedelta(seconds=1)
    run = running(schedule=schedule, **({"lease_until": past} if end is lost else {}))
    if end is lost:
        rescue.rescue()
    else:
        outcomes.fail(run.id, 1, "bad", {})
    assert Policy.objects.paused().get().pause_reason == "the last run failed"


def test_it_follows_ends_of_other_processes():
    follower = outcomes.Follower()
    first, second = running(), running()
    outcomes.finish(first.id, 1, State.SUCCEEDED)
    assert follower.news() == [first]
    outcomes.finish(second.id, 1, State.FAILED)
    assert follower.news() == [second]
    assert follower.news() == []
