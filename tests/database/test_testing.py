"""Testing one's own jobs: runs that are due, eager mode, and a worker in a thread of the test."""

import threading
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import celery.contrib.testing.tasks  # noqa: F401 - its ping
import pytest
from celery import current_app
from celery.contrib.testing.worker import start_worker

from jobs import testing
from jobs.cache.resources import Resource, registry
from jobs.ledger import requests
from jobs.models import Policy, Run, State
from tests.making import ends, lines, make_schedule, send
from tests.waiting import DEADLINE, eventually

FOUR = {"cron": {"hour": "4", "minute": "0"}}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lines")


@pytest.mark.parametrize("at", [datetime(2020, 3, 1, 4, tzinfo=UTC), datetime(2040, 3, 1, 4, 0, 59, tzinfo=UTC)])
def test_it_executes_the_runs_that_are_due_at_a_moment(run_due, path, at):
    make_schedule("note", task="tests.note", args=[path], **FOUR)
    make_schedule("bad", task="tests.fail", args=["bad"], **FOUR)
    make_schedule("later", task="tests.note", args=[path], cron={"hour": "5", "minute": "0"})
    make_schedule("off", task="tests.note", args=[path], enabled=False, **FOUR)
    bad, note = sorted(run_due(at), key=lambda run: run.schedule_name)
    assert [(run.state, run.reason) for run in (note, bad)] == [("succeeded", ""), ("failed", "ValueError: bad")]
    assert lines(Path(path)) == [str(note.id)]
    assert note.due_at == at.replace(second=0)
    assert run_due(at + timedelta(minutes=30)) == []


def test_it_returns_the_moments_that_a_policy_skips(run_due, path):
    schedule = make_schedule(task="tests.note", args=[path], policy={"skip_next": 1}, **FOUR)
    (run,) = run_due(datetime(2026, 3, 1, 4, tzinfo=UTC))
    assert (run.state, run.schedule_id) == (State.SKIPPED, schedule.id)
    assert lines(Path(path)) == []


def test_it_executes_an_interval_at_its_next_moment(run_due, path):
    schedule = make_schedule(task="tests.note", args=[path], every=timedelta(hours=1))
    (run,) = run_due(Policy.objects.get(schedule=schedule).next_due_at)
    assert run.state == State.SUCCEEDED


@pytest.mark.parametrize("year", [2026, 2040])
def test_it_executes_each_moment_of_an_interval_after_the_one_before(run_due, path, year):
    make_schedule(task="tests.note", args=[path], every=timedelta(seconds=10))
    runs = run_due(datetime(year, 3, 1, 4, tzinfo=UTC))
    assert [run.state for run in runs] == [State.SUCCEEDED] * 6
    assert len(lines(Path(path))) == 6


def test_it_executes_a_whole_minute_of_an_interval_that_was_made_within_it(run_due, path):
    schedule = make_schedule(task="tests.note", args=[path], every=timedelta(seconds=10))
    assert len(run_due(Policy.objects.get(schedule=schedule).timing_since + timedelta(seconds=30))) == 6


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("task", "args", "state", "left"),
    [
        ("tests.retry", [], State.SUCCEEDED, ["0", "1", "2"]),
        ("tests.retry_for_ever", [], State.FAILED, ["0", "1"]),
        ("tests.set_off", ["tests.note"], State.SUCCEEDED, 1),
        ("tests.set_off", ["tests.retry_for_ever"], State.FAILED, ["0", "1"]),
        ("tests.call_in_place", [], State.SUCCEEDED, ["0", "1", "2"]),
    ],
)
def test_it_executes_what_a_job_repeats_and_sends_in_its_place(path, task, args, state, left):
    run, _ = requests.start("tests.nothing", {}, "ada")
    Run.objects.filter(id=run.id).update(task=task, args=[*args, path])
    run.refresh_from_db()
    assert testing.execute(run).state == state
    assert len(lines(Path(path))) == left if isinstance(left, int) else lines(Path(path)) == left


@pytest.mark.django_db
@pytest.mark.parametrize(("task", "state"), [("tests.nothing", State.SUCCEEDED), ("tests.raise", State.FAILED)])
def test_it_ends_a_requested_run_as_its_body_did_in_eager_mode(
    monkeypatch, django_capture_on_commit_callbacks, redis, task, state
):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    arguments = {"name": "MemoryError"} if task == "tests.raise" else {}
    with django_capture_on_commit_callbacks(execute=True):
        run, _ = requests.start(task, arguments, "ada")
    run.refresh_from_db()
    assert (run.state, run.attempt) == (state, 1)
    assert redis.llen("celery") == 0


def test_it_takes_a_task_with_a_queue_though_warnings_are_errors(redis):
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @current_app.task(
            name="tests.of_queue", queue="elsewhere", shared=False
        )  # other tests may have left plain applications
        def of_queue() -> None: ...

        of_queue.delay()
    assert redis.llen("elsewhere") == 1
    del current_app.tasks["tests.of_queue"]


@pytest.mark.django_db(transaction=True)
def test_it_executes_runs_in_a_worker_in_a_thread_of_the_test(path):
    with start_worker(current_app, shutdown_timeout=DEADLINE, ping_task_timeout=DEADLINE):
        assert current_app.tasks["tests.answer"].delay().get(timeout=DEADLINE) == 42
        run = send("tests.note", path)
        eventually(lambda: ends(run))
    assert (run.state, lines(Path(path))) == (State.SUCCEEDED, [str(run.id)])


@pytest.mark.django_db(transaction=True)
def test_it_leaves_no_thread_with_a_database_session_when_a_worker_in_a_thread_has_ended():
    with start_worker(current_app, shutdown_timeout=DEADLINE, ping_task_timeout=DEADLINE):
        pass
    try:
        assert Resource("of.a.test", dict).get() == {}
    finally:
        del registry["of.a.test"]
    eventually(lambda: not {"node", "resources"} & {thread.name for thread in threading.enumerate()})
