"""The basis of the other live tests: real servers, and real processes that use this test's data."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_client
import yaml
from django.db import connection

from jobs.local import embedded
from jobs.models import Node
from project.celery import app
from tests.servers import ROOT
from tests.waiting import DEADLINE

# A test run that starts a process and dies.
DOOMED = """
import os, signal
from tests.servers import Workspace
workspace = Workspace()
child = workspace.start(["sleep", "300"], workspace.folder / "log")
print(workspace.folder, child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

PASSWORD = "letters-and-digits-7"

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_uses_the_chosen_database(servers):
    with connection.cursor() as cursor:
        cursor.execute("SELECT sqlite_version()" if servers.database == "sqlite" else "SHOW server_version_num")
        (version,) = cursor.fetchone()
    assert connection.vendor == servers.database
    assert tuple(map(int, version.split("."))) >= ((3, 31) if servers.database == "sqlite" else (140_000,))
    assert Path(connection.settings_dict["NAME"]).name.startswith("test_")


def test_it_begins_with_an_empty_redis(redis, redis_server):
    assert redis.ping()
    assert redis.dbsize() == 0
    assert redis.info("server")["redis_version"] >= "6"
    redis.set("left", "behind")


def test_it_begins_with_an_empty_redis_after_another_test_wrote_to_it(redis):
    assert redis.dbsize() == 0


def test_it_reaches_a_live_worker_on_the_broker_of_the_test(processes):
    worker = processes.start_worker()
    answers = app.control.inspect(timeout=DEADLINE, limit=1).ping()
    assert list(answers.values()) == [{"ok": "pong"}]
    worker.stop()
    assert not worker.running
    assert not worker.broken


def test_it_distinguishes_a_process_that_ended_by_itself_from_a_killed_one(processes):
    worker = processes.start_worker("--concurrency=1")
    worker.signal(signal.SIGKILL)
    with pytest.raises(AssertionError, match=r"(?s)worker-0 ended by itself.* ready\."):
        processes.eventually(lambda: False)
    worker.kill()
    with pytest.raises(AssertionError, match=r"(?s)not within 0.1 s.* ready\."):
        processes.eventually(lambda: False, deadline=0.1)


def test_it_passes_the_health_checks_of_docker_compose_while_it_lives(processes, environment):
    worker = processes.start_worker("--hostname=celery@%h")
    beat = processes.start_beat()
    processes.eventually(lambda: Node.objects.live().count() == 2)
    processes.eventually(lambda: [ask_health(name, environment) for name in ("worker", "beat")] == [0, 0])
    worker.stop()
    assert ask_health("worker", environment) == 1
    processes.eventually(lambda: ask_health("beat", environment) == 0)
    beat.stop()
    assert ask_health("beat", environment) == 1


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def test_it_answers_only_clients_with_the_password_in_the_redis_of_docker_compose(servers, tmp_path, eventually):
    (tmp_path / "redis-server").symlink_to(embedded.server_binary())
    address = tmp_path / "it.sock"
    listening = f"redis-server - --port 0 --unixsocket {address} --dir {tmp_path}"
    *shell, script = compose()["services"]["redis"]["command"]
    assert shell == ["sh", "-c"]
    script = script.replace("$$", "$").replace("redis-server -", listening, 1)
    inside = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": PASSWORD}
    process = servers.workspace.start(
        ["env", *(f"{name}={value}" for name, value in inside.items()), *shell, script], tmp_path / "log"
    )
    eventually(address.exists)
    assert (
        "redis-server" in Path(f"/proc/{process.pid}/cmdline").read_text()
    )  # it replaces the shell, and so gets signals
    assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
    with pytest.raises(redis_client.AuthenticationError):
        redis_client.Redis(unix_socket_path=str(address)).ping()
    client = redis_client.Redis(unix_socket_path=str(address), password=PASSWORD)
    assert (client.config_get("appendonly"), client.config_get("save")) == ({"appendonly": "yes"}, {"save": ""})
    process.terminate()
    process.wait()
    servers.workspace.forget(process)


def test_it_gives_the_application_of_docker_compose_a_role_that_is_no_superuser(servers, tmp_path):
    if servers.database == "sqlite":
        pytest.skip("SQLite has no roles.")
    if not shutil.which("psql"):
        pytest.skip("psql is not installed.")
    name = f"punctual_{os.getpid()}"
    script = (
        (ROOT / compose()["configs"]["role"]["file"])
        .read_text()
        .replace("punctual", name)
        .replace("postgres", "$PGUSER", 1)
    )
    script = script.replace("--dbname=postgres", "")
    place = connection.settings_dict
    inside = {
        "PGHOST": place["HOST"],
        "PGPORT": str(place["PORT"]),
        "PGUSER": place["USER"],
        "PGDATABASE": place["NAME"],
    }
    inside |= {"PGPASSWORD": place["PASSWORD"], "PUNCTUAL_PASSWORD": PASSWORD}
    subprocess.run(["/bin/sh", "-ec", script], env={**os.environ, **inside}, check=True, capture_output=True)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = %s", [name])
            assert cursor.fetchone() == (False, False, False)
            cursor.execute("SELECT datdba::regrole::text FROM pg_database WHERE datname = %s", [name])
            assert cursor.fetchone() == (name,)
        with psycopg.connect(host=place["HOST"], port=place["PORT"], user=name, password=PASSWORD, dbname=name) as own:
            own.execute("CREATE TABLE it (a int)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                own.execute("SELECT pg_read_file('/etc/passwd')")
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")
            cursor.execute(f"DROP ROLE {name}")


def test_it_leaves_nothing_behind_when_the_test_run_is_killed(eventually):
    doomed = subprocess.run([sys.executable, "-c", DOOMED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert doomed.returncode == -signal.SIGKILL, doomed.stderr
    folder, child = doomed.stdout.split()
    eventually(lambda: not Path(folder).exists())
    state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False).stdout
    assert state.strip() in {"", "Z", "Zs"}


def ask_health(name: str, environment: dict[str, str]) -> int:
    """The exit status of the health check of a service, asked as in its container."""
    kind, program, *words = compose()["services"][name]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    return subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, check=False).returncode
