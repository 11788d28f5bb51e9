"""Readiness by real rows and servers: which checks pass, what `manage.py probe` says, and what it exits with."""

import socket
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client

from jobs.models import Node, database_now
from jobs.monitoring import nodes, probes
from tests.waiting import DEADLINE
from tests.web import serving

HERE = socket.gethostname()
SILENT = "none has sent a heartbeat in the last minute"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _patient(monkeypatch) -> None:
    monkeypatch.setattr(probes, "DEADLINE", DEADLINE)
    monkeypatch.setattr(probes, "FRESH", 0)


def add_node(name: str, kind: Node.Kind, **columns) -> None:
    Node.objects.create(name=name, kind=kind, pid=1, **columns)


def probe(*words: str) -> str:
    """What the command prints. Raises CommandError."""
    out = StringIO()
    call_command("probe", *words, stdout=out)
    return out.getvalue()


def test_it_is_ready_once_a_beat_and_a_worker_are_live(redis):
    assert probes.not_ready() == {"database": "", "migrations": "", "broker": "", "beat": SILENT, "worker": SILENT}
    add_node("beat@a (1)", Node.Kind.BEAT)
    add_node("celery@a", Node.Kind.WORKER)
    assert not any(probes.not_ready().values())
    assert Client().get("/readyz").status_code == 200
    assert probe("ready") == "database ok\nmigrations ok\nbroker ok\nbeat ok\nworker ok\n"


@pytest.mark.parametrize(
    "columns",
    [
        {"seen_at": database_now},
        {"stopped_at": lambda: database_now() + timedelta(minutes=2)},
        {"problem": lambda: "It belongs to another installation."},
        {"kind": lambda: Node.Kind.STRANGER},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_it_counts_no_silent_stopped_or_refused_node_and_no_stranger(redis, columns):
    values = {name: value() for name, value in columns.items()}
    values |= {name: values[name] - timedelta(minutes=2) for name in ("seen_at", "stopped_at") if name in values}
    for kind in (Node.Kind.BEAT, Node.Kind.WORKER):
        add_node(f"{kind}@a", **{"kind": kind, **values})
    assert probes.not_ready(["database", "migrations", "broker"]) == {"beat": SILENT, "worker": SILENT}


def test_it_is_not_ready_while_a_migration_is_pending(redis):
    recorder = MigrationRecorder(connection)
    app, name = max(key for key in recorder.applied_migrations() if key[0] == "jobs")
    recorder.record_unapplied(app, name)
    try:
        answer = Client().get("/readyz?exclude=beat&exclude=worker")
        assert (answer.status_code, answer.content) == (
            503,
            b"database ok\nmigrations failed: some are not applied: run manage.py migrate\nbroker ok\n",
        )
        with pytest.raises(CommandError, match=r"^Not ready: migrations\.$") as raised:
            probe("ready", "--exclude=beat", "--exclude=worker")
        assert raised.value.returncode == 1
    finally:
        recorder.record_applied(app, name)
    assert probe("ready", "--exclude=beat", "--exclude=worker").count("ok\n") == 3


def test_it_refuses_an_unknown_check():
    with pytest.raises(CommandError, match="There is no check workers: exclude some of database, migrations,"):
        probe("ready", "--exclude=workers")


def test_it_knows_the_beat_and_the_worker_of_its_machine():
    add_node("beat@elsewhere (1)", Node.Kind.BEAT)
    add_node("celery@elsewhere", Node.Kind.WORKER)
    for part in ("beat", "worker"):
        with pytest.raises(CommandError, match=rf"^Not alive: no heartbeat of a {part} of .+ in the last minute\.$"):
            probe(part)
    assert probe("worker", "--node=celery@elsewhere") == "ok\n"
    add_node(nodes.beat_name(), Node.Kind.BEAT)
    add_node(f"mail@{HERE}", Node.Kind.WORKER, problem="It belongs to another installation.")  # no restart helps
    assert (probe("beat"), probe("worker")) == ("ok\n", "ok\n")
    Node.objects.update(seen_at=database_now() - timedelta(minutes=2))
    for part in ("beat", "worker"):
        with pytest.raises(CommandError):
            probe(part)


def test_it_asks_the_web_process_of_its_machine():
    with serving({"/livez": b"ok\n"}) as server:
        port = str(server.server_address[1])
        assert probe("live", "--port", port) == "ok\n"
        assert server.asked == ["GET /livez"]
        server.status = 404
        with pytest.raises(CommandError, match=f"The process on port {port} answered 404 instead of 200"):
            probe("live", "--port", port)
    with pytest.raises(CommandError, match=f"^No web process answers on port {port}"):
        probe("live", "--port", port)
