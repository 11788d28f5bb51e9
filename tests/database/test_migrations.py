"""A database of a former version can be migrated, and its runs continue."""

from collections.abc import Iterator
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from jobs.beat import rescue
from jobs.models import Run, State

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


def test_it_runs_no_sql_for_new_help_texts_and_labels():
    call_command("sqlmigrate", "jobs", "0007_plain_words", stdout=(out := StringIO()))
    statements = [line for line in out.getvalue().splitlines() if line and not line.startswith("--")]
    assert statements == ["BEGIN;", "COMMIT;"]
