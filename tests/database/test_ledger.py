"""The state machine: which state may follow which, and no other change of a row is possible."""

import threading
from datetime import timedelta
from itertools import product

import pytest
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_revoked, task_success
from celery.worker.state import revoked
from django.db import DataError, IntegrityError, connection, transaction

from jobs.ledger import outcomes
from jobs.messages.arguments import find_task
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import ACTIVE, TERMINAL, TRANSITIONS, Attempt, Run, State, Trigger, bulk, database_now, new_run_id
from jobs.worker.finish import fail, retry
from tests.making import inside, make_run, make_schedule, only_where_rows_are_locked

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("before", "after"), [(a, b) for a, b in product(State, State) if a != b])
def test_it_moves_only_along_the_legal_transitions(before, after):
    run = make_run(state=before)
    this = Run.objects.filter(id=run.id)
    if after not in TRANSITIONS.get(before, ()):
        with pytest.raises(ValueError, match=f"never goes from {before} to {after}"):
            (this.conclude if after in TERMINAL else this.move)({before}, after)
    elif after in TERMINAL:
        assert this.conclude({before}, after) == [(run.id, None, after)]
    else:
        assert this.move({before}, after) == 1
    run.refresh_from_db()
    assert run.state == (after if after in TRANSITIONS.get(before, ()) else before)


def test_it_refuses_to_end_a_run_without_calling_the_listeners():
    with pytest.raises(ValueError, match=r"through ledger\.outcomes"):
        Run.objects.filter(id=make_run(state=State.RUNNING).id).move({State.RUNNING}, State.FAILED)


def test_it_treats_states_without_followers_as_terminal():
    assert {"succeeded", "failed", "cancelled", "lost", "expired", "skipped"} == TERMINAL
    assert not any(TERMINAL & set(TRANSITIONS.get(state, ())) for state in TERMINAL)


def test_it_leaves_a_run_alone_that_another_process_moved_first():
    run = make_run(state=State.CANCELLED)
    assert Run.objects.filter(id=run.id).move({State.WAITING, State.QUEUED}, State.RUNNING) == 0
    assert not Run.objects.start(run.id, 1, "celery@here", 1)


def test_it_records_the_end_and_clears_the_lease_when_a_run_ends():
    run = make_run(state=State.RUNNING)
    assert outcomes.finish(run.id, 1, State.SUCCEEDED)
    run.refresh_from_db()
    assert run.finished_at is not None
    assert run.lease_until is None


def test_it_refuses_a_run_that_is_over_without_finished_at():
    with pytest.raises(IntegrityError):
        make_run(state=State.FAILED, finished_at=None)


def test_it_refuses_a_second_run_of_one_due_moment():
    schedule = make_schedule()
    first = make_run(schedule)
    with pytest.raises(IntegrityError):
        make_run(schedule, due_at=first.due_at)


def test_it_starts_an_attempt_once_however_often_the_message_comes():
    run = make_run(state=State.QUEUED)
    assert [Run.objects.start(run.id, 1, "celery@here", 1) for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("attempt", [0, 1, 3])
def test_it_starts_only_the_current_attempt_of_a_run(attempt):
    run = make_run(state=State.QUEUED, attempt=2)
    assert not Run.objects.start(run.id, attempt, "celery@here", 1)


@pytest.mark.parametrize(("seconds", "starts"), [(-1, False), (60, True)])
def test_it_starts_no_expired_run(seconds, starts):
    run = make_run(state=State.QUEUED, expires_at=database_now() + timedelta(seconds=seconds))
    assert Run.objects.start(run.id, 1, "celery@here", 1) is starts


def test_it_sets_the_lease_by_the_database_clock():
    run = make_run(state=State.QUEUED)
    before = database_now()
    Run.objects.start(run.id, 1, "celery@here", 1)
    run.refresh_from_db()
    left = (run.lease_until - before).total_seconds()
    assert 59.9 <= left <= 65


def test_it_rejects_the_end_by_a_process_that_wakes_after_its_rescue():
    run = make_run(make_schedule(), state=State.RUNNING)
    assert run.return_to_waiting(Attempt.Outcome.LOST, timedelta(0), reason="lost")
    assert Run.objects.start(run.id, 2, "celery@there", 2)
    assert not outcomes.finish(run.id, 1, State.SUCCEEDED)
    run.refresh_from_db()
    assert (run.state, run.attempt, run.worker) == (State.RUNNING, 2, "celery@there (2)")
    assert run.attempts.get().outcome == Attempt.Outcome.FENCED


@pytest.mark.parametrize("max_attempts", [1, 3])
@pytest.mark.parametrize(
    "end",
    [
        lambda execution: fail(execution, ValueError("too late"), ""),
        lambda execution: retry(execution, [], {}, timedelta(0), {}),
    ],
)
def test_it_marks_a_lost_attempt_as_fenced_when_its_process_wakes_and_ends(end, max_attempts):
    run = make_run(make_schedule(policy={"max_attempts": max_attempts}), state=State.RUNNING)
    with inside(run) as execution:
        assert run.return_to_waiting(Attempt.Outcome.LOST, timedelta(0), reason="lost")
    end(execution)
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.WAITING, 2)
    assert run.attempts.get().outcome == Attempt.Outcome.FENCED


def succeed(run: Run, errors: list[Exception]) -> None:
    """End the run's body with a success, while the ledger's first statements raise these errors."""

    def disturb(execute, sql, params, many, context):
        if errors and sql.startswith("UPDATE"):
            raise errors.pop()
        return execute(sql, params, many, context)

    with inside(run), connection.execute_wrapper(disturb):
        task_success.send(find_task(run.task), result=None)
    run.refresh_from_db()


