"""One run on a live worker: executed once, failed, retried or killed, each as the ledger records it."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction
from django_celery_results.models import TaskResult

from jobs.ledger import outbox
from jobs.messages.arguments import find_task
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import Policy, Run, State, Trigger, database_now
from jobs.worker.results import NoResultError
from project.celery import app
from tests.app.tasks import KEPT
from tests.live.conftest import Processes
from tests.making import ends, lines, make_due, make_run, make_schedule, send
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing")]

LONG_LEASE = {"LEASE_SECONDS": "3600"}  # far longer than a test waits: a run is rescued in time only if that is at once


@pytest.fixture(scope="module", autouse=True)
def _worker_and_beat(standing: Processes) -> None:
    standing.start_worker(env=LONG_LEASE | {"REMOTE_CONTROL": "full"})
    standing.start_beat(env=LONG_LEASE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def test_it_runs_a_due_moment_once_and_records_it(eventually, path):
    schedule = make_schedule("due", task="tests.note", args=[str(path)])
    due_at = make_due(schedule)
    eventually(lambda: Run.objects.filter(schedule=schedule, state=State.SUCCEEDED).exists())
    run = Run.objects.get(schedule=schedule)
    assert lines(path) == [str(run.id)]
    assert (run.due_at, run.attempt, run.trigger, run.reason) == (due_at, 1, Trigger.SCHEDULE, "")
    assert run.due_at <= run.started_at <= run.finished_at
    assert run.worker.startswith("worker0@localhost (")
    assert Policy.objects.get(schedule=schedule).next_due_at == due_at + timedelta(hours=1)


def test_it_holds_no_lock_and_no_transaction_while_the_body_runs(eventually, path):
    run = send("tests.hold", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    with transaction.atomic():
        assert Run.objects.select_for_update(nowait=True).get(id=run.id).state == State.RUNNING
    eventually(lambda: not open_transactions())  # those of beat are over in a moment, this run is not
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))


def open_transactions() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
        return cursor.fetchone()[0]


def test_it_rescues_a_run_at_once_when_only_the_child_of_a_worker_was_killed(eventually, path):
    run = send("tests.hold", str(path))
    (child,) = eventually(lambda: lines(Path(f"{path}.started")))
    os.kill(int(child), signal.SIGKILL)
    eventually(lambda: len(lines(Path(f"{path}.started"))) == 2)
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 2)
    assert run.attempts.get().reason == "lost: its process ended: signal 9 (SIGKILL)"


def test_it_ends_a_job_that_kills_every_process_that_runs_it(eventually, path):
    run = send("tests.die", str(path))
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, run.reason) == (State.LOST, 3, "lost: its process ended: signal 9 (SIGKILL)")
    assert len(set(lines(path))) == 3


def test_it_starts_a_run_once_however_often_its_message_comes(eventually, path):
    run = send("tests.hold", str(path))
    for _ in range(3):
        outbox.send([run])
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    last = send("tests.note", str(path))
    eventually(lambda: ends(last))
    assert lines(path) == [str(run.id), str(last.id)]


@pytest.mark.parametrize("task", ["tests.break_connection", "tests.leave_transaction"])
def test_it_records_the_end_of_a_run_that_leaves_its_connection_unusable(eventually, path, task):
    run = send(task, str(path))
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
    assert run.reason == ""
    assert lines(path) == [str(run.id)]


def test_it_records_a_failure_with_its_error(eventually):
    run = send("tests.fail", "as NUL asked")
    eventually(lambda: ends(run))
    assert (run.state, run.error_class, run.reason) == (State.FAILED, "ValueError", "ValueError: as \\0 asked")
    assert "Traceback" in run.error_text
    assert "raise ValueError(message.replace(" in run.error_text


def test_it_records_an_error_that_can_neither_be_printed_nor_stored(eventually):
    run = send("tests.fail_oddly")
    eventually(lambda: ends(run))
    assert (run.state, run.error_class) == (State.FAILED, "OddError")
    assert run.reason == "tests.app.tasks.OddError: <exception str() failed>"


def test_it_retries_a_failed_run_as_often_as_the_policy_says(eventually):
    run = send("tests.fail", "no", max_attempts=3, retry_delay=timedelta(milliseconds=10))
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.FAILED, 3)
    assert list(run.attempts.order_by("number").values_list("number", "outcome", "error_class")) == [
        (1, "failed", "ValueError"),
        (2, "failed", "ValueError"),
    ]


def test_it_keeps_a_task_s_own_retries_as_attempts_of_one_run(eventually, path):
    good, bad = send("tests.retry", str(path)), send("tests.retry_for_ever", f"{path}.bad")
    eventually(lambda: ends(good) and ends(bad))
    assert (good.state, good.attempt) == (State.SUCCEEDED, 3)
    assert lines(path) == ["0", "1", "2"]
    assert (bad.state, bad.reason) == (State.FAILED, "ValueError: still not")
    assert lines(Path(f"{path}.bad")) == ["0", "1"]


def test_it_keeps_the_values_of_a_retry_that_a_message_of_celery_keeps(eventually, path):
    run = send("tests.retry_with", str(path), "kept")
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 2)
    assert lines(path) == ["None", f"{KEPT!r}".replace(" ", "")]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("nan", "NaN is not JSON"),
        ("nul", "the character NUL"),
        ("object", "not JSON serializable"),
        ("surrogate", "surrogates not allowed"),
        ("deep", "recursion"),
    ],
)
def test_it_fails_a_run_whose_retry_cannot_be_kept(eventually, path, kind, why):
    run = send("tests.retry_with", str(path), kind)
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, run.error_class) == (State.FAILED, 1, "KeyError")
    assert run.reason.startswith('KeyError: "the task\'s own" (no retry: ')
    assert why in run.reason
    assert "the task's own" in run.error_text
    assert "The retry failed:" in run.error_text
    assert lines(path) == ["None"]


def test_it_fails_a_run_whose_automatic_retry_cannot_be_kept(eventually, path):
    run = send("tests.autoretry_mutated", str(path), {})
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, run.error_class) == (State.FAILED, 1, "KeyError")
    assert "not JSON serializable" in run.reason
    assert lines(path) == ["tried"]


def test_it_names_the_class_of_an_error_that_cannot_be_pickled(eventually):
    run = send("tests.fail_unpickleably")
    eventually(lambda: ends(run))
    assert (run.state, run.error_class) == (State.FAILED, "LocalError")
    assert "7: no pickle" in run.reason


def test_it_ends_a_revoked_run_only_when_its_process_has_ended(eventually, path):
    run = send("tests.stubborn", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    app.control.revoke(str(run.id), terminate=True, signal="SIGINT")  # which children of the pool ignore
    eventually(lambda: Run.objects.exclude(cancel_reason="").filter(id=run.id).exists())
    run.refresh_from_db()
    assert (run.state, run.cancel_reason) == (State.RUNNING, "cancelled: it was revoked")
    assert run.lease_until > database_now() + timedelta(minutes=1)
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    assert lines(path) == ["came", "to", "its", "end"]
    last = send("tests.stubborn", f"{path}.last")
    eventually(lambda: lines(Path(f"{path}.last.started")))
    app.control.revoke(str(last.id), terminate=True, signal="SIGKILL")
    eventually(lambda: ends(last))
    assert (last.state, last.reason) == (State.CANCELLED, "cancelled: it was revoked")


def test_it_rescues_a_run_at_once_whose_message_is_repeated_for_its_killed_child(eventually, path):
    run = send("tests.die_late", str(path))
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 2)
    assert lines(path) == [str(run.id)] * 2


def test_it_keeps_the_name_of_the_schedule_with_a_result(eventually):
    run = send("tests.answer", keep_result=True)
    eventually(lambda: ends(run))
    assert TaskResult.objects.get(task_id=str(run.id)).periodic_task_name == run.schedule_name


def test_it_keeps_dates_readable_however_long_a_retry_is_delayed(eventually):
    run = send("tests.retry_in", 1e12)
    eventually(lambda: ends(run) or run.attempt == 2)
    assert (run.state, run.attempt) == (State.WAITING, 2)
    assert run.not_before > database_now() + timedelta(days=3000)
    hopeless = send("tests.retry_in", 1e300)
    eventually(lambda: ends(hopeless))
    assert hopeless.state == State.FAILED


@pytest.mark.parametrize(("task", "state"), [("tests.ignore", "succeeded"), ("tests.reject", "failed")])
def test_it_ends_a_run_whose_task_raises_ignore_or_reject(eventually, task, state):
    run = send(task)
    eventually(lambda: ends(run))
    assert run.state == state
    assert run.reason.startswith("the task ended itself by raising")


def test_it_ends_a_run_that_lasts_longer_than_its_time_limit(eventually, path):
    run = send("tests.hold", str(path), time_limit=1)
    eventually(lambda: ends(run))
    assert (run.state, run.error_class) == (State.FAILED, "TimeLimitExceeded")
    assert lines(path) == []


def test_it_guards_a_task_whose_base_class_forgets_its_parent(eventually, path):
    run = send("tests.careless", str(path))
    outbox.send([run])
    eventually(lambda: ends(run))
    last = send("tests.careless", str(path))
    eventually(lambda: ends(last))
    assert lines(path) == [str(run.id), str(last.id)]


def test_it_leaves_plain_tasks_alone_and_keeps_only_requested_results(eventually, path):
    answer = find_task("tests.answer").delay()
    silent = find_task("tests.note").delay(str(path))
    assert answer.get(timeout=DEADLINE) == 42
    assert find_task("tests.answer").chunks([(), (), ()], 2)().get(timeout=DEADLINE) == [[42, 42], [42]]
    eventually(lambda: lines(path) == [silent.id])
    assert TaskResult.objects.filter(task_id=answer.id).exists()
    assert not TaskResult.objects.filter(task_id=silent.id).exists()
    assert not Run.objects.filter(id__in=[answer.id, silent.id]).exists()
    with pytest.raises(NoResultError, match="ignore_result=False"):
        silent.get(timeout=DEADLINE)


@pytest.mark.parametrize("keep", [True, False])
def test_it_lets_a_schedule_decide_whether_its_result_is_kept(eventually, keep):
    run = send("tests.nothing" if keep else "tests.answer", keep_result=keep)
    eventually(lambda: ends(run))
    assert run.state == State.SUCCEEDED
    assert TaskResult.objects.filter(task_id=str(run.id)).exists() is keep
    result = app.AsyncResult(str(run.id))
    if keep:
        assert result.get(timeout=DEADLINE) is None
    else:
        with pytest.raises(NoResultError, match="keep result"):
            result.get()


def test_it_refuses_hostile_attempts_and_goes_on(eventually, path):
    run = make_run(task="tests.note", args=[str(path)], not_before=database_now() + timedelta(hours=1))
    note = find_task("tests.note")
    for attempt in ("x", [], {"a": 1}, -1, 2, 10**30, "1; DROP TABLE"):
        note.apply_async([str(path)], task_id=str(run.id), headers={ATTEMPT_HEADER: attempt})
    note.apply_async([str(path)], task_id="no-uuid", headers={ATTEMPT_HEADER: 1})
    last = send("tests.note", f"{path}.last")
    eventually(lambda: ends(last))
    run.refresh_from_db()
    assert run.state == State.WAITING
