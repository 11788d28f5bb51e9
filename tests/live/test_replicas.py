"""All of Punctual under a database router: beat, a worker, the admin and results, beside a replica that lags."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django_celery_beat.models import PeriodicTask

from jobs.models import Policy, Run, State
from tests.making import ends, lines, make_due, make_schedule, send
from tests.servers import ROOT

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("config.getoption('database') == 'sqlite'", reason="SQLite has no replicas."),
]


@pytest.fixture
def replicated(environment) -> Iterator[dict[str, str]]:
    """The variables of processes that write to this test's database and read from a copy that stays as it is now."""
    User.objects.create_superuser("ada")
    name = connection.settings_dict["NAME"]
    copy = f"{name}_copy"
    connection.close()  # a database that is copied must have no other connections
    with closing(connection.copy()) as server:
        server.settings_dict = {**connection.settings_dict, "NAME": "postgres"}
        with server.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
            yield {"DJANGO_SETTINGS_MODULE": "tests.live.replicated", "REPLICA": copy}
            cursor.execute(f"DROP DATABASE {copy} WITH (FORCE)")


@pytest.fixture
def visit(environment, replicated) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.live.visit"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment | replicated, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        yield process
        process.kill()


def test_it_works_beside_a_replica_that_lags(processes, eventually, replicated, visit, tmp_path):
    processes.start_worker(env=replicated)
    processes.start_beat(env=replicated)
    output, _ = visit.communicate()
    assert visit.returncode == 0, output
    path = tmp_path / "lines"
    due = make_schedule("due", task="tests.note", args=[str(path)])
    make_due(due)
    again = {"max_attempts": 2, "retry_delay": timedelta(0)}
    failing, retried = send("tests.fail", "no", **again), send("tests.retry", str(tmp_path / "retried"))
    chord = send("tests.workflow", "chord", str(tmp_path / "chord"))
    eventually(lambda: all(ends(run) for run in (failing, retried, chord)))
    assert (failing.state, failing.attempt) == (State.FAILED, 2)
    assert (retried.state, retried.attempt) == (State.SUCCEEDED, 3)
    assert chord.state == State.SUCCEEDED
    assert lines(tmp_path / "chord")
    eventually(lambda: Run.objects.filter(schedule=due, state=State.SUCCEEDED).exists())
    [loaded] = PeriodicTask.objects.bulk_create(
        [PeriodicTask(name="loaded", task="tests.nothing", interval=due.interval)]
    )
    eventually(lambda: Policy.objects.filter(schedule=loaded, next_due_at__isnull=False).exists())
