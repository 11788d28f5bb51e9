"""A message that names a run starts that run's task with its arguments, in its time; others start nothing."""

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app, signals
from celery.app.task import Context
from celery.exceptions import Ignore
from django.db import connection
from kombu.utils.json import loads

from jobs.ledger.steps import STEP_HEADER
from jobs.messages.arguments import find_task
from jobs.messages.envelope import ATTEMPT_HEADER, keeps_arguments
from jobs.models import SENDING, Run, State, Step, database_now
from jobs.worker import context, pulse, refusals
from tests.making import lines, make_run

pytestmark = pytest.mark.django_db(transaction=True)


def receive(run: Run, task: str | None = None, args: Any = None, kwargs: Any = None, **headers: Any) -> None:
    """Take a message of this run as a worker does. By default it is the run's own message."""
    args = loads(json.dumps(run.args if args is None else args))
    kwargs = loads(json.dumps(run.kwargs if kwargs is None else kwargs))
    headers = headers or {ATTEMPT_HEADER: run.attempt}
    find_task(task or run.task).apply(args, kwargs, task_id=str(run.id), headers=headers, throw=False)


def columns(run: Run) -> dict[str, Any]:
    return Run.objects.filter(id=run.id).values().get()


STATES: dict[str, dict[str, Any]] = {
    "waiting": {},
    "queued": {"state": State.QUEUED, "sends": 1},
    "future": {"not_before": timedelta(hours=1)},
    "held": {"not_before": None},
    "cancelled": {"state": State.CANCELLED},
    "ended": {"state": State.SUCCEEDED},
    "running": {"state": State.RUNNING},
}
FORGERIES: dict[str, dict[str, Any]] = {
    "another task": {"task": "tests.note"},
    "other arguments": {"args": ["other"]},
    "no arguments": {"args": []},
    "more keywords": {"kwargs": {"b": 1}},
    "a changed type": {"args": [["x"]]},
    "another attempt": {ATTEMPT_HEADER: 2},
}


def run_in(state: str, path: object, **more: Any) -> Run:
    options = {**STATES[state]}
    if isinstance(options.get("not_before"), timedelta):
        options["not_before"] += database_now()
    return make_run(**{"task": "tests.record", "args": [1, str(path)], **options, **more})


def is_told(state: str, forgery: str) -> bool:
    """Whether the run says why: the message could be its own, changed by its sender."""
    return state in {"waiting", "queued"} and forgery not in {"another task", "another attempt"}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("state", STATES)
def test_it_starts_nothing_with_a_forged_message(state, forgery, tmp_path):
    run = run_in(state, tmp_path / "lines")
    before = columns(run)
    receive(run, **FORGERIES[forgery])
    told = {"state", "reason", "queued_at", "not_before", "sends"} if is_told(state, forgery) else set()
    assert {name: value for name, value in columns(run).items() if name not in told} == {
        name: value for name, value in before.items() if name not in told
    }
    assert bool(told) is ("refused its message: its arguments are not those of the run" in columns(run)["reason"])
    assert lines(tmp_path / "lines") == []
    if state in {"waiting", "queued"}:
        receive(run)
        run.refresh_from_db()
        assert run.state == State.SUCCEEDED
        assert lines(tmp_path / "lines") == ["1"]


@pytest.mark.parametrize("state", ["future", "held"])
def test_it_starts_no_run_before_its_time(state, tmp_path, caplog):
    run = run_in(state, tmp_path / "lines")
    before = columns(run)
    receive(run)
    assert columns(run) == before
    assert f"A message of run {run.id} is refused: it comes before the run may start." in caplog.text


def test_it_starts_a_run_that_its_sender_has_just_taken():
    run = make_run(not_before=database_now() + SENDING)
    receive(run)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


def test_it_starts_a_run_by_a_second_copy_of_its_message_after_a_worker_deferred_it():
    run = make_run(sends=1, not_before=database_now() + timedelta(hours=1))
    receive(run)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


def test_it_says_what_differs(tmp_path, caplog):
    run = run_in("waiting", tmp_path / "lines")
    receive(run, task="tests.note")
    assert "is refused: it executes tests.note, but the run is tests.record." in caplog.text
    receive(run, args=[2])
    assert "is refused: its arguments are not those of the run." in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, 1.0, -0.0, 1e16, 1e-7, 10**40, True, "", "ä\U0001f600", [], {}),
        {"b": 1, "a": {"d": 2, "cc": [3]}, "10": 1, "9": 2},
        {"__type__": "uuid", "__value__": {"hex": "0197d1f2-5d5c-7f00-8000-0123456789ab"}},
        {"__type__": "datetime", "__value__": "2026-01-01T00:00:00+00:00"},
        {"__type__": "date", "__value__": "2026-01-01"},
        {"__type__": "decimal", "__value__": "1.50"},
        {"__type__": "bytes", "__value__": "x"},
    ],
    ids=repr,
)
def test_it_starts_a_run_with_any_arguments_that_a_row_can_hold(value):
    run = make_run(args=[value], kwargs={"value": value})
    run.refresh_from_db()
    receive(run)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


def test_it_compares_no_arguments_that_a_listener_may_have_changed():
    def listener(**_: Any) -> None: ...

    run = make_run(args=[1])
    signals.before_task_publish.connect(listener)
    try:
        receive(run, args=[2])
    finally:
        signals.before_task_publish.disconnect(listener)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


