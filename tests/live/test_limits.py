"""Tasks with a rate limit: waiting runs keep no other run out of the worker, and copies of messages cost nothing."""

import pytest
from celery import current_app

from jobs.ledger import outbox, outcomes
from jobs.models import Run, State
from tests.making import ends, make_run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_it_executes_other_runs_while_runs_wait_for_their_rate_limit(processes, eventually, pool):
    processes.start_worker(f"--pool={pool}", "--concurrency=1")
    processes.start_beat()
    hourly, slow = ([make_run(task=name) for _ in range(3)] for name in ("tests.hourly", "tests.slow"))
    other = make_run()
    outbox.send([*hourly, *slow, other])
    eventually(lambda: ends(other))
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == 3)
    waiting = Run.objects.exclude(state=State.SUCCEEDED).order_by("not_before")
    assert [(run.task, run.state, run.reason) for run in waiting] == [
        ("tests.slow", State.QUEUED, "worker0@localhost holds it: rate limit 15/h"),
        ("tests.slow", State.WAITING, "worker0@localhost starts others first: rate limit 15/h"),
        ("tests.hourly", State.WAITING, "worker0@localhost starts others first: rate limit 1/h"),
        ("tests.hourly", State.WAITING, "worker0@localhost starts others first: rate limit 1/h"),
    ]
    assert (waiting[3].not_before - waiting[2].not_before).total_seconds() > 1800  # each has its own turn


def test_it_sends_each_run_once_though_it_waits_for_its_rate_limit(processes, eventually):
    processes.start_worker("--concurrency=1")
    processes.start_beat()
    runs = [make_run(task="tests.limited") for _ in range(9)]  # the last one waits for longer than the first patience
    outbox.send(runs)
    eventually(lambda: all(ends(run) for run in runs))
    assert {(run.state, run.sends, run.reason) for run in runs} == {(State.SUCCEEDED, 1, "")}


def test_it_spends_no_token_on_messages_that_start_nothing(processes, eventually):
    cancelled, run, other = make_run(task="tests.hourly"), make_run(task="tests.hourly"), make_run()
    outbox.send([cancelled, run])
    outbox.send([run])
    outbox.send([run])
    outcomes.cancel(Run.objects.filter(id=cancelled.id), "a test")
    worker = processes.start_worker("--concurrency=1")
    eventually(lambda: ends(run))
    assert run.state == State.SUCCEEDED
    eventually(lambda: worker.log.count(f"A message of {run.id} is dropped") == 2)
    assert worker.log.count(f"A message of {cancelled.id} is dropped") == 1
    outbox.send([other])
    eventually(lambda: ends(other))


def test_it_drops_a_message_whose_run_was_cancelled_while_it_waited_for_its_rate_limit(processes, eventually):
    worker = processes.start_worker("--concurrency=1")
    runs = [make_run(task="tests.limited") for _ in range(6)]
    outbox.send(runs)
    eventually(lambda: Run.objects.filter(reason="worker0@localhost holds it: rate limit 20/m").count() == 4)
    held = Run.objects.latest("not_before")
    outcomes.cancel(Run.objects.filter(id=held.id), "a test")
    eventually(lambda: f"A message of {held.id} is dropped" in worker.log)
    eventually(lambda: all(ends(run) for run in runs))
    assert sorted(run.state for run in runs) == [State.CANCELLED, *[State.SUCCEEDED] * 5]


def test_it_executes_steps_one_after_the_other_by_their_rate_limit(processes, eventually):
    processes.start_worker("--concurrency=1")
    run = make_run(task="tests.send_limited")
    outbox.send([run])
    eventually(lambda: ends(run))
    assert (run.state, run.steps.filter(state="succeeded").count()) == (State.SUCCEEDED, 3)


def test_it_starts_messages_by_their_rate_limit_while_the_ledger_is_unavailable(processes, eventually):
    outbox.send([make_run(task="tests.limited") for _ in range(4)])
    nowhere = {"DATABASE_URL": processes.environment["DATABASE_URL"] + "-gone"}
    worker = processes.start_worker("--concurrency=1", env=nowhere)
    eventually(lambda: worker.log.count("is not started: the database is unavailable") == 4)
    assert "A rate limit acts without the ledger" in worker.log
    assert worker.running


def test_it_executes_other_runs_while_steps_wait_for_their_rate_limit(processes, eventually):
    processes.start_worker("--concurrency=1")
    run = make_run(task="tests.send_hourly")
    outbox.send([run])
    eventually(lambda: run.steps.filter(state="succeeded").count() == 1)
    other = make_run()
    outbox.send([other])
    eventually(lambda: ends(other))
    assert run.steps.filter(state="queued").count() == 5


def test_it_starts_waiting_runs_when_their_rate_limit_is_lifted(processes, eventually):
    processes.start_worker("--concurrency=1", env={"REMOTE_CONTROL": "full"})
    runs = [make_run(task="tests.slow") for _ in range(2)]
    outbox.send(runs)
    eventually(lambda: Run.objects.filter(reason__contains="holds it").exists() and any(ends(run) for run in runs))
    current_app.control.rate_limit("tests.slow", None)
    eventually(lambda: all(ends(run) for run in runs))
    assert {run.state for run in runs} == {State.SUCCEEDED}
