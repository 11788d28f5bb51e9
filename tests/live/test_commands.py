"""`manage.py runs` beside a live worker and a live beat: it follows a run, waits for it, and leaves it alone."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from django.db import connection

from jobs.models import Run, State
from tests.database.test_commands import call
from tests.live.conftest import Processes
from tests.making import ends, make_schedule, run_now
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing_pair")]


@pytest.fixture
def told(standing, tmp_path: Path) -> Run:
    """A run with two attempts, each of which ends once the test says so."""
    policy = {"max_attempts": 2, "retry_delay": "0"}
    name = f"narrate {tmp_path.name}"
    return run_now(make_schedule(name, task="tests.narrate", args=[str(tmp_path / "go")], policy=policy))


class Tail:
    """A `runs tail` in a process of its own, whose output goes to files."""

    def __init__(self, processes: Processes, run: Run, folder: Path) -> None:
        self._out, self._err = folder / "out", folder / "err"
        line = [sys.executable, "manage.py", "runs", "tail", str(run.id)]
        with self._out.open("w") as out, self._err.open("w") as err:
            environment = {**processes.environment, "PGAPPNAME": "tail"}
            self.child = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=out, stderr=err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()


@contextmanager
def closed_database() -> Iterator[None]:
    """No new session is possible, and those of `tail` are over."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    with connection._nodb_cursor() as cursor:  # as Django creates databases: a session of another one
        cursor.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        try:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tail'")
            yield
        finally:
            cursor.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")


def test_it_follows_a_run_through_a_pipe_across_attempts_and_an_outage_of_the_database(
    standing, eventually, told, tmp_path
):
    tail = Tail(standing, told, tmp_path)
    eventually(lambda: "attempt 1 begins" in tail.out and "running 1 of 4, in attempt 1" in tail.err)
    assert not ends(told)
    with closed_database():
        eventually(lambda: "The database cannot be read (" in tail.err)
    (tmp_path / "go.1").touch()
    eventually(lambda: "attempt 2 begins" in tail.out)
    (tmp_path / "go.2").touch()
    assert tail.child.wait(DEADLINE) == 0
    assert re.findall(r"attempt \d \w+", tail.out) == [
        *("attempt 1 begins", "attempt 1 ends", "attempt 2 begins", "attempt 2 ends"),
    ]
    assert "\x1b" not in tail.out
    assert tail.err.count("The database cannot be read (") == 1
    assert "Attempt 2: " in tail.err
    assert re.fullmatch(rf"Run {told.id} succeeded, took .+\.", tail.err.splitlines()[-1])


def test_it_shows_a_bar_on_a_terminal_and_leaves_the_run_alone_on_ctrl_c(standing, eventually, told, tmp_path):
    ours, theirs = pty.openpty()
    line = [sys.executable, "manage.py", "runs", "tail", str(told.id)[-12:]]
    environment = {**standing.environment, "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(line, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = read_until(ours, "in attempt 1")
    assert "━" in shown
    assert "begins with \\x1b[2J[red]" in shown
    assert "\x1b[2J" not in shown
    child.send_signal(signal.SIGINT)
    shown += read_until(ours, None)
    assert child.wait(DEADLINE) == 130
    assert f"Run {told.id} goes on: `manage.py runs cancel {told.id}` would end it." in shown
    assert "Traceback" not in shown
    assert not ends(told)
    for attempt in (1, 2):
        (tmp_path / f"go.{attempt}").touch()
    eventually(lambda: ends(told))
    assert told.state == State.SUCCEEDED


def read_until(file: int, text: str | None) -> str:
    """What a pseudo-terminal shows until it shows `text`; None: until its program has ended."""
    shown = b""
    with suppress(OSError):  # Linux: EIO once the program has closed it
        while piece := os.read(file, 4096):
            shown += piece
            if text is not None and text in shown.decode(errors="replace"):
                break
    return shown.decode(errors="replace")


def test_it_starts_a_run_and_returns_with_its_end(eventually, tmp_path):
    succeeded = call("runs", "start", "tests.nothing", "--wait", "--json")
    assert (succeeded.status, succeeded.json["state"]) == (0, "succeeded")
    failed = call("runs", "start", "tests.fail", "message=no", "--wait")
    assert failed.status == 1
    assert failed.out.splitlines()[1].endswith(": ValueError: no.")
    make_schedule(tmp_path.name, task="tests.fail", args=["no"])
    assert call("schedules", "run", tmp_path.name, "--wait").status == 1
    late = call("runs", "start", "tests.hold", f"path={tmp_path / 'held'}", "--wait", "--timeout", "100 ms")
    assert late.status == 4
    (tmp_path / "held.go").touch()
    held = Run.objects.get(task="tests.hold")
    eventually(lambda: ends(held))
    assert held.state == State.SUCCEEDED


def test_it_cancels_a_running_run(eventually, tmp_path):
    run = Run.objects.get(id=call("runs", "start", "tests.hold", f"path={tmp_path / 'x'}", "--json").json["id"])
    eventually((tmp_path / "x.started").exists)
    assert call("runs", "cancel", str(run.id)).out == "Asked 1 running run to end.\n"
    eventually(lambda: ends(run))
    assert run.state == State.CANCELLED
