"""The features of tasks in Celery's documentation work inside runs, too."""

from functools import partial
from pathlib import Path

import pytest
from django.db import connection

from jobs.beat.rescue import rescue
from jobs.ledger import outbox, outcomes
from jobs.models import Attempt, FeedEntry, Run, State, database_now
from tests.live.conftest import SHORT_LEASE
from tests.making import ends, lines, send

pytestmark = pytest.mark.django_db(transaction=True)
SHORT = {**SHORT_LEASE, "CANCEL_GRACE_SECONDS": "1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def over(run: Run) -> bool:
    rescue()
    outbox.send_waiting()
    return ends(run)


@pytest.mark.parametrize(("failures", "state"), [(0, State.SUCCEEDED), (2, State.SUCCEEDED), (9, State.FAILED)])
def test_it_keeps_automatic_retries_as_attempts_of_one_run(processes, eventually, path, failures, state):
    processes.start_worker()
    run = send("tests.flaky", str(path), failures)
    eventually(lambda: over(run))
    assert (run.state, run.attempt) == (state, min(failures, 2) + 1)
    assert lines(path) == [str(number) for number in range(run.attempt)]
    assert {attempt.outcome for attempt in run.attempts.all()} <= {Attempt.Outcome.RETRIED}


def test_it_keeps_a_retry_that_was_raised_in_a_transaction(processes, eventually, path):
    processes.start_worker()
    run = send("tests.retry_in_transaction", str(path))
    eventually(lambda: over(run))
    assert (run.state, run.attempt, lines(path)) == (State.SUCCEEDED, 2, ["0", "1"])
    assert ["attempt 0" in run.logs.get(attempt=1).text, "attempt 1" in run.logs.get(attempt=2).text] == [True, True]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("name", ["MemoryError", "SystemExit", "KeyboardInterrupt", "CancelledError"])
def test_a_task_fails_with_any_exception_and_its_worker_goes_on(processes, eventually, name, pool):
    worker = processes.start_worker(f"--pool={pool}")
    run, next_one = send("tests.raise", name), send("tests.nothing")
    eventually(lambda: over(run))
    assert (run.state, run.attempt, run.error_class) == (State.FAILED, 1, name)
    eventually(lambda: over(next_one))
    later = send("tests.nothing")
    eventually(lambda: over(later))
    assert (next_one.state, later.state, worker.running) == (State.SUCCEEDED, State.SUCCEEDED, True)


@pytest.mark.parametrize("task", ["tests.no_autocommit", "tests.odd_text"])
def test_it_ends_a_run_that_spoiled_its_connection_or_log(processes, eventually, path, task):
    processes.start_worker("--concurrency=1")
    for _ in range(2):
        run = send(task, *([str(path)] if task == "tests.odd_text" else []))
        eventually(partial(over, run))
        assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
    assert not FeedEntry.objects.exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("", ["success:fine", "after:SUCCESS"]),
        ("fail", ["failure:bad", "after:FAILURE"]),
        ("retry", ["retry:again", "success:fine", "after:SUCCESS"]),
    ],
)
def test_it_calls_the_hooks_of_a_base_class(processes, eventually, path, how, said):
    processes.start_worker()
    run = send("tests.hooked", str(path), how)
    eventually(lambda: over(run))
    eventually(lambda: len(lines(path)) == len(said))
    assert lines(path) == said
    assert run.state == (State.FAILED if how == "fail" else State.SUCCEEDED)


def test_it_gives_a_task_its_arguments_as_models(processes, eventually, path):
    processes.start_worker()
    good, bad = (send("tests.modelled", {"path": str(path), "count": count}) for count in ("3", "many"))
    eventually(lambda: over(good) and over(bad))
    assert (good.state, lines(path)) == (State.SUCCEEDED, ["3"])
    assert (bad.state, bad.error_class) == (State.FAILED, "ValidationError")


def test_it_fails_an_attempt_that_lasts_longer_than_its_soft_limit(processes, eventually, path):
    processes.start_worker()
    run = send("tests.hold", str(path), soft_time_limit=1)
    eventually(lambda: ends(run))
    assert (run.state, run.error_class) == (State.FAILED, "SoftTimeLimitExceeded")
    assert lines(path) == []


def test_it_kills_a_job_that_does_not_end_when_it_is_cancelled(processes, eventually, path):
    worker = processes.start_worker(env=SHORT)
    run = send("tests.stubborn", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    outcomes.cancel(Run.objects.filter(id=run.id), "enough")
    eventually(lambda: over(run))
    assert (run.state, run.reason, run.attempt) == (State.CANCELLED, "cancelled: enough", 1)
    assert worker.running
    Path(f"{path}.go").touch()
    last = send("tests.note", str(path))
    eventually(lambda: over(last))
    assert lines(path) == [str(last.id)]


def test_it_gives_up_a_thread_that_does_not_end_when_it_is_cancelled(processes, eventually, path):
    processes.start_worker("--pool=threads", env=SHORT)
    run = send("tests.stubborn", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    outcomes.cancel(Run.objects.filter(id=run.id), "enough")
    eventually(lambda: over(run))
    ended = Run.objects.filter(id=run.id).values().get()
    Path(f"{path}.go").touch()
    eventually(path.exists)
    last = send("tests.nothing")
    eventually(lambda: over(last))
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled: enough")
    assert Run.objects.filter(id=run.id).values().get() == ended


def test_it_records_the_end_of_a_run_when_the_database_is_back(processes, eventually, path):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite is never unavailable.")
    worker = processes.start_worker()
    run = send("tests.hold", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    name = connection.settings_dict["NAME"]
    connection.close()
    with connection._nodb_cursor() as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            Path(f"{path}.go").touch()
            processes.eventually(lambda: "A run waits for the ledger" in worker.log)
        finally:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    eventually(lambda: ends(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
    assert run.finished_at <= database_now()
    assert lines(path) == [str(run.id)]
