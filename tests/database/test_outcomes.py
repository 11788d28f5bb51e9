"""Every end of every run passes through ledger.outcomes once, after its commit, and reaches the listeners."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import current_app
from django.db import DatabaseError, connection, transaction
from django_celery_beat.models import PeriodicTask

from jobs.beat import claim, release, rescue
from jobs.beat.scheduler import Scheduler
from jobs.ledger import outbox, outcomes
from jobs.messages.arguments import find_task
from jobs.models import Ended, Policy, Run, State, Step, database_now
from jobs.models.audit import Actor
from jobs.schedules import acts
from jobs.worker import context, finish
from tests.making import blocked, inside, make_due, make_run, make_schedule, only_where_rows_are_locked

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


def test_it_lets_a_task_that_a_listener_sends_belong_to_no_run(heard, redis):
    def notify(_: object) -> None:
        find_task("tests.nothing").delay()

    outcomes.listen(notify)
    try:
        with inside(running()) as execution:
            finish.finish(execution, State.SUCCEEDED)
            assert context.current() is None
    finally:
        outcomes._listeners.remove(notify)
    assert not Step.objects.exists()
    assert redis.llen("celery") == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, RuntimeError])
def test_it_lets_no_listener_end_beat(heard, error):
    def failing(_: object) -> None:
        raise error

    outcomes._listeners.insert(0, failing)
    try:
        running(lease_until=database_now() - timedelta(seconds=1), attempt=3)
        Scheduler(current_app, lazy=True).tick()
    finally:
        outcomes._listeners.remove(failing)
    assert [run.state for run in heard] == [State.LOST]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, SoftTimeLimitExceeded])
def test_it_lets_a_listener_pass_on_that_its_process_or_task_is_to_end(heard, error):
    def interrupted(_: object) -> None:
        raise error

    outcomes._listeners.insert(0, interrupted)
    try:
        with pytest.raises(error):
            outcomes.finish(running().id, 1, State.SUCCEEDED)
    finally:
        outcomes._listeners.remove(interrupted)
    assert Run.objects.get().state == State.SUCCEEDED


def test_it_announces_nothing_whose_transaction_failed_though_the_error_was_caught(heard):
    first, second = make_run(), running()
    with suppress(DatabaseError), transaction.atomic():
        outcomes.end(Run.objects.filter(id=first.id), {State.WAITING}, State.CANCELLED, reason="x")
        with suppress(DatabaseError):
            outcomes.finish(second.id, 1, State.FAILED, sends=None)
    assert heard == []
    assert set(Run.objects.values_list("state", flat=True)) == {State.WAITING, State.RUNNING}


@only_where_rows_are_locked
def test_it_ends_no_run_twice_though_it_is_chosen_by_its_schedule(heard):
    make_run(make_schedule("x"))

    def cancel() -> None:
        outcomes.cancel(Run.objects.filter(schedule__name="x"), "by ada")

    with transaction.atomic():
        outcomes.end(Run.objects.all(), {State.WAITING}, State.FAILED, reason="first")
        thread = blocked(cancel)
    thread.join()
    run = Run.objects.get()
    assert (run.state, run.reason) == (State.FAILED, "first")
    assert [ended.state for ended in heard] == [State.FAILED]


@only_where_rows_are_locked
def test_it_leaves_the_pause_of_an_operator_who_was_first():
    schedule = make_schedule(policy={"pause_after_failures": 1})
    run, until = running(schedule=schedule), database_now() + timedelta(hours=1)
    with transaction.atomic():
        acts.pause(PeriodicTask.objects.all(), Actor("ada"), "holiday", until, "all")
        thread = blocked(lambda: outcomes.fail(run.id, 1, "bad", {}))
    thread.join()
    policy = Policy.objects.get()
    assert (policy.paused_by, policy.paused_until, policy.pause_catch_up) == ("ada", until, "all")
