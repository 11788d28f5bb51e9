"""Real workers and real beats for a test: started as an operator starts them, watched by their logs, always ended.

Its one rule: no test sleeps. A test waits for an event with `eventually`, which looks often and gives up when a process
has ended by itself or the wait hangs; then it shows the logs of all processes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from django.core.management import call_command
from django.db import connection

from tests import waiting
from tests.clock import adjustable_clock
from tests.servers import ROOT, Workspace
from tests.waiting import DEADLINE

T = TypeVar("T")

# Short, because a process looks for cancellations four times in a lease; a starved process still renews it in time.
SHORT_LEASE = {"LEASE_SECONDS": "6"}
SHOWN = 4_000  # characters at the end of a log that a failure shows

CELERY = (sys.executable, "-m", "celery", "-A", "project")
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")  # neighbours only delay the start


class Process:
    """A running process of Punctual, with its children."""

    def __init__(self, workspace: Workspace, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._workspace = workspace
        self._file = workspace.folder / f"{name}.log"
        self._logfiles = [Path(word[10:]) for word in command if word.startswith("--logfile=")]
        self._child = workspace.start(command, self._file, cwd=ROOT, env=environment)
        self._told_to_end = False

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def log(self) -> str:
        """Everything it wrote so far, to its terminal and then to the file that `--logfile=` names."""
        files = [self._file, *(path for path in self._logfiles if path.exists())]
        return "".join(path.read_text(errors="replace") for path in files)

    @property
    def terminal(self) -> str:
        """Everything it wrote so far to its terminal."""
        return self._file.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def broken(self) -> bool:
        """Whether it ended though no test wanted it to."""
        return not self.running and not self._told_to_end

    def kill(self) -> None:
        """End it and its children at once, with `kill -9`; returns when it is dead."""
        self._told_to_end = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # children may outlive the leader of their group
        self._child.wait(DEADLINE)

    def expect_end(self) -> None:
        """Expect that it ends by itself."""
        self._told_to_end = True

    def stop(self) -> None:
        """Ask it to end after the work in hand, as a supervisor does, and wait until it has. Raises TimeoutError."""
        self._told_to_end = True
        self._child.terminate()
        try:
            self._child.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} did not end within {DEADLINE} s of SIGTERM.\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it alone, not to its children."""
        self._child.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended by itself; returns its exit status. Raises TimeoutExpired."""
        self._told_to_end = True
        return self._child.wait(DEADLINE)

    def tail(self) -> str:
        return f"--- {self.name} (process {self.pid}) wrote:\n{self.log[-SHOWN:]}"

    def close(self) -> None:
        self.kill()
        self._workspace.forget(self._child)
        self._file.unlink()


class Processes:
    """Starts what a test asks for and keeps count of it."""

    def __init__(self, workspace: Workspace, environment: dict[str, str]) -> None:
        self._workspace = workspace
        self.environment = environment
        self._started: list[Process] = []

    def start_worker(self, *arguments: str, env: dict[str, str] | None = None) -> Process:
        """A worker that is ready to take jobs; it has two child processes unless the arguments say otherwise."""
        node = f"worker{len(self._started)}@localhost"
        command = [*CELERY, "worker", "--concurrency=2", f"--hostname={node}", *QUIET, *arguments]
        return self._start("worker", command, env, ready=" ready.")

    def start_beat(self, *arguments: str, env: dict[str, str] | None = None) -> Process:
        """A beat that has begun to tick."""
        return self._start("beat", [*CELERY, "beat", *arguments], env, ready="beat: Starting...")

    def start_command(self, name: str, *arguments: str, env: dict[str, str] | None = None, ready: str = "") -> Process:
        """A management command, such as `worker` or `beat`, that has printed `ready`."""
        return self._start(name, [sys.executable, "manage.py", name, *arguments], env, ready)

    def start_other(self, app: str, node: str, *arguments: str, env: dict[str, str]) -> Process:
        """A worker of another Celery application, such as one without Punctual."""
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "--pool=solo", f"--hostname={node}", *QUIET]
        return self._start("other", [*command, "--loglevel=INFO", *arguments], env, ready=" ready.")

    def start_other_beat(self, app: str, *arguments: str, env: dict[str, str] | None = None) -> Process:
        """A beat of another Celery application, such as one without Punctual."""
        command = [sys.executable, "-m", "celery", "-A", app, "beat", "--pidfile=", "--loglevel=INFO", *arguments]
        return self._start("other-beat", command, env, ready="beat: Starting...")

    def close(self) -> None:
        """End everything, and show every log: pytest prints it where the test has failed."""
        for process in self._started:
            process.kill()
            sys.stdout.write(process.tail() + "\n")
            process.close()

    def eventually(self, function: Callable[[], T], deadline: float = DEADLINE) -> T:
        """The first true value of `function`. Raises AssertionError at the deadline, or once a process has failed."""
        try:
            return waiting.eventually(function, deadline, self._ended)
        except AssertionError as error:
            logs = "\n".join(process.tail() for process in self._started)
            raise AssertionError(f"{error}\n{logs}") from None

    def _ended(self) -> str:
        broken = [process.name for process in self._started if process.broken]
        return f"{', '.join(broken)} ended by itself" if broken else ""

    def _start(self, kind: str, command: list[str], env: dict[str, str] | None, ready: str) -> Process:
        name = f"{kind}-{len(self._started)}"
        process = Process(self._workspace, name, command, {**self.environment, **(env or {})})
        self._started.append(process)
        self.eventually(lambda: ready in process.log)
        return process


@pytest.fixture(scope="module")
def standing(django_db_setup, django_db_blocker, servers, redis_server) -> Iterator[Processes]:
    """For what all tests of a module share, and the database open to it: no test looks at another's rows.

    Every test of such a module uses it: `pytestmark` says so.
    """
    with django_db_blocker.unblock():
        redis_server.flushdb()
        database = {"DATABASE_URL": servers.database_url_for(connection.settings_dict["NAME"])}
        processes = Processes(servers.workspace, {**os.environ, **database})
        try:
            yield processes
        finally:
            processes.close()
            call_command("flush", interactive=False, verbosity=0)


@pytest.fixture(scope="module")
def standing_pair(standing: Processes) -> None:
    """A worker and a beat for all tests of a module."""
    standing.start_worker()
    standing.start_beat()


@pytest.fixture
def _django_db_helper(request: pytest.FixtureRequest) -> None:
    """pytest-django's own empties the tables after each test: not while the processes of `standing` use them."""
    if not _stands(request):
        request.getfixturevalue("_django_db_helper")


def _stands(request: pytest.FixtureRequest) -> bool:
    """Whether the processes of this test outlive it."""
    return "standing" in request.fixturenames


@pytest.fixture
def processes(servers, environment: dict[str, str]) -> Iterator[Processes]:
    """`start_worker()` and `start_beat()` on the database and the broker of this test; all end with the test."""
    processes = Processes(servers.workspace, environment)
    try:
        yield processes
    finally:
        processes.close()


@pytest.fixture
def eventually(request: pytest.FixtureRequest) -> Callable[..., object]:
    """`eventually(function)`: wait until `function` returns something true, and return that."""
    started: Processes = request.getfixturevalue("standing" if _stands(request) else "processes")
    return started.eventually


@pytest.fixture
def wrong_clock(transactional_db: None) -> Iterator[Callable[[str], None]]:
    """Sets how far the database's clock is ahead, for sessions that begin in the test."""
    with adjustable_clock() as set_clock:
        yield set_clock
