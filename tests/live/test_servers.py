"""The basis of the other live tests: real servers, and real processes that use this test's data."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from django.db import connection

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


def test_it_answers_the_health_checks_of_docker_compose_while_it_lives(processes, environment):
    worker = processes.start_worker("--hostname=celery@%h")
    beat = processes.start_beat("--enable-remote-control")
    processes.eventually(lambda: "beat pidbox: Connected" in beat.log)
    assert [check.wait(DEADLINE) for check in ask_health(environment, timeout=60)] == [0, 0]
    worker.kill()
    beat.kill()
    assert all(check.wait(DEADLINE) != 0 for check in ask_health(environment, timeout=1))


def test_it_leaves_nothing_behind_when_the_test_run_is_killed(eventually):
    doomed = subprocess.run([sys.executable, "-c", DOOMED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert doomed.returncode == -signal.SIGKILL, doomed.stderr
    folder, child = doomed.stdout.split()
    eventually(lambda: not Path(folder).exists())
    state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False).stdout
    assert state.strip() in {"", "Z", "Zs"}


def ask_health(environment: dict[str, str], timeout: int) -> list[subprocess.Popen[bytes]]:
    """The health checks of worker and beat, side by side, as in their containers but with this timeout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    inside = {**environment, "HOSTNAME": socket.gethostname(), "PATH": path}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    commands = [services[name]["healthcheck"]["test"][1] for name in ("worker", "beat")]
    return [
        subprocess.Popen(
            ["/bin/sh", "-c", command.replace("$$", "$").replace("--timeout 5", f"--timeout {timeout}")],
            env=inside,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
