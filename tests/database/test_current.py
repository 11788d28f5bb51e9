"""What can a task ask and report while it executes, and does the same do nothing outside a run?"""

import logging
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError, connection, transaction

from jobs.models import Effect, RunLog, State, Trigger, database_now
from jobs.models.attempts import LONGEST_LOG
from jobs.toolkit.current import current_run, once, progress
from jobs.worker.finish import finish
from jobs.worker.logs import RunHandler
from tests.making import inside, make_due, make_run, make_schedule
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def test_it_gives_a_task_its_run_with_a_window_since_the_previous_due_moment():
    schedule = make_schedule("etl", cron={"minute": "0"})
    due_at = database_now().replace(minute=0, second=0, microsecond=0)
    run = make_run(schedule, State.RUNNING, due_at=due_at, attempt=2)
    with inside(run):
        found = current_run()
    assert (found.id, found.schedule, found.attempt, found.trigger) == (run.id, "etl", 2, "schedule")
    assert (found.window_start, found.window_end) == (due_at - HOUR, due_at)


def test_it_leaves_no_gap_between_two_windows_when_the_timing_changes():
    schedule = make_schedule(every=HOUR)
    due_at = make_due(schedule)
    make_run(schedule, State.SKIPPED, due_at=due_at - 30 * HOUR, last_due_at=due_at - 24 * HOUR, count=7)
    make_run(schedule, State.SUCCEEDED, due_at=due_at - HOUR / 2, trigger=Trigger.MANUAL)
    with inside(make_run(schedule, State.RUNNING, due_at=due_at)):
        assert current_run().window_start == due_at - 24 * HOUR


def test_it_computes_the_window_of_a_requested_run():
    schedule = make_schedule(cron={"minute": "0"})
    due_at = database_now().replace(minute=0, second=0, microsecond=0)
    with inside(make_run(schedule, State.RUNNING, due_at=due_at - 100 * HOUR, trigger=Trigger.BACKFILL)):
        assert current_run().window_start == due_at - 101 * HOUR
    yearly = make_schedule("leap", cron={"minute": "0", "hour": "0", "day_of_month": "29", "month_of_year": "2"})
    with inside(make_run(yearly, State.RUNNING, due_at=due_at.replace(year=2027), trigger=Trigger.MANUAL)):
        assert current_run().window_start == datetime(2024, 2, 29, tzinfo=UTC)
    with inside(make_run(None, State.RUNNING)):
        assert current_run().window_start is None


def test_it_keeps_the_digest_of_a_key_that_holds_a_secret(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    with inside(make_run(state=State.RUNNING)):
        assert once("charge canary-1234")
        assert not once("charge canary-1234")
        assert once("charge canary-12345")
    assert not Effect.objects.filter(key__contains="canary").exists()


def test_it_allows_an_effect_once_for_each_run_and_key():
    first, second = make_run(state=State.RUNNING), make_run(state=State.RUNNING)
    with inside(first):
        assert once("charge")
        assert not once("charge")
        assert once("another")
    with inside(second):
        assert once("charge")
    assert Effect.objects.count() == 3


def test_it_allows_an_effect_again_whose_transaction_was_rolled_back():
    with inside(make_run(state=State.RUNNING)):
        with transaction.atomic():
            assert once("charge")
            transaction.set_rollback(True)
        assert once("charge")


def test_it_does_nothing_outside_a_run():
    assert current_run() is None
    progress(1, 2, "x")
    assert once("x")
    assert once("x")
    assert not Effect.objects.exists()


def test_it_saves_the_last_progress_when_a_run_ends():
    run = make_run(make_schedule(), State.RUNNING)
    with inside(run) as execution:
        progress(3, message="x" * 1000)
        progress(-1, 5, "done")
    finish(execution, State.SUCCEEDED)
    run.refresh_from_db()
    assert (run.state, run.progress_done, run.progress_total, run.progress_message) == (State.SUCCEEDED, 0, 5, "done")


@pytest.mark.parametrize(("done", "total"), [(2**70, 2**70), (-(2**70), -1)])
def test_it_ends_a_run_that_reported_any_numbers(done, total):
    run = make_run(make_schedule(), State.RUNNING)
    with inside(run) as execution:
        progress(done, total)
        with pytest.raises(OverflowError):
            progress(math.inf)
    finish(execution, State.SUCCEEDED)
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED
    assert run.progress_done == run.progress_total == (2**63 - 1 if done > 0 else 0)


@pytest.mark.parametrize("statement", ["INSERT", "UPDATE"])
def test_it_saves_the_last_log_and_progress_when_the_database_is_back(statement):
    run = make_run(make_schedule(), State.RUNNING)
    with inside(run) as execution:
        logging.getLogger("tests").warning("last line")
        progress(5, 5)

    def unavailable(execute, sql, params, many, context):
        if sql.startswith(statement):
            raise OperationalError("the server closed the connection")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(unavailable), pytest.raises(OperationalError), transaction.atomic():
        finish(execution, State.SUCCEEDED)
    finish(execution, State.SUCCEEDED)
    run.refresh_from_db()
    assert (run.state, run.progress_done, run.progress_total) == (State.SUCCEEDED, 5, 5)
    assert RunLog.objects.get().text.endswith("last line\n")


def test_it_keeps_a_line_that_is_logged_while_earlier_lines_are_taken():
    class Nosy:
        def __str__(self):
            return f"second, {execution._take_lines()!r} was taken"

    handler = RunHandler()
    handler.setFormatter(logging.Formatter())
    with inside(make_run(state=State.RUNNING)) as execution:
        for words in ("first", Nosy()):
            handler.emit(logging.LogRecord("tests", logging.INFO, "", 0, "%s", (words,), None))
        assert execution._take_lines() == "second, 'first\\n' was taken\n"


@pytest.mark.django_db(transaction=True)
def test_it_keeps_the_first_lines_of_all_processes_of_an_attempt():
    run, together = make_run(), threading.Barrier(4, timeout=DEADLINE)

    def log(name):
        with closing(connection):
            for attempt in range(1, 11):
                together.wait()
                RunLog.append(run.id, attempt, f"{name}\n")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(log, "abcd"))
    assert [sorted(text.split()) for text in RunLog.objects.values_list("text", flat=True)] == [list("abcd")] * 10


def test_it_keeps_the_end_of_a_long_log():
    run = make_run()
    RunLog.append(run.id, 1, "first\n")
    RunLog.append(run.id, 1, "second\n")
    assert RunLog.objects.get().text == "first\nsecond\n"
    RunLog.append(run.id, 1, "x" * LONGEST_LOG + "end")
    assert RunLog.objects.get().text == "x" * (LONGEST_LOG - 3) + "end"
    RunLog.append(run.id, 2, "y" * LONGEST_LOG + "end")
    assert len(RunLog.objects.get(attempt=2).text) == LONGEST_LOG
