"""Steps of a run: when one may start, how it ends, and when a run no longer waits for its steps."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from jobs.ledger import outcomes, steps
from jobs.ledger.steps import STEP_HEADER
from jobs.models import Run, State, Step, database_now
from jobs.models.steps import OVER, STEP_TRANSITIONS
from jobs.worker import canvas, finish
from jobs.worker.context import Execution
from tests.making import inside, make_run
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("before", "after"), [(a, b) for a, b in product(Step.State, Step.State)])
def test_it_moves_a_step_only_along_the_legal_transitions(before, after):
    step = make_step(make_run(state=State.RUNNING), before)
    this = Step.objects.filter(id=step.id)
    if after in STEP_TRANSITIONS[before]:
        assert this.move({before}, after) == 1
        assert this.move({state for state in Step.State if after in STEP_TRANSITIONS[state]} - {after}, after) == 0
    else:
        with pytest.raises(ValueError, match=f"never goes from {before} to {after}"):
            this.move({before}, after)
    step.refresh_from_db()
    assert step.state == (after if after in STEP_TRANSITIONS[before] else before)
    assert (step.finished_at is not None) is (after in OVER and after in STEP_TRANSITIONS[before])


@pytest.mark.parametrize("before", Step.State)
def test_it_restarts_a_step_that_sends_itself_again(before):
    step = make_step(run := make_run(state=State.RUNNING, attempt=2), before, attempt=2)
    later = database_now() + timedelta(hours=1)
    columns = {"task": "tests.other", "following": 3, "lease_until": later}
    again = Step(id=step.id, run=run, attempt=2, state=Step.State.QUEUED, **columns)
    assert Step.objects.enlist(again, is_sender=True) == step.id
    step.refresh_from_db()
    assert (step.state, step.attempt, step.task, step.following) == (Step.State.QUEUED, 2, "tests.other", 3)
    assert step.lease_until == later


def make_step(run: Run, state: Step.State = Step.State.QUEUED, **columns: object) -> Step:
    return Step.objects.create(**{"id": "a", "run": run, "attempt": 1, "task": "tests.add", "state": state, **columns})


def start(run: Run, attempt: int = 1) -> bool:
    return steps.start("a", run.id, attempt, "celery@here", 1, "tests.add")


def test_it_starts_a_step_once():
    step = make_step(run := make_run(state=State.RUNNING))
    assert [start(run), start(run)] == [True, False]
    step.refresh_from_db()
    assert (step.state, step.worker) == (Step.State.RUNNING, "celery@here (1)")
    assert step.lease_until > database_now()


@pytest.mark.parametrize(
    "changes", [{"cancel_reason": "enough"}, {"attempt": 2}, {"state": State.FAILED, "finished_at": database_now}]
)
def test_it_starts_no_step_that_its_run_no_longer_needs(changes):
    step = make_step(run := make_run(state=State.RUNNING))
    values = {name: value() if callable(value) else value for name, value in changes.items()}
    Run.objects.filter(id=run.id).update(**values)
    assert not start(run)
    step.refresh_from_db()
    assert step.state == Step.State.QUEUED


def test_it_starts_no_step_of_another_run_or_attempt():
    make_step(run := make_run(state=State.RUNNING))
    other = make_run(state=State.RUNNING)
    assert not start(other)
    assert not start(run, attempt=2)


@pytest.mark.parametrize("changes", [{}, {"error_class": "ValueError"}])
def test_it_ends_only_running_steps(changes):
    running = make_step(run := make_run(state=State.RUNNING), Step.State.RUNNING)
    sent_again = make_step(run, id="b")
    for step in (running, sent_again):
        steps.end(step.id, run.id, 1, Step.State.FAILED, **changes)
        steps.end(step.id, run.id, 2, Step.State.SUCCEEDED, **changes)
        step.refresh_from_db()
    assert (running.state, running.error_class) == (Step.State.FAILED, changes.get("error_class", ""))
    assert running.finished_at is not None
    assert sent_again.state == Step.State.QUEUED


@pytest.mark.parametrize("state", Step.State)
@pytest.mark.parametrize("carried", [True, False])
def test_it_considers_a_run_over_when_its_body_is_and_no_step_is_queued_or_running(state, carried):
    run = make_run(state=State.RUNNING, **({"lease_until": None} if carried else {}))
    make_step(run, state)
    make_step(run, Step.State.RUNNING, id="of the attempt before", attempt=0)
    expected = carried and state not in {Step.State.QUEUED, Step.State.RUNNING}
    assert steps.is_over(run_id=run.id, attempt=1) is expected
    assert steps.over().filter(id=run.id).exists() is expected


def chord(execution: Execution, body: str) -> str:
    """Note the one member of a chord as its run publishes it; returns the id of the member."""
    options = {"chord": {"subtask_type": None, "task": "tests.nothing", "options": {"task_id": body}, "kwargs": {}}}
    canvas._enlist(execution, "tests.nothing", options)
    return options["task_id"]


@pytest.mark.parametrize("body", ["the run's", "its own"])
@pytest.mark.parametrize("left", [None, *Step.State])
def test_it_waits_for_the_body_of_a_chord_though_a_former_attempt_left_a_row_of_it(left, body):
    run = make_run(state=State.RUNNING, attempt=2)
    key = str(run.id) if body == "the run's" else "total"
    if left:
        over = {"finished_at": database_now()} if left in OVER else {}
        make_step(run, left, id=key, **over)
    with inside(run) as execution:
        member = chord(execution, key)
        finish.finish(execution, State.SUCCEEDED)
    steps.start(member, run.id, 2, "celery@here", 1, "tests.nothing")
    steps.end(member, run.id, 2, Step.State.SUCCEEDED)  # the member is done, but the counter of its chord is gone
    outcomes.settle(run.id, 2)
    run.refresh_from_db()
    assert run.state == State.FAILED
    assert "never" in run.reason


def test_it_expects_no_body_again_that_its_chord_has_published():
    run = make_run(state=State.RUNNING)
    make_step(run, Step.State.RUNNING, id="total")
    with inside(run) as execution:
        chord(execution, "total")
    assert Step.objects.get(id="total").state == Step.State.RUNNING


def enlist(execution: Execution, task: str, task_id: str, **options: Any) -> str:
    """Note a step as its sender publishes it; returns the key of its row."""
    options["task_id"] = task_id
    canvas._enlist(execution, task, options)
    assert options["task_id"] == task_id
    run_id, attempt, key = options["headers"][STEP_HEADER]
    assert (run_id, attempt) == (str(execution.run_id), execution.attempt)
    return key


@pytest.mark.django_db(transaction=True)
def test_it_gives_each_of_two_runs_its_own_step_though_both_send_one_id_at_once():
    runs, task_id, barrier = [make_run(state=State.RUNNING) for _ in range(2)], str(uuid4()), threading.Barrier(2)

    def send(run: Run) -> str:
        barrier.wait(DEADLINE)
        with closing(connection):
            return enlist(Execution(str(run.id), run.id, 1), "tests.nothing", task_id)

    with ThreadPoolExecutor(2) as pool:
        keys = list(pool.map(send, runs))
    assert task_id in keys
    assert {step.id: step.run_id for step in Step.objects.all()} == dict(
        zip(keys, [run.id for run in runs], strict=True)
    )


@pytest.mark.parametrize("known_as", ["mine", ""])  # a worker of a former version knows no groups
@pytest.mark.parametrize("is_taken", [True, False])
def test_it_lets_all_members_of_a_chord_expect_one_body(is_taken, known_as):
    body, run = str(uuid4()), make_run(state=State.RUNNING)
    if is_taken:
        theirs = make_step(make_run(state=State.RUNNING), Step.State.EXPECTED, id=body, group="the other")
    elif not known_as:
        make_step(run, Step.State.EXPECTED, id=body)
    for _ in range(3):  # each as another process decodes it from its message
        signature = {"subtask_type": None, "task": "tests.total", "options": {"task_id": body}, "kwargs": {}}
        enlist(Execution(str(run.id), run.id, 1), "tests.nothing", str(uuid4()), group_id="mine", chord=signature)
    expected = run.steps.get(state=Step.State.EXPECTED)
    assert (expected.id == body) is not is_taken
    key = enlist(Execution("a member", run.id, 1, "a member"), "tests.total", body, group_id="another")
    expected.refresh_from_db()
    assert (expected.id, expected.state) == (key, Step.State.QUEUED)
    if is_taken:
        theirs.refresh_from_db()
        assert theirs.state == Step.State.EXPECTED


@pytest.mark.parametrize("state", Step.State)
def test_it_takes_no_row_from_another_run_or_attempt(state):
    run, theirs = make_run(state=State.RUNNING, attempt=2), make_run(state=State.RUNNING)
    over = {"finished_at": database_now()} if state in OVER else {}
    rows = [make_step(run, state, id="of the attempt before", **over), make_step(theirs, state, id="theirs", **over)]
    for row in rows:
        key = enlist(Execution(str(run.id), run.id, 2), "tests.nothing", row.id)
        assert run.steps.get(id=key, attempt=2, state=Step.State.QUEUED).task_id == row.id
        before = (row.run_id, row.attempt, row.state)
        row.refresh_from_db()
        assert (row.run_id, row.attempt, row.state) == before


def test_it_ends_no_step_of_another_run():
    mine, other = make_run(state=State.RUNNING), make_run(state=State.RUNNING)
    step = make_step(mine, Step.State.RUNNING)
    for state in (Step.State.SUCCEEDED, Step.State.FAILED):
        steps.end(step.id, other.id, 1, state)
    step.refresh_from_db()
    assert step.state == Step.State.RUNNING


@pytest.mark.parametrize(
    ("changes", "state", "refused"),
    [
        ({}, Step.State.QUEUED, True),
        ({}, Step.State.RUNNING, False),
        ({"cancel_reason": "enough"}, Step.State.QUEUED, False),
        ({"error_class": "ValueError", "lease_until": None}, Step.State.QUEUED, False),
        ({"attempt": 2}, Step.State.QUEUED, False),
    ],
)
def test_it_fails_a_refused_step_that_its_run_needs_and_cancels_another(changes, state, refused):
    step = make_step(run := make_run(state=State.RUNNING, **changes), state)
    assert steps.refuse(step.id, run.id, 1, "refused", "Refused") is refused
    step.refresh_from_db()
    assert step.state == (Step.State.FAILED if refused else state)
    assert steps.dismiss(step.id, run.id, 1) is (state == Step.State.QUEUED and not refused)
    step.refresh_from_db()
    assert step.state == (Step.State.CANCELLED if state == Step.State.QUEUED and not refused else step.state)


@pytest.mark.django_db(transaction=True)
def test_it_gives_two_bodies_that_are_published_at_once_the_two_rows_that_are_expected():
    run, body, barrier = make_run(state=State.RUNNING), str(uuid4()), threading.Barrier(2)
    for group in ("one", "other"):
        signature = {"subtask_type": None, "task": "tests.total", "options": {"task_id": body}, "kwargs": {}}
        enlist(Execution(str(run.id), run.id, 1), "tests.nothing", str(uuid4()), group_id=group, chord=signature)
    expected = set(run.steps.filter(state=Step.State.EXPECTED).values_list("id", flat=True))
    assert len(expected) == 2

    def publish(_: int) -> str:
        barrier.wait(DEADLINE)
        with closing(connection):
            return enlist(Execution("a member", run.id, 1, "a member"), "tests.total", body)

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(publish, range(2))) == expected
    assert not run.steps.filter(state=Step.State.EXPECTED).exists()
