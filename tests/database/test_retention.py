"""Deleting old runs changes none of the ledger's answers."""

import io
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import connection
from django.db.models.signals import post_delete, pre_delete
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask
from django_celery_results.models import TaskResult

from jobs.beat import claim
from jobs.ledger import backfills, retention
from jobs.models import (
    TERMINAL,
    Alert,
    Attempt,
    Backfill,
    Channel,
    Condition,
    Effect,
    Notice,
    Policy,
    Run,
    RunLog,
    Silence,
    State,
    Step,
    StoredFile,
    bulk,
    database_now,
)
from jobs.tasks.cleanup import cleanup
from jobs.toolkit import files
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


def make_old(schedule: PeriodicTask | None, state: State, days: float, **columns) -> Run:
    then = database_now() - days * DAY
    over = {"finished_at": then} if state in TERMINAL else {}
    return make_run(schedule, state, **{"due_at": then, "last_due_at": then, **over, **columns})


def left() -> set[Run]:
    return set(Run.objects.all())


def test_it_deletes_runs_of_each_state_after_its_own_time():
    schedule = make_schedule()
    kept = {make_old(schedule, State.SUCCEEDED, 29), make_old(schedule, State.FAILED, 179)}
    make_old(schedule, State.SUCCEEDED, 31)
    make_old(schedule, State.SKIPPED, 181)
    make_old(None, State.LOST, 400)
    kept |= {make_old(None, state, 400) for state in (State.WAITING, State.QUEUED, State.RUNNING)}
    assert cleanup() == {"succeeded": 1, "others": 2, "files": 0}
    assert left() == kept
    assert cleanup() == {"succeeded": 0, "others": 0, "files": 0}


def test_it_keeps_the_latest_run_of_each_schedule_however_old():
    yearly, daily = make_schedule("yearly"), make_schedule("daily")
    kept = {make_old(yearly, State.SUCCEEDED, 300), make_old(daily, State.SUCCEEDED, 1)}
    make_old(yearly, State.SUCCEEDED, 600)
    make_old(daily, State.SUCCEEDED, 100)
    cleanup()
    assert left() == kept


def test_it_deletes_all_rows_that_belong_to_a_run():
    run, repeated = make_old(None, State.FAILED, 400), make_run()
    Run.objects.filter(id=repeated.id).update(parent=run)
    Attempt.objects.create(run=run, number=1, outcome=Attempt.Outcome.FAILED)
    Effect.objects.create(run=run, key="x")
    RunLog.append(run.id, 1, "x")
    Step.objects.create(id="x", run=run, attempt=1, task="x", state=Step.State.FAILED)
    cleanup()
    assert [model.objects.exists() for model in (Attempt, Effect, RunLog, Step)] == [False] * 4
    repeated.refresh_from_db()
    assert repeated.parent is None


@pytest.mark.parametrize("signal", [pre_delete, post_delete])
def test_it_leaves_the_deletion_to_django_where_code_of_a_project_hears_of_it(signal):
    deleted, run = [], make_old(None, State.FAILED, 400)

    def hear(instance: Run, **_: object) -> None:
        deleted.append(instance.pk)

    signal.connect(hear, sender=Run)
    try:
        cleanup()
    finally:
        signal.disconnect(hear, sender=Run)
    assert deleted == [run.id]


def test_it_leaves_the_deletion_to_django_where_rows_of_another_app_refer_to_them():
    user = User.objects.create_user("ada")
    LogEntry.objects.create(user=user, action_flag=CHANGE, object_repr="x")
    bulk.delete(User, [user.pk])
    assert not User.objects.exists()
    assert not LogEntry.objects.exists()


def test_it_backfills_no_moment_whose_run_was_deleted():
    schedule = make_schedule(cron={"minute": "0", "hour": "4"})
    today = database_now().replace(hour=4, minute=0, second=0, microsecond=0) - DAY
    for days in (0, 50, 60):
        make_run(schedule, State.SUCCEEDED, due_at=today - days * DAY, last_due_at=today - days * DAY)
    Run.objects.exclude(due_at=today).update(finished_at=database_now() - 50 * DAY)
    cleanup()
    assert Policy.objects.get().forgotten_until == today - 50 * DAY
    request = {"schedule": schedule, "start": today - 52 * DAY, "end": today - 47 * DAY, "actor": "ada"}
    assert backfills.preview(Backfill(**request)).moments == [today - 49 * DAY, today - 48 * DAY]
    assert len(backfills.preview(Backfill(which="all", **request)).moments) == 5


def test_it_claims_no_moment_again_when_its_run_was_deleted():
    schedule = make_schedule(every=timedelta(hours=1))
    make_due(schedule, ago=timedelta(seconds=1))
    assert len(list(claim.claim_due())) == 1
    Run.objects.all().delete()
    assert list(claim.claim_due()) == []


def test_it_begins_a_new_stretch_when_the_row_of_the_old_one_was_deleted():
    schedule = make_schedule(every=timedelta(hours=1), headers="[]")
    for _ in range(2):
        make_due(schedule)
        list(claim.claim_due())
    Run.objects.all().delete()
    make_due(schedule)
    list(claim.claim_due())
    assert Run.objects.get().count == 1


def test_it_deletes_in_batches(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 3)
    for number in range(7):
        make_old(None, State.SUCCEEDED, 100 + number)
    assert list(retention.delete_ended(database_now() - 30 * DAY, {State.SUCCEEDED})) == [3, 3, 1]


