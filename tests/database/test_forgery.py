"""A message that names a run starts that run's task with its arguments, in its time; others start nothing."""

import json
from datetime import timedelta
from typing import Any

import pytest
from celery import signals
from celery.exceptions import Ignore
from kombu.utils.json import loads

from jobs.ledger.steps import STEP_HEADER
from jobs.messages.arguments import find_task
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import SENDING, Run, State, Step, database_now
from jobs.worker import context, pulse
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
    "queued": {"state": State.QUEUED},
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


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("state", STATES)
def test_it_starts_nothing_with_a_forged_message(state, forgery, tmp_path):
    run = run_in(state, tmp_path / "lines")
    before = columns(run)
    receive(run, **FORGERIES[forgery])
    assert columns(run) == before
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


def begin(run: Run, task: str, step: str) -> None:
    """Start a message of a step, but do not execute its body."""
    job = find_task(task)
    job.push_request(id="a", hostname="celery@here", is_eager=False, **{STEP_HEADER: [str(run.id), run.attempt, step]})
    try:
        job.before_start("a", [], {})
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
