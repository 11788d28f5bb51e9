"""A database of a former version can be migrated, and its runs continue."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.beat import rescue
from jobs.models import Policy, Run, State
from jobs.schedules import calendar
from tests.making import make_schedule

pytestmark = pytest.mark.django_db(transaction=True)


def migrate(name: str) -> Any:
    """Migrate the database to that migration; returns its models."""
    executor = MigrationExecutor(connection)
    executor.migrate([("jobs", name)])
    return MigrationExecutor(connection).loader.project_state([("jobs", name)]).apps


def latest() -> str:
    ((_, name),) = MigrationExecutor(connection).loader.graph.leaf_nodes("jobs")
    return name


@pytest.fixture
def former() -> Iterator[Any]:
    """The models of the version before runs knew their node, in a database of that version."""
    yield migrate("0005_jobs_worth_scheduling")
    migrate(latest())


WORKERS = {
    "celery@here (7)": ("celery@here", 7),
    "a (b) c (12)": ("a (b) c", 12),
    "w (1) (7)": ("w (1)", 7),
    "w (b)": ("w (b)", None),
    "": ("", None),
    "w": ("w", None),
}


def test_it_splits_the_worker_of_each_run_into_node_and_pid(former):
    now = timezone.now()
    run_model = former.get_model("jobs", "Run")
    due = {"due_at": now, "last_due_at": now, "schedule_name": "it", "task": "tests.nothing"}
    runs = {worker: run_model.objects.create(id=uuid4(), state="running", worker=worker, **due) for worker in WORKERS}
    for worker, run in runs.items():
        former.get_model("jobs", "Attempt").objects.create(run=run, number=1, outcome="failed", worker=worker)
        former.get_model("jobs", "Step").objects.create(id=str(run.id), run=run, attempt=1, task="t", worker=worker)
    migrate(latest())
    for worker, expected in WORKERS.items():
        run = Run.objects.get(id=runs[worker].id)
        rows = [run, run.attempts.get(), run.steps.get()]
        assert [(row.node, row.pid) for row in rows] == [expected] * 3
        assert [row.worker for row in rows] == [worker] * 3
    before = migrate("0005_jobs_worth_scheduling").get_model("jobs", "Run")
    assert {run.id: run.worker for run in before.objects.all()} == {run.id: worker for worker, run in runs.items()}


def test_it_continues_the_runs_of_a_former_version(former):
    now = timezone.now()
    due = {"due_at": now, "last_due_at": now, "schedule_name": "it", "task": "tests.nothing", "lease_until": now}
    run = former.get_model("jobs", "Run").objects.create(id=uuid4(), state="running", worker="celery@here (7)", **due)
    migrate(latest())
    assert rescue.rescue() == 1
    rescued = Run.objects.get(id=run.id)
    assert (rescued.state, rescued.attempt) == (State.WAITING, 2)
    assert rescued.attempts.get().worker == "celery@here (7)"


def test_it_reads_a_crontab_again_that_the_former_version_could_not_read():
    make_schedule(cron={"hour": "0, 6, 12, 18"})
    before = migrate("0012_deletes_of_runs_in_sql").get_model("jobs", "Policy").objects
    before.update(invalid_reason="Hour: cannot read ' 6'", next_due_at=None, timing="")
    migrate(latest())
    calendar.find_changes()
    policy = Policy.objects.get()
    assert (policy.invalid_reason, policy.next_due_at is None) == ("", False)


def test_it_runs_no_sql_for_new_help_texts_and_labels():
    call_command("sqlmigrate", "jobs", "0007_plain_words", stdout=(out := StringIO()))
    statements = [line for line in out.getvalue().splitlines() if line and not line.startswith("--")]
    assert statements == ["BEGIN;", "COMMIT;"]


@contextmanager
def unmigrated(monkeypatch, table: str) -> Iterator[None]:
    """As a migration of another app may find the database: `table` instead of ours."""
    monkeypatch.setattr(calendar, "_migrated", threading.Event())  # as in a process that has just started
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE jobs_policy RENAME TO elsewhere")
        if table:
            cursor.execute(table)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS jobs_policy")
            cursor.execute("ALTER TABLE elsewhere RENAME TO jobs_policy")


@pytest.mark.parametrize("table", ["", "CREATE TABLE jobs_policy (schedule_id integer PRIMARY KEY)"])
def test_it_lets_migrations_of_other_apps_save_schedules_before_its_own(monkeypatch, table):
    with unmigrated(monkeypatch, table), transaction.atomic():
        interval = IntervalSchedule.objects.create(every=1, period="hours")
        schedule = PeriodicTask.objects.create(name="early", task="tests.nothing", interval=interval)
        schedule.description = "saved again"
        schedule.save()
        interval.save()
    assert PeriodicTask.objects.get().description == "saved again"
    assert not Policy.objects.exists()
    calendar.find_changes()
    assert Policy.objects.get().next_due_at is not None
    assert calendar._migrated.is_set() is False
    schedule.save()
    assert calendar._migrated.is_set()
