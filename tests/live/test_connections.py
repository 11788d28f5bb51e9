"""Database connections of live workers: clean, alive and few, for runs and for plain tasks, in every pool."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from jobs.messages.arguments import find_task
from jobs.models import State
from tests.app.sessions import look
from tests.making import ends, send

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = {"DJANGO_SETTINGS_MODULE": "tests.live.settings"}
NAMED = {"PGAPPNAME": "worker"}
CONNECTIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'worker'"


@pytest.fixture
def look_as_plain_task(eventually, tmp_path) -> Callable[..., list[Any]]:
    def look_as_plain_task(alias: str = "default") -> list[Any]:
        task = find_task("tests.look").delay(str(tmp_path), alias)
        return eventually(lambda: _read(tmp_path / task.id))

    return look_as_plain_task


def _read(path: Path) -> list[Any]:
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size else []


def _connections() -> set[int]:
    with connection.cursor() as cursor:
        cursor.execute(CONNECTIONS)
        return {pid for (pid,) in cursor.fetchall()}


def _terminate(pids: set[int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid, 60000) FROM unnest(%s) AS each(pid)", [list(pids)])


def test_it_gives_every_job_a_clean_session_on_one_connection(processes, eventually, look_as_plain_task, tmp_path):
    processes.start_worker("--concurrency=1")
    clean, first = look_as_plain_task()
    for how in ("setting", "temporary table", "advisory lock"):
        find_task("tests.spoil").delay(how)
        assert look_as_plain_task() == [clean, first]
        spoiling, looking = send("tests.spoil", how), send("tests.look", str(tmp_path))
        eventually(lambda: ends(spoiling) and ends(looking))  # noqa: B023 - called at once
        assert {spoiling.state, looking.state} == {State.SUCCEEDED}
        assert _read(tmp_path / str(looking.id)) == [clean, first]


def test_it_executes_plain_tasks_after_the_database_has_closed_its_connections(processes, look_as_plain_task):
    processes.start_worker("--concurrency=1", env=SECOND | NAMED)
    clean = look(connection)
    for _ in range(2):
        assert look_as_plain_task("second")[0] == clean
        assert look_as_plain_task("default")[0] == clean
        _terminate(_connections())


def test_it_leaves_no_connections_behind_in_a_pool_of_threads(processes, eventually, look_as_plain_task, tmp_path):
    processes.start_worker("--pool=threads", "--concurrency=20", env=NAMED)
    few = len(_connections())
    runs = [send("tests.look", str(tmp_path)) for _ in range(40)]
    eventually(lambda: all(ends(run) for run in runs))
    assert {run.state for run in runs} == {State.SUCCEEDED}
    eventually(lambda: len(_connections()) <= few)


@pytest.mark.parametrize("pool", [["--concurrency=2"], ["--pool=threads", "--concurrency=8"], ["--pool=solo"]])
def test_it_takes_turns_with_the_connections_of_a_psycopg_pool(processes, eventually, tmp_path, pool):
    processes.start_worker(*pool, env={"DJANGO_SETTINGS_MODULE": "tests.live.pooled"})
    spoiling = [send("tests.spoil", how) for how in ("setting", "transaction", "advisory lock")]
    eventually(lambda: all(ends(run) for run in spoiling))
    looking = [send("tests.look", str(tmp_path)) for _ in range(40)]
    eventually(lambda: all(ends(run) for run in looking))
    assert {run.state for run in spoiling + looking} == {State.SUCCEEDED}
    assert [_read(tmp_path / str(run.id))[0] for run in looking] == [look(connection)] * len(looking)
