"""The environment of a benchmark: its own servers and database, with Django set up in this process.

TEST_DATABASE_URL and TEST_REDIS_URL name other servers, as for tests. PostgreSQL writes to disk, as by default.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import django
import psutil
import redis

from tests.servers import ROOT, MissingServerError, Servers, Workspace, settle

POLL = 0.002  # seconds between two checks
PATIENCE = 1_000.0  # seconds until a wait counts as a hang

_running: list[subprocess.Popen[bytes]] = []  # a wait ends once one of them has ended: nothing more would come


@dataclass(frozen=True, slots=True)
class Ground:
    """The broker of a benchmark, and the workspace and environment for its processes."""

    workspace: Workspace
    broker: redis.Redis
    environment: dict[str, str]

    @contextmanager
    def running(self, *commands: Sequence[str], env: dict[str, str] | None = None) -> Iterator[list[psutil.Process]]:
        """Run these commands and kill them at the end of the block. After an error, print their output."""
        log = self.workspace.folder / f"bench-{time.monotonic_ns()}.log"
        children = [
            self.workspace.start(
                [sys.executable, "-m", *command], log, cwd=ROOT, env={**self.environment, **(env or {})}
            )
            for command in commands
        ]
        _running.extend(children)
        try:
            yield [psutil.Process(child.pid) for child in children]
        except Exception:
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            for child in children:
                _running.remove(child)
                child.kill()
                child.wait()
                self.workspace.forget(child)


@contextmanager
def ground() -> Iterator[Ground]:
    """Create the environment. The end of the block removes everything in it."""
    workspace = Workspace()
    try:
        servers = Servers(workspace, "postgresql", durable=True)
        settle({**servers.environment(), "LOG_LEVEL": "WARNING"})
        try:
            servers.have_database()
            servers.have_redis()
        except MissingServerError as missing:
            sys.exit(str(missing))
        with _database() as name, redis.Redis.from_url(servers.redis_url) as broker:
            broker.flushdb()
            yield Ground(workspace, broker, {**os.environ, "DATABASE_URL": servers.database_url_for(name)})
    finally:
        workspace.close()


@contextmanager
def _database() -> Iterator[str]:
    django.setup()
    from django.db import connection

    name = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        yield connection.settings_dict["NAME"]
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)


def wait_for(what: Callable[[], bool], patience: float = PATIENCE) -> float:
    """Wait until `what` is true. Returns the time (as `time.time()`).

    Raises TimeoutError, or ChildProcessError as soon as one of the running processes has ended.
    """
    until = time.monotonic() + patience
    while not what():
        if ended := [child for child in _running if child.poll() is not None]:
            raise ChildProcessError(f"process {ended[0].pid} ended by itself with status {ended[0].returncode}")
        if time.monotonic() > until:
            raise TimeoutError(f"not within {patience} s")
        time.sleep(POLL)
    return time.time()


def cpu(processes: Sequence[psutil.Process]) -> float:
    """The CPU time used so far, in seconds."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def memory(processes: Sequence[psutil.Process]) -> float:
    """The resident memory, in megabytes."""
    return sum(process.memory_info().rss for process in processes) / 1e6
