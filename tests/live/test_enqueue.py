"""A job that is started in a transaction: `run_job` beside `delay()` and `delay_on_commit()`, on real processes."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import current_app
from django.contrib.auth.models import Group
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.models.signals import post_save
from django.http import HttpRequest, JsonResponse
from django.urls import path as url_path

from jobs.ledger import sending
from jobs.models import Run, State, database_now
from jobs.toolkit import RunOptions, run_job
from tests.making import ends, lines
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing_pair")]

REQUESTS = 200
HOUR = timedelta(hours=1)

# A process that dies between its commit and all that would follow it.
DOOMED = """
import os, signal, sys
import django
django.setup()
from celery import current_app
from django.db import transaction
from jobs.toolkit import run_job
path, how = sys.argv[1:]
current_app.loader.import_default_modules()
with transaction.atomic():
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    if how == "run_job":
        run_job("tests.note", path=path)
    else:
        current_app.tasks["tests.note"].delay_on_commit(path)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


class UndoneError(Exception):
    """Rolls a transaction back."""


@contextmanager
def undone(using: str = "default") -> Iterator[None]:
    """A transaction or savepoint that is rolled back."""
    with suppress(UndoneError), transaction.atomic(using):
        yield
        raise UndoneError


def write_and(start: Callable[[str], Any], name: str, before_commit: Callable[[], object] = lambda: None) -> Any:
    """A request: it writes a row, starts a job for the row, writes some more, and commits."""
    with transaction.atomic():
        Group.objects.create(name=name)
        started = start(name)
        Group.objects.bulk_create([Group(name=f"{name}, part {number}") for number in range(100)])
        before_commit()
    return started


# --- The row and its job --------------------------------------------------------------------------------------------


def test_it_starts_no_job_before_its_row_exists_where_delay_does(eventually, path, tmp_path):
    delayed, plain = tmp_path / "delayed", current_app.tasks["tests.find"]
    write_and(lambda name: plain.delay(str(delayed), name), "first", lambda: eventually(lambda: lines(delayed)))
    for number in range(1, REQUESTS):
        write_and(lambda name: plain.delay(str(delayed), name), f"delayed {number}")
    eventually(lambda: len(lines(delayed)) == REQUESTS)
    assert Counter(lines(delayed))["missing"] > 0

    for number in range(REQUESTS):
        write_and(lambda name: run_job("tests.find", path=str(path), name=name), f"run {number}")
    eventually(lambda: len(lines(path)) == REQUESTS)
    assert Counter(lines(path)) == {"found": REQUESTS}


def test_it_starts_each_job_of_many_threads_once(eventually, path):
    def request(number: int) -> Any:
        try:
            return write_and(lambda name: run_job("tests.note", path=str(path)), f"thread {number}").id
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(request, range(40)))
    eventually(lambda: len(lines(path)) >= 40)
    eventually(lambda: not Run.objects.active().filter(id__in=ids).exists())
    assert sorted(lines(path)) == sorted(map(str, ids))


def test_it_starts_no_job_of_a_transaction_that_is_rolled_back(eventually, path):
    before = Run.objects.count()
    with undone():
        run_job("tests.note", path=str(path))
    assert Run.objects.count() == before
    after = run_job("tests.note", path=str(path))
    eventually(lambda: ends(after))
    assert lines(path) == [str(after.id)]


def test_it_starts_no_job_of_a_savepoint_that_is_rolled_back(eventually, path):
    with transaction.atomic():
        kept = run_job("tests.note", path=str(path))
        with undone():
            dropped = run_job("tests.note", path=str(path))
    eventually(lambda: ends(kept))
    assert lines(path) == [str(kept.id)]
    assert not Run.objects.filter(id=dropped.id).exists()


def test_it_keeps_a_run_whatever_becomes_of_a_transaction_on_another_database(eventually, path, monkeypatch, tmp_path):
    other = {**connections["default"].settings_dict, "ENGINE": "django.db.backends.sqlite3"}
    other |= {"NAME": str(tmp_path / "other.sqlite3"), "OPTIONS": {}}
    monkeypatch.setitem(connections.databases, "other", other)
    try:
        with undone("other"):
            run = run_job("tests.note", path=str(path))
    finally:
        connections["other"].close()
        del connections["other"]
    eventually(lambda: ends(run))
    assert lines(path) == [str(run.id)]


# --- Callers --------------------------------------------------------------------------------------------------------


