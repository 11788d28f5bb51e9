"""Readiness while servers hang: PostgreSQL and the broker are frozen, and probes are answered all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from django.test import Client

from jobs.models import Node
from jobs.monitoring import probes
from tests.waiting import eventually

OF_DATABASE = {"database", "migrations", "beat", "worker"}
HANGS = f"no answer within {probes.DEADLINE:g} s"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _always_anew(monkeypatch) -> None:
    monkeypatch.setattr(probes, "FRESH", 0)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The server accepts connections but does not answer."""
    server = psutil.Process(pid)
    try:
        server.suspend()
    except psutil.Error:
        pytest.skip("This run did not start the server, and cannot stop it.")
    try:
        yield
    finally:
        server.resume()


def working() -> set[str]:
    """The names of the checks that pass."""
    return {name for name, why in probes.not_ready().items() if not why}


@pytest.fixture
def live(redis) -> None:
    for kind in (Node.Kind.BEAT, Node.Kind.WORKER):
        Node.objects.create(name=f"{kind}@a", kind=kind, pid=1)
    eventually(lambda: working() == {*OF_DATABASE, "broker"})


def test_it_answers_while_the_broker_hangs_and_is_ready_once_it_is_back(live, redis):
    with frozen(redis.info("server")["process_id"]):
        eventually(lambda: working() == OF_DATABASE)
        answer = Client().get("/readyz")
        assert answer.status_code == 503
        assert f"broker failed: {HANGS}\n" in answer.content.decode()
        Node.objects.update(seen_at="2026-01-01T00:00Z")
        eventually(lambda: working() == {"database", "migrations"})
    Node.objects.update(seen_at="2126-01-01T00:00Z")
    eventually(lambda: working() == {*OF_DATABASE, "broker"})


def test_it_answers_while_the_database_hangs_and_is_ready_once_it_is_back(live, servers):
    if servers.binaries is None:
        pytest.skip("This run did not start a PostgreSQL, and cannot stop it.")
    file = servers.workspace.folder / "postgresql" / "data" / "postmaster.pid"
    with frozen(int(file.read_text().split()[0])):
        eventually(lambda: working() == {"broker"})
        answer = Client().get("/readyz?exclude=broker")
        assert answer.status_code == 503
        assert answer.content.decode() == "".join(
            f"{name} failed: {HANGS}\n" for name in ("database", "migrations", "beat", "worker")
        )
        assert Client().get("/livez").status_code == 200
    eventually(lambda: working() == {*OF_DATABASE, "broker"})


def test_it_finds_a_beat_and_a_worker_that_really_run_and_their_end(processes, eventually):
    beat = processes.start_beat()
    worker = processes.start_worker()
    eventually(lambda: {"beat", "worker"} <= working())
    worker.stop()
    eventually(lambda: OF_DATABASE - working() == {"worker"})
    beat.stop()
    eventually(lambda: OF_DATABASE - working() == {"beat", "worker"})