@pytest.mark.django_db(transaction=True)
def test_it_records_a_success_though_the_time_limit_comes_while_it_does_so():
    run, late = make_run(state=State.RUNNING), [SoftTimeLimitExceeded()]
    succeed(run, late)
    assert (run.state, late) == (State.SUCCEEDED, [])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("raised", "times"), [(DataError, 2), (ValueError, 1)])  # errors of databases: two tries
def test_it_fails_an_attempt_whose_end_cannot_be_recorded(raised, times):
    run = make_run(state=State.RUNNING)
    succeed(run, [raised("unlikely") for _ in range(times)])
    assert (run.state, run.error_class) == (State.FAILED, raised.__name__)
    assert "unlikely" in run.reason


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("state", "attempt", "left"),
    [
        (State.QUEUED, 1, State.CANCELLED),
        (State.RUNNING, 1, State.RUNNING),  # by another message of it
        (State.QUEUED, 2, State.QUEUED),
    ],
)
def test_it_cancels_only_an_unstarted_attempt_when_its_message_expires(state, attempt, left):
    run = make_run(state=state, attempt=attempt, expires_at=database_now())
    request = Context({"id": str(run.id), ATTEMPT_HEADER: 1})
    revoked.add(str(run.id))  # as Celery does before it sends the signal
    task_revoked.send(find_task(run.task), request=request, terminated=False, signum=None, expired=True)
    run.refresh_from_db()
    assert (run.state, run.cancel_reason) == (left, "")
    assert str(run.id) not in revoked


def test_it_records_an_attempt_that_did_not_end_its_run():
    run = make_run(state=State.RUNNING)
    error = {"reason": "ValueError: no", "error_text": "Traceback"}
    assert run.return_to_waiting(Attempt.Outcome.FAILED, timedelta(hours=1), **error)
    attempt = run.attempts.get()
    assert (attempt.number, attempt.outcome, attempt.reason) == (1, "failed", "ValueError: no")
    assert (attempt.worker, attempt.error_text) == ("celery@here (1)", "Traceback")
    run.refresh_from_db()
    assert (run.state, run.attempt, run.sends, run.worker, run.lease_until) == ("waiting", 2, 0, "", None)
    assert run.not_before > database_now() + timedelta(minutes=59)


def test_it_returns_a_run_to_waiting_once_per_attempt():
    run = make_run(state=State.RUNNING)
    tries = [run.return_to_waiting(Attempt.Outcome.LOST, timedelta(0), reason="lost") for _ in range(2)]
    assert tries == [True, False]
    assert run.attempts.count() == 1


def test_it_makes_ids_that_sort_by_time():
    ids = [new_run_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [run_id.int >> 80 for run_id in ids] == sorted(run_id.int >> 80 for run_id in ids)
    assert {(run_id.version, run_id.variant) for run_id in ids} == {(7, "specified in RFC 4122")}


@pytest.mark.django_db(transaction=True)
def test_it_starts_a_run_in_one_of_many_workers_with_the_same_message():
    run = make_run(state=State.QUEUED)
    barrier, wins = threading.Barrier(8), []

    def worker(number: int) -> None:
        barrier.wait()
        wins.append(Run.objects.start(run.id, 1, f"celery@{number}", 1))
        connection.close()

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]


def test_it_counts_a_run_as_active_until_it_is_over():
    for state in State:
        make_run(state=state)
    assert set(Run.objects.active().values_list("state", flat=True)) == set(ACTIVE)


def test_it_starts_no_further_attempt_of_a_run_that_was_asked_to_end():
    run = make_run(state=State.RUNNING)
    outcomes.cancel(Run.objects.filter(id=run.id), "by ada")
    assert not run.return_to_waiting(Attempt.Outcome.FAILED, timedelta(0), reason="bad")
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.RUNNING, 1)


@pytest.mark.parametrize("trigger", sorted(set(Trigger) - {Trigger.SCHEDULE}))
def test_it_keeps_one_scheduled_run_and_any_number_of_requested_runs_for_a_due_moment(trigger):
    schedule, now = make_schedule(), database_now()
    make_run(schedule, due_at=now)
    for _ in range(2):
        make_run(schedule, due_at=now, trigger=trigger)
    with pytest.raises(IntegrityError), transaction.atomic():
        make_run(schedule, due_at=now)
    assert bulk.insert(Run, [Run(schedule=schedule, due_at=now, last_due_at=now)]) == 0
    assert Run.objects.count() == 3


@only_where_rows_are_locked
@pytest.mark.parametrize(
    "find",
    [
        lambda runs: runs,
        lambda runs: runs.filter(trigger=Trigger.SCHEDULE, due_at__lt=database_now()),  # for the start of a window
        lambda runs: runs.exclude(trigger=Trigger.BACKFILL)[:1],  # for the list of schedules
        lambda runs: runs.filter(due_at__gte=database_now(), state__in=list(State)),  # for a backfill
        lambda runs: runs.order_by("-id"),  # for the list of runs
        lambda runs: runs.order_by().values("schedule"),  # as PostgreSQL itself, when a schedule is deleted
    ],
)
def test_it_finds_the_runs_of_a_schedule_by_one_index(find):
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("UPDATE pg_class SET reltuples = -1 WHERE relname = 'jobs_run'")  # as if never counted
        cursor.execute("DROP INDEX run_active, run_held")  # an empty table makes them as cheap as any
    assert "run_one_per_occurrence" in find(Run.objects.of_schedule(make_schedule().pk)).explain()