def begin(run: Run, task: str, step: str = "", **parts: Any) -> None:
    """Start a message of a run or of a step, but do not execute its body."""
    job = find_task(task)
    named = {STEP_HEADER: [str(run.id), run.attempt, step]} if step else {ATTEMPT_HEADER: run.attempt}
    task_id = step or str(run.id)
    job.push_request(id=task_id, hostname="celery@here", is_eager=False, **named, **parts)
    try:
        job.before_start(task_id, run.args, run.kwargs)
        execution = context.of(job.request)
        pulse.release(execution)
        context.leave(execution)
    finally:
        job.pop_request()


def test_it_starts_no_other_task_as_a_step(caplog):
    run = make_run(state=State.RUNNING)
    step = Step.objects.create(id="a", run=run, attempt=1, task="tests.record", state=Step.State.QUEUED)
    before = columns(run)
    with pytest.raises(Ignore):
        begin(run, "tests.note", step.id)
    step.refresh_from_db()
    assert (step.state, columns(run)) == (Step.State.QUEUED, before)
    assert "is refused: it executes tests.note, but its step is tests.record." in caplog.text
    begin(run, "tests.record", step.id)
    step.refresh_from_db()
    assert step.state == Step.State.RUNNING


@pytest.mark.parametrize("part", ["callbacks", "errbacks", "chain"])
def test_it_starts_no_run_with_tasks_that_follow_it(part, caplog):
    run = make_run()
    with pytest.raises(Ignore):
        begin(run, "tests.nothing", **{part: [{"task": "tests.note", "args": [], "kwargs": {}, "options": {}}]})
    run.refresh_from_db()
    assert run.state == State.WAITING
    assert "tasks follow it, and none follow the run" in caplog.text
    begin(run, "tests.nothing")
    run.refresh_from_db()
    assert run.state == State.RUNNING


def test_it_starts_runs_and_steps_under_another_name_of_their_task(monkeypatch):
    monkeypatch.setitem(current_app.tasks, "tests.former_name", find_task("tests.nothing"))
    run = make_run(task="tests.former_name", args=[1])
    receive(run)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    running = make_run(state=State.RUNNING)
    step = Step.objects.create(id="a", run=running, attempt=1, task="tests.former_name", state=Step.State.QUEUED)
    begin(running, "tests.nothing", step.id)
    step.refresh_from_db()
    assert step.state == Step.State.RUNNING


@pytest.mark.parametrize("text", ['["x",1]', '[ "x", 1 ]', '["\u00e4", 1e3]'])
def test_it_starts_a_run_whose_arguments_another_program_has_written(text):
    run = make_run()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE jobs_run SET args = %s", [text])
    run.refresh_from_db()
    receive(run)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\0", "\ud800"], ids=ascii)
def test_it_takes_arguments_that_no_database_stores_for_a_forgery(value, caplog):
    run = make_run(args=["x"])
    receive(run, args=[value])
    run.refresh_from_db()
    assert run.state == State.WAITING
    assert "its arguments are not those of the run" in caplog.text


def test_it_compares_only_the_task_where_a_project_has_its_own_serializer(monkeypatch):
    monkeypatch.setattr(find_task("tests.nothing"), "serializer", "yaml")
    assert not keeps_arguments(find_task("tests.nothing"))
    assert keeps_arguments(find_task("tests.note"))


@pytest.mark.parametrize("state", ["waiting", "queued", "future", "held"])
def test_it_cancels_no_run_for_an_expiry_that_only_its_message_has(state, tmp_path):
    run = run_in(state, tmp_path / "lines")
    before = columns(run)
    request = Context({"id": str(run.id), ATTEMPT_HEADER: run.attempt})
    signals.task_revoked.send(sender=find_task(run.task), request=request, terminated=False, signum=None, expired=True)
    assert columns(run) == before
    Run.objects.filter(id=run.id).update(expires_at=database_now())
    signals.task_revoked.send(sender=find_task(run.task), request=request, terminated=False, signum=None, expired=True)
    assert columns(run)["state"] == State.CANCELLED


def test_it_gives_back_no_run_and_fails_no_step_for_a_message_of_another_task():
    run = make_run(state=State.QUEUED)
    running = make_run(state=State.RUNNING)
    step = Step.objects.create(id="a", run=running, attempt=1, task="tests.note", state=Step.State.QUEUED)
    of_run = {"id": str(run.id), ATTEMPT_HEADER: 1}
    of_step = {"id": "a", STEP_HEADER: [str(running.id), 1, "a"]}
    for headers in (of_run, of_step):
        refusals.refuse(SimpleNamespace(headers={**headers, "task": "no.such"}), "unknown")
    run.refresh_from_db()
    step.refresh_from_db()
    assert (run.state, run.reason, step.state) == (State.QUEUED, "", Step.State.QUEUED)
    refusals.refuse(SimpleNamespace(headers={**of_run, "task": "tests.nothing"}), "unknown")
    refusals.refuse(SimpleNamespace(headers={**of_step, "task": "tests.note"}), "unknown")
    run.refresh_from_db()
    step.refresh_from_db()
    assert (run.state, run.reason, step.state) == (State.WAITING, "unknown", Step.State.FAILED)
