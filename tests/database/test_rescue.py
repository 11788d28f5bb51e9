"""Runs whose process died, or that waited too long: found by the ledger alone, restarted or ended with the reason."""

from datetime import timedelta

import pytest

from jobs.beat.rescue import rescue
from jobs.models import Attempt, Policy, Run, State, database_now
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


def orphan(schedule=None, **columns) -> Run:
    return make_run(schedule, State.RUNNING, lease_until=database_now() - SECOND, **columns)


def test_it_restarts_a_lost_run_at_once():
    run = orphan(make_schedule())
    assert rescue() == 1
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.WAITING, 2)
    assert run.not_before <= database_now()
    assert run.reason.startswith("lost: celery@here (1) did not renew its lease by ")
    assert run.attempts.get().outcome == Attempt.Outcome.LOST


def test_it_leaves_a_run_alone_whose_lease_was_renewed():
    run = make_run(state=State.RUNNING)
    assert rescue() == 0
    run.refresh_from_db()
    assert run.state == State.RUNNING


def test_it_leaves_a_run_alone_whose_lease_is_renewed_during_the_rescue():
    run = orphan()
    orphans = Run.objects.orphaned(database_now())
    (found,) = orphans
    Run.objects.filter(id=run.id).update(lease_until=database_now() + timedelta(minutes=1))
    assert not found.return_to_waiting(Attempt.Outcome.LOST, timedelta(0), among=orphans, reason="lost")
    assert not Attempt.objects.exists()


def test_it_ends_a_run_as_lost_when_its_attempts_are_used_up():
    run = orphan(make_schedule(), attempt=3)
    rescue()
    run.refresh_from_db()
    assert run.state == State.LOST
    assert run.finished_at is not None


def test_it_ends_a_run_as_lost_if_its_policy_does_not_rerun_it():
    schedule = make_schedule()
    Policy.objects.update(rerun_if_lost=False)
    run = orphan(schedule)
    rescue()
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.LOST, 1)


def test_it_rescues_a_run_whose_schedule_was_deleted():
    run = orphan()
    rescue()
    run.refresh_from_db()
    assert run.state == State.WAITING


@pytest.mark.parametrize("state", [State.WAITING, State.QUEUED])
def test_it_expires_runs_that_waited_too_long(state):
    late = make_run(state=state, expires_at=database_now() - SECOND)
    patient = make_run(state=state, expires_at=database_now() + timedelta(hours=1))
    assert rescue() == 1
    late.refresh_from_db()
    patient.refresh_from_db()
    assert (late.state, patient.state) == (State.EXPIRED, state)
    assert late.reason


def test_it_says_what_kept_an_expired_run_from_starting():
    due = {"state": State.QUEUED, "expires_at": database_now() - SECOND}
    silent, refused = make_run(**due), make_run(**due, reason="celery@old knows no task it")
    assert rescue() == 2
    why = "expired: no worker started it in the time that its schedule allows"
    assert {run.reason for run in Run.objects.filter(id=silent.id)} == {why}
    assert Run.objects.get(id=refused.id).reason == f"{why}; celery@old knows no task it"