def test_it_finds_each_batch_by_the_index_behind_the_one_before(monkeypatch):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite says nothing of the part of an index that it reads.")
    monkeypatch.setattr(retention, "BATCH", 1)
    for days in (500, 400):
        make_old(None, State.FAILED, days)
    with CaptureQueriesContext(connection) as queries:
        cleanup()
    later = next(each["sql"] for each in queries if " OR " in each["sql"] and "ORDER BY" in each["sql"])
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {later}")
        plan = [line for (line,) in cursor.fetchall()]
    assert any("Index Cond" in line and "finished_at >=" in line for line in plan)


def test_it_writes_each_policy_once_in_a_pass(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    for name in ("one", "two", "three"):
        schedule = make_schedule(name)
        for days in (1, 40, 41, 42, 43):
            make_old(schedule, State.SUCCEEDED, days)
    with CaptureQueriesContext(connection) as queries:
        assert list(retention.delete_ended(database_now() - 30 * DAY, {State.SUCCEEDED})) == [2] * 6
    assert sum('UPDATE "jobs_policy"' in query["sql"] for query in queries) == 2  # of two policies and of one
    assert Policy.objects.filter(forgotten_until__gt=database_now() - 41 * DAY).count() == 3
    with CaptureQueriesContext(connection) as queries:
        assert list(retention.delete_ended(database_now() - 30 * DAY, {State.SUCCEEDED})) == []
    assert not any('UPDATE "jobs_policy"' in query["sql"] for query in queries)


def test_it_deletes_nothing_beyond_what_a_policy_forgets_when_runs_come_meanwhile(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 1)
    schedule = make_schedule()
    latest, middle, _ = (make_old(schedule, State.SUCCEEDED, days) for days in (40, 45, 50))
    batches = retention.delete_ended(database_now() - 30 * DAY, {State.SUCCEEDED})
    assert next(batches) == 1
    new = make_old(schedule, State.SUCCEEDED, 0)
    assert (list(batches), left(), Policy.objects.get().forgotten_until) == ([1], {latest, new}, middle.due_at)
    cleanup()
    assert (left(), Policy.objects.get().forgotten_until) == ({new}, latest.due_at)


def test_it_keeps_the_runs_of_a_schedule_until_it_has_a_policy():
    schedule = make_schedule()
    runs = {make_old(schedule, State.SUCCEEDED, days) for days in (40, 50)}
    Policy.objects.all().delete()
    cleanup()
    assert left() == runs


@pytest.mark.parametrize("days", [0, -1, True, 1.5, "30", None, 10**9])
def test_it_refuses_invalid_numbers_of_days(days):
    make_old(None, State.SUCCEEDED, 400)
    with pytest.raises(ValueError, match="other_days\n  Input should be"):
        cleanup(other_days=days)
    assert Run.objects.exists()


def test_it_refuses_to_delete_unfinished_runs():
    with pytest.raises(ValueError, match="Only runs that have ended"):
        next(retention.delete_ended(database_now(), {State.RUNNING}))


def test_it_cleans_up_files_sessions_and_results_and_leaves_backups(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    settings.CELERY_RESULT_EXPIRES = 3600
    for kind in StoredFile.Kind:
        files.keep(kind, io.BytesIO(b"x"), kind)
    StoredFile.objects.update(created_at=database_now() - 31 * DAY)
    young = files.keep("young", io.BytesIO(b"x"), StoredFile.Kind.UPLOAD)
    Session.objects.create(session_key="old", expire_date=database_now() - DAY)
    Session.objects.create(session_key="young", expire_date=database_now() + DAY)
    for name in ("old", "young"):
        TaskResult.objects.create(task_id=name)
    TaskResult.objects.filter(task_id="old").update(date_done=database_now() - DAY)
    assert cleanup()["files"] == len(StoredFile.Kind) - 1
    assert {row.name for row in StoredFile.objects.all()} == {young.name, "backup"}
    assert [session.session_key for session in Session.objects.all()] == ["young"]
    assert [result.task_id for result in TaskResult.objects.all()] == ["young"]


def test_it_deletes_old_alerts_with_their_notices_and_silences_that_are_over():
    now = database_now()
    channel = Channel.objects.create(name="mail")
    for days in (1, 200):
        at = now - timedelta(days=days)
        alert = Alert.objects.create(subject="it", name="it", before="ok", health="late", at=at, since=at)
        Notice.objects.create(channel=channel, alert=alert, not_before=at)
        Notice.objects.create(channel=channel, run=uuid4(), event="start", not_before=at, done_at=at)
        Silence.objects.create(starts_at=at - timedelta(hours=1), ends_at=at)
    retention.delete_alerts(now - timedelta(days=180), now - timedelta(days=7))
    assert [(alert.at, alert.notices.count()) for alert in Alert.objects.all()] == [(now - timedelta(days=1), 1)]
    assert (Notice.objects.count(), Silence.objects.count()) == (2, 1)


def test_it_keeps_what_tells_whom_a_recovery_concerns():
    """A channel is told that a subject is well again only if it was told that it was ill."""
    now = database_now()
    for subject in ("ill", "well"):
        old = {"at": now - timedelta(days=200), "since": now - timedelta(days=200)}
        Alert.objects.create(subject=subject, name="it", before="ok", health="late", **old)
    Condition.objects.create(subject="ill", health="late", since=now)
    retention.delete_alerts(now - timedelta(days=180), now)
    assert [alert.subject for alert in Alert.objects.all()] == ["ill"]