def test_it_starts_a_job_from_a_receiver_of_a_signal(eventually, path):
    def receive(instance: Group, created: bool, **_: Any) -> None:
        if created and instance.name.startswith("signalled"):
            run_job("tests.find", path=str(path), name=instance.name)

    post_save.connect(receive, sender=Group)
    try:
        with undone():
            Group.objects.create(name="signalled and undone")
        write_and(lambda _: None, "signalled")
    finally:
        post_save.disconnect(receive, sender=Group)
    eventually(lambda: lines(path))
    assert Run.objects.filter(task="tests.find", kwargs__path=str(path)).count() == 1
    assert lines(path) == ["found"]


@pytest.mark.parametrize("fail", [False, True])
def test_it_starts_a_job_from_a_job_even_if_that_fails_afterwards(eventually, path, fail):
    first = run_job("tests.pass_on", path=str(path), name=f"passed on, then fails: {fail}", fail=fail)
    eventually(lambda: lines(path))
    eventually(lambda: ends(first))
    assert first.state == (State.FAILED if fail else State.SUCCEEDED)
    assert lines(path) == ["found"]


def test_it_starts_a_job_from_an_async_view(eventually, path, settings, async_client):
    async def place(request: HttpRequest) -> JsonResponse:
        run = await sync_to_async(write_and)(
            lambda name: run_job("tests.find", path=str(path), name=name), "written in an async view"
        )
        return JsonResponse({"run": str(run.id)})

    async def place_directly(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"run": str(run_job("tests.note", path=str(path)).id)})

    settings.ROOT_URLCONF = type(sys)("urls")
    settings.ROOT_URLCONF.urlpatterns = [url_path("place", place), url_path("directly", place_directly)]
    answer = async_to_sync(async_client.get)("/place")
    run = Run.objects.get(id=answer.json()["run"])
    eventually(lambda: ends(run))
    assert lines(path) == ["found"]
    with pytest.raises(SynchronousOnlyOperation):
        async_to_sync(async_client.get)("/directly")


# --- Options --------------------------------------------------------------------------------------------------------


def test_it_makes_one_run_for_a_key_also_of_two_requests_at_once(eventually, path):
    barrier = threading.Barrier(2)

    def request(_: int) -> Any:
        barrier.wait(DEADLINE)
        try:
            with transaction.atomic():
                return run_job("tests.note", RunOptions(key="order 7"), path=str(path)).id
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(request, range(2))
    assert first == second == run_job("tests.note", RunOptions(key="order 7"), path=str(path)).id
    run = Run.objects.get(key="order 7")
    eventually(lambda: ends(run))
    assert lines(path) == [str(run.id)]


def test_it_lets_a_later_run_wait_in_the_ledger_and_not_in_the_broker(eventually, path, redis_server):
    now = database_now()
    later = [
        run_job("tests.note", options, path=str(path))
        for options in (RunOptions(delay=HOUR), RunOptions(at=now + HOUR), RunOptions(delay=HOUR, priority=3))
    ]
    sooner = run_job("tests.note", RunOptions(delay=timedelta(seconds=1)), path=str(path))
    assert sending.wait(DEADLINE)
    eventually(lambda: ends(sooner))
    assert sooner.started_at >= sooner.due_at >= now + timedelta(seconds=1)
    assert lines(path) == [str(sooner.id)]
    for run in later:
        assert not ends(run)
        assert (run.state, run.sends) == (State.WAITING, 0)
        assert now + HOUR <= run.not_before <= database_now() + HOUR
    assert not redis_server.exists("celery", "celery\x06\x163", "unacked")


def test_it_sends_a_run_to_its_queue_with_its_priority(eventually, path, redis_server):
    run = run_job("tests.note", RunOptions(queue="letters", priority=6), path=str(path))
    eventually(lambda: redis_server.keys("letters*"))
    assert not ends(run)
    assert (run.queue, run.priority) == ("letters", 6)
    assert redis_server.keys("letters*") == [b"letters\x06\x166"]


# --- A process that dies -----------------------------------------------------------------------------------


def test_it_runs_a_job_whose_process_was_killed_right_after_the_commit(standing, eventually, path, tmp_path):
    forgotten = tmp_path / "forgotten"
    for how, file in (("delay_on_commit", forgotten), ("run_job", path)):
        command = [sys.executable, "-c", DOOMED, str(file), how]
        assert subprocess.run(command, cwd=ROOT, env=standing.environment, check=False, timeout=DEADLINE).returncode < 0
    (run,) = Run.objects.filter(kwargs__path=str(path))
    eventually(lambda: ends(run))  # beat sends it
    assert lines(path) == [str(run.id)]
    assert lines(forgotten) == []
