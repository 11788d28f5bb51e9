"""`make run` and `manage.py up` as users start them: what do they run, restart, leave behind and refuse?"""

import io
import itertools
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from jobs.ledger.outcomes import Follower
from jobs.local import embedded
from jobs.local.changes import Changes
from jobs.local.supervisor import FIRST_DELAY, HEALTHY, LARGEST_LOG, LONGEST_DELAY, Child, Supervisor, SupervisorError
from jobs.local.up import _changes, _wsgi_application
from jobs.management.commands.up import describe, printable
from jobs.models import Run, State, database_now
from tests.making import make_run
from tests.servers import ROOT
from tests.waiting import DEADLINE, eventually

linux = pytest.mark.skipif(sys.platform != "linux", reason="the test finds processes in /proc, which only Linux has")

PARTS = ("beat", "worker", "gunicorn", "valkey-server")
PATIENT = ("--deadline", str(DEADLINE))
numbers = itertools.count()  # of the log files


def reserve_port() -> tuple[int, socket.socket]:
    """A free port, and the socket that reserves it: the system gives it to no process that asks for any free port.

    A server that asks for this port by number still gets it. Only Linux allows that; elsewhere the socket is closed.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    if sys.platform != "linux":
        reserved.close()
    return port, reserved


def processes(var: Path) -> dict[int, str]:
    """The live processes that were started for `var`, each with the name of its part."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:  # the process has just ended
            continue
        if os.fsencode(var) in command + environment:
            words = {Path(word).name for word in re.split("[\0 ]", command.decode(errors="replace"))}
            found[int(folder.name)] = next((part for part in PARTS if part in words), "supervisor")
    return found


def part(var: Path, name: str) -> set[int]:
    return {pid for pid, of in processes(var).items() if of == name}


def leader(var: Path, name: str) -> int:
    """The process that the supervisor started itself, without its children."""
    return min(pid for pid in part(var, name) if os.getsid(pid) == pid)


def _heed_hangups() -> None:
    """Between fork and exec: the tests themselves may run under nohup, which a child inherits."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Up:
    """A `manage.py up` in `var`. It inherits only PATH, HOME, LANG and TMPDIR from this process."""

    def __init__(self, workspace, var: Path, *arguments: str, code: Path = ROOT, **environment: str) -> None:
        self.var = var
        self.port, self._reserved = reserve_port()
        self._workspace = workspace
        self._file = workspace.folder / f"up-{next(numbers)}.log"
        command = [sys.executable, "manage.py", "up", "--port", str(self.port), *arguments]
        needed = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        settings = {"ENV_FILE": os.devnull, "DEBUG": "true", "VAR_DIR": str(var), **environment}
        self._child = workspace.start(
            command,
            self._file,
            cwd=code,
            env=needed | settings,
            preexec_fn=_heed_hangups,
        )

    @property
    def lines(self) -> str:
        return self._file.read_text()

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def says(self, pattern: str) -> re.Match[str]:
        def said() -> re.Match[str] | None:
            ended, lines = not self.running, self.lines
            assert not ended or re.search(pattern, lines), f"it ended without saying {pattern!r}:\n{lines}"
            return re.search(pattern, lines)

        try:
            return eventually(said)
        except AssertionError as error:
            raise AssertionError(f"it did not say {pattern!r}:\n{self.lines}") from error

    def ends(self) -> int:
        try:
            status = self._child.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.lines}") from None
        self._workspace.forget(self._child)
        self._reserved.close()
        return status


@pytest.fixture(scope="module")
def installed(servers, tmp_path_factory) -> Up:
    """An installation with runs, and the output of the `up --demo --until 3` that made it.

    Afterwards its heartbeat runs every second instead of every five: other tests wait for it.
    """
    var = tmp_path_factory.mktemp("up") / "var"
    (var / "log").mkdir(parents=True)
    (var / "log" / "web.log").touch()
    for path in (var, var / "log", var / "log" / "web.log"):  # as a former version left them, under the usual umask
        path.chmod(0o755)
    up = Up(servers.workspace, var, "--demo", "--until", "3", *PATIENT)
    assert up.ends() == 0, up.lines
    faster = "UPDATE django_celery_beat_intervalschedule SET every = 1 WHERE every = 5"
    with closing(sqlite3.connect(up.var / "punctual.sqlite3", timeout=DEADLINE)) as database, database:
        assert database.execute(faster).rowcount == 1
    return up


@pytest.fixture
def again(servers, installed, tmp_path) -> Iterator[Up]:
    (tmp_path / "env").write_text("JOB_SECRET_STORED=canary-9876\n")
    of_web = {"WEBHOOK_KEYS_SHOP": "canary-of-the-shop"}
    of_alerts = {"CHANNEL_URL_HOOK": "https://host.example/canary-of-alerts", "BEAT_PING_URL": "https://canary-of-beat"}
    secrets = {"JOB_SECRET_KEY": "canary-1234", "ENV_FILE": str(tmp_path / "env"), **of_web, **of_alerts}
    up = Up(servers.workspace, installed.var, "--demo", **secrets)
    up.says("Punctual runs at")
    yield up
    if up.running:
        up.signal(signal.SIGTERM)
        assert up.ends() == 0, up.lines


@pytest.fixture
def refused(servers, tmp_path) -> Callable[..., str]:
    """Runs an `up` that must end with status 1 and start nothing. Returns its one sentence."""

    def refuse(*arguments: str, var: Path = tmp_path / "var", **environment: str) -> str:
        up = Up(servers.workspace, var, *arguments, **environment)
        assert up.ends() == 1, up.lines
        assert up.lines.count("\n") == 1, up.lines
        assert not list(var.glob("log/*.log"))
        return up.lines

    return refuse


# --- A whole Punctual -----------------------------------------------------------------------------------------------


@linux
def test_it_runs_until_enough_scheduled_runs_have_succeeded_and_leaves_nothing_behind(installed):
    runs = re.findall(
        r"^\d\d:\d\d:\d\d  succeeded  .+  [\d.]+ m?s late  took [\d.]+ m?s$", installed.lines, re.MULTILINE
    )
    assert len(runs) >= 3, installed.lines
    assert len(re.findall("password: ", installed.lines)) == 1
    assert f"http://127.0.0.1:{installed.port}/" in installed.lines
    eventually(lambda: not processes(installed.var))
    assert not embedded.socket_path(installed.var).exists()


def test_it_lets_no_other_user_read_its_files(installed):
    paths = [installed.var, *installed.var.rglob("*")]
    assert {"secret_key", "punctual.sqlite3", "worker.log", "valkey"} <= {path.name for path in paths}
    assert not [path for path in paths if path.lstat().st_mode & 0o077]


def test_it_mends_the_modes_of_its_own_files_only(tmp_path):
    for folder in ("files/report", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    paths = [tmp_path / name for name in ("punctual.sqlite3", "punctual.sqlite3-wal", "files/report/it", "mine/it")]
    for path in paths:
        path.touch()
        path.chmod(0o644)
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    with embedded.private(tmp_path):
        (tmp_path / "new").touch()
    modes = [path.stat().st_mode & 0o777 for path in (*paths, tmp_path / "new")]
    assert modes == [0o600, 0o600, 0o600, 0o644, 0o600]
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700
    tmp_path.chmod(0o1777)
    embedded.close_to_others(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o777


@linux
def test_it_continues_its_installation_and_stops_in_order_on_ctrl_c(again):
    assert "password" not in again.lines
    again.says(r"succeeded")
    alerts = [b"canary-of-alerts", b"canary-of-beat"]
    held = {"gunicorn": [*alerts, b"canary-of-the-shop"], "beat": alerts, "worker": [b"canary-1234", b"canary-9876"]}
    for name, values in held.items():
        environment = Path(f"/proc/{leader(again.var, name)}/environ").read_bytes()
        assert sorted(re.findall(rb"canary[\w-]+", environment)) == values, name
    again.signal(signal.SIGINT)
    order: list[str] = []

    def all_ended() -> bool:
        alive = set(processes(again.var).values())
        order.extend(name for name in PARTS if name not in alive and name not in order)
        return not alive

    eventually(all_ended)
    assert order == list(PARTS)
    assert again.ends() == 0, again.lines
    assert "password" not in again.lines
    assert not embedded.socket_path(again.var).exists()


@linux
def test_it_restarts_a_killed_child_and_kills_the_rest_of_its_processes(again, servers):
    pool = eventually(lambda: len(part(again.var, "worker")) >= 3 and part(again.var, "worker"))
    os.kill(leader(again.var, "worker"), signal.SIGKILL)
    again.says(r"worker was killed by SIGKILL; restarting it in 0.5 s. The last line of \S+worker.log: \S")
    os.kill(leader(again.var, "valkey-server"), signal.SIGKILL)
    again.says(r"valkey was killed by SIGKILL")
    eventually(lambda: len(part(again.var, "worker") - pool) >= 3 and part(again.var, "valkey-server"))
    assert not part(again.var, "worker") & pool
    killed_at = len(again.lines)
    eventually(lambda: "succeeded" in again.lines[killed_at:])

    second = Up(servers.workspace, again.var)
    assert second.ends() == 1
    assert second.lines == f"Punctual already runs in {again.var}: stop it, or set another VAR_DIR for this one.\n"


@linux
def test_it_leaves_no_process_when_it_is_killed_and_starts_again_at_once(again, servers):
    again.signal(signal.SIGKILL)
    again.ends()
    next_one = Up(servers.workspace, again.var, "--until", "1", *PATIENT)
    assert next_one.ends() == 0, next_one.lines
    eventually(lambda: not processes(again.var))


@linux
def test_it_stops_its_children_when_a_signal_arrives_during_the_start(servers, tmp_path):
    up = Up(servers.workspace, tmp_path, "--until", "1", *PATIENT)
    eventually(lambda: part(tmp_path, "valkey-server"))
    up.signal(signal.SIGHUP)
    assert up.ends() == 1
    assert "Stopped before 1 scheduled runs had succeeded." in up.lines
    assert "runs at" not in up.lines
    eventually(lambda: not processes(tmp_path))


@pytest.mark.parametrize(
    ("setting", "argument"),
    [
        ("mysite.web.wsgi.application", "mysite.web.wsgi:application"),
        (None, "django.core.wsgi:get_wsgi_application()"),
    ],
)
def test_it_serves_the_wsgi_application_that_the_settings_name(settings, setting, argument):
    settings.WSGI_APPLICATION = setting
    assert _wsgi_application() == argument


@linux
def test_it_fails_with_the_counts_when_too_few_runs_succeed_in_time(servers, tmp_path):
    up = Up(servers.workspace, tmp_path, "--until", "1", "--deadline", "0.1")
    assert up.ends() == 1
    assert up.lines.endswith("Only 0 of 1 scheduled runs succeeded within 0.1 s (runs: none).\n")
    eventually(lambda: not processes(tmp_path))


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"DATABASE_URL": "nonsense"}, "Configuration: DATABASE_URL is invalid"),
        ({"DATABASE_URL": "postgres://me:hidden@127.0.0.1:1/x"}, "The database cannot be used (connection failed"),
        ({"REDIS_URL": "redis://:hidden@127.0.0.1:1/0"}, "The broker cannot be reached (Error 111"),
        ({"BROKER_URL": "carrier-pigeon://x"}, "The broker cannot be reached ('No such transport: carrier-pigeon')"),
    ],
)
def test_it_names_in_one_sentence_the_part_that_cannot_be_used(refused, environment, sentence):
    told = refused(**environment)
    assert told.startswith(sentence)
    assert "hidden" not in told


@pytest.mark.parametrize("port", ["0", "70000"])
def test_it_refuses_an_invalid_port(refused, port):
    assert refused("--port", port) == f"--port {port} is not a port: choose a number from 1 to 65535.\n"


@pytest.mark.parametrize("deadline", ["0", "-1", "nan"])
def test_it_refuses_a_deadline_that_is_not_positive(refused, deadline):
    assert refused("--deadline", deadline).endswith("is too short: choose a number of seconds above 0.\n")


def test_it_refuses_a_port_in_use(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        expected = f"Port {port} cannot be used (Address already in use): choose another with --port.\n"
        assert refused("--port", str(port)) == expected


@pytest.mark.parametrize("environment", [{}, {"SECRET_KEY": "known"}])
def test_it_refuses_a_folder_that_cannot_be_written(refused, tmp_path, environment):
    (tmp_path / "file").touch()  # root may write anywhere, but not below a file
    told = refused(var=tmp_path / "file" / "var", **environment)
    assert "cannot be written (Not a directory): set VAR_DIR to a writable folder." in told


@pytest.mark.parametrize("python", ["Python 3.9.2", "missing"])
def test_it_refuses_a_wrong_python_and_creates_nothing(tmp_path, python):
    old = tmp_path / "old python"
    if python != "missing":
        pretend = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])"
        old.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo {python} || exec {sys.executable} -c "{pretend}" "$2"\n'
        )
        old.chmod(0o700)
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    made = subprocess.run(["make", "run", f"PYTHON={old}"], cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    sentence, *rest = made.stderr.splitlines()
    assert sentence.startswith(f"Python 3.11 or newer is needed, but {old} is {python}: ")
    assert [re.sub(r"\[\d+\]", "", line).partition(" ")[0] for line in rest] == ["make:"]
    assert not list(folder.glob(".*"))


# --- The embedded server --------------------------------------------------------------------------------------------


@pytest.fixture
def run_valkey(servers) -> Callable[[embedded.Valkey], subprocess.Popen[bytes]]:
    def run(server: embedded.Valkey) -> subprocess.Popen[bytes]:
        server.prepare()
        process = servers.workspace.start(server.command(), server.log)
        eventually(server.answers)
        return process

    return run


@pytest.mark.parametrize("folder", ["var", "a folder that no URL can hold", "x" * 100])
def test_it_keeps_the_data_of_its_server_and_leaves_no_socket(servers, run_valkey, tmp_path, folder):
    server = embedded.Valkey(tmp_path / folder)
    for found in (None, b"told"):
        process = run_valkey(server)
        with redis.Redis.from_url(server.url) as client:
            assert client.get("it") == found
            client.set("it", "told")
        assert server.socket.stat().st_mode & 0o077 == 0
        process.terminate()
        process.wait()
        servers.workspace.forget(process)
        server.tidy()
        assert not server.socket.exists()
    assert server.socket.parent == server.var or not server.socket.parent.exists()


def test_it_removes_the_socket_of_a_killed_server(servers, run_valkey, tmp_path):
    server = embedded.Valkey(tmp_path)
    for _ in range(2):  # the second one starts beside the socket of the first
        process = run_valkey(server)
        process.kill()
        process.wait()
        servers.workspace.forget(process)
        assert server.socket.exists()
    server.tidy()
    assert not server.socket.exists()


def test_it_refuses_a_second_server_on_the_same_data(servers, run_valkey, tmp_path):
    process = run_valkey(embedded.Valkey(tmp_path))
    with pytest.raises(embedded.ServerError, match=r"Another server answers at .*valkey.sock: stop it"):
        embedded.Valkey(tmp_path).prepare()
    process.kill()
    process.wait()
    servers.workspace.forget(process)


def test_it_refuses_a_socket_folder_of_another_user(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = embedded.Valkey(tmp_path / ("x" * 100))
    server.socket.parent.symlink_to(tmp_path)
    with pytest.raises(embedded.ServerError, match="is not a folder of this user"):
        server.prepare()


# --- One child ------------------------------------------------------------------------------------------------------


@pytest.fixture
def child(tmp_path) -> Callable[..., Child]:
    """A child that runs a shell command. The test must stop it."""
    return lambda command, patience=10: Child("it", ["/bin/sh", "-c", command], tmp_path, tmp_path / "it.log", patience)


def test_it_restarts_with_growing_delays_until_a_child_stays_healthy(child):
    it, told = child("echo last words; exit 3"), []
    with Supervisor(told.append) as supervisor:
        supervisor.start(it)
        delays = []
        for _ in range(9):
            it.process.wait()
            supervisor.restart()
            assert it.process is None
            delays.append(it.delay)
            it.start_at = time.monotonic()
            supervisor.restart()
        it.process.wait()
        it.started_at -= HEALTHY
        supervisor.restart()
    assert delays == [0.5, 1, 2, 4, 8, 16, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]
    assert it.delay == FIRST_DELAY
    assert told[0] == f"it ended with status 3; restarting it in 0.5 s. The last line of {it.log}: last words"


def test_it_waits_before_it_restarts(child):
    it = child("exit 3")
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(it)
        it.process.wait()
        supervisor.restart()
        supervisor.restart()
        assert it.process is None or time.monotonic() >= it.start_at
        eventually(lambda: supervisor.restart() or it.process)
        assert time.monotonic() >= it.start_at


@linux
def test_it_kills_a_stubborn_child_and_its_processes_after_its_patience(child, tmp_path):
    it = child(
        f"trap '' TERM; (trap '' TERM; while :; do sleep 9; done) & : {tmp_path}; while :; do sleep 9; done", 0.2
    )
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(it)
        eventually(lambda: len(processes(tmp_path)) >= 2)
        started_at = time.monotonic()
    assert 0.2 <= time.monotonic() - started_at < 60  # the child itself never ends
    eventually(lambda: not processes(tmp_path))


def test_it_stops_faster_after_a_second_signal(child):
    it, told = child("trap '' TERM; echo deaf; while :; do sleep 9; done", 10 * DEADLINE), []
    began_at = time.monotonic()
    with suppress(KeyboardInterrupt), Supervisor(told.append) as supervisor:
        supervisor.start(it)
        eventually(it.log.read_bytes)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal did not end the block")
    assert time.monotonic() - began_at < DEADLINE
    assert told == ["Stopping it."]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_it_stops_when_the_reader_of_its_reports_is_gone(child):
    def without_reader(_line: str) -> None:
        raise BrokenPipeError

    it = child("exec sleep 60")
    with suppress(KeyboardInterrupt), Supervisor(without_reader) as supervisor:
        supervisor.start(it)
        supervisor.report("hello?")
        supervisor.pause(0)
        pytest.fail("the pause went on")
    assert it.process is None


def test_it_refuses_a_child_that_ends_before_it_answers(child):
    it = child("echo no such thing >&2; exit 1")
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(it)
        with pytest.raises(SupervisorError, match=r"it did not start. The last line of .*: no such thing"):
            supervisor.wait_for(it, lambda: False)


def test_it_truncates_a_large_log_at_the_next_start(child):
    it = child("echo new")
    for size, kept in ((LARGEST_LOG, True), (LARGEST_LOG + 1, False)):
        it.log.write_bytes(b"x" * size)
        it.start()
        it.process.wait()
        assert it.log.read_bytes().startswith(b"x") is kept
    assert it.log.read_bytes() == b"new\n"
    it.stop(lambda seconds: seconds)


# --- Output ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_it_shows_each_finished_run_once_and_in_order_even_if_one_appears_late():
    now = database_now()
    make_run(state=State.SUCCEEDED, finished_at=now)
    follower = Follower()
    assert follower.news() == []
    same = [make_run(state=State.FAILED, finished_at=now + timedelta(seconds=9)) for _ in range(3)]
    make_run(state=State.RUNNING)
    assert sorted(run.id for run in follower.news()) == sorted(run.id for run in same)
    late = make_run(state=State.SUCCEEDED, finished_at=now + timedelta(seconds=5))
    last = make_run(state=State.SKIPPED, finished_at=now + timedelta(seconds=60))
    assert follower.news() == [late, last]
    assert follower.news() == []


def test_it_shows_a_run_in_one_line_without_control_characters(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    moment = datetime(2026, 3, 1, 4, 5, 6, tzinfo=UTC)
    run = Run(
        schedule_name="Bad\x1b[2J \u2713",
        state=State.FAILED,
        reason="ValueError: no\nmore",
        due_at=moment,
        started_at=moment + timedelta(milliseconds=20),
        finished_at=moment + timedelta(seconds=2),
    )
    assert (
        printable(describe(run))
        == "04:05:08  failed     Bad [2J \\u2713                       20 ms late  took 2.0 s  ValueError: no more"
    )


def test_it_renews_a_child_after_its_work_in_hand_and_asks_it_once(child, tmp_path):
    asked, go, ready = (tmp_path / name for name in ("asked", "go", "ready"))
    work = f"echo x >> {asked}; until test -e {go}; do sleep 0.01; done; exit"
    it, told = child(f"trap '{work}' TERM; touch {ready}; sleep 300 & wait"), []
    with Supervisor(told.append) as supervisor:
        supervisor.start(it)
        first = it.process
        eventually(ready.exists)
        it.renew()
        eventually(asked.exists)
        it.renew()
        supervisor.restart()
        assert it.process is first
        go.touch()
        eventually(lambda: supervisor.restart() or it.process not in (None, first))
        assert (asked.read_text(), told) == ("x\n", [])


def test_it_follows_the_python_files_of_a_folder_and_of_new_folders(tmp_path):
    for name in ("shop", ".hidden", "var"):
        (tmp_path / name).mkdir()
    changes = Changes(tmp_path, tmp_path / "var")
    for path in ("shop/page.html", ".hidden/a.py", "var/b.py", "shop/tasks.py"):
        (tmp_path / path).write_text("x = 1")
    assert eventually(changes.look) == [tmp_path / "shop" / "tasks.py"]
    (tmp_path / "new").mkdir()
    (tmp_path / "shop" / "tasks.py").write_text("x = 2")
    assert eventually(changes.look) == [tmp_path / "shop" / "tasks.py"]
    (tmp_path / "new" / "tasks.py").write_text("x = 3")
    assert eventually(changes.look) == [tmp_path / "new" / "tasks.py"]


def test_it_follows_a_folder_that_was_made_again_from_the_next_change_on(tmp_path):
    for name in ("mail", "shop"):
        (tmp_path / name).mkdir()
    changes = Changes(tmp_path, tmp_path / "var")
    (tmp_path / "shop").rename(tmp_path / ".former")
    (tmp_path / "shop").mkdir()

    def sees_a_change_of(path: Path) -> bool:
        with path.open("a") as file:
            file.write("\n")
        return path in changes.look()

    eventually(lambda: sees_a_change_of(tmp_path / "mail" / "tasks.py"))
    assert eventually(lambda: sees_a_change_of(tmp_path / "shop" / "tasks.py"))


def test_it_goes_on_where_no_changes_can_be_followed(tmp_path, settings):
    settings.DEBUG, settings.BASE_DIR = True, tmp_path / "missing"
    told = []
    with Supervisor(told.append) as supervisor:
        assert _changes(supervisor) is None
    assert "restart after an edit" in told[0]


TASKS = """
from pathlib import Path

from celery import shared_task


@shared_task
def greet(path):
    with Path(path).open("a") as file:
        file.write("one\\n")
"""


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A copy of the code with an app whose task writes a line into the file `said` beside it, every second."""
    code = tmp_path / "code"
    for name in ("jobs", "project", "templates"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", code)
    (code / "greetings").mkdir()
    (code / "greetings" / "__init__.py").touch()
    (code / "greetings" / "tasks.py").write_text(TASKS)
    entry = {"task": "greetings.tasks.greet", "schedule": 1, "args": [str(tmp_path / "said")]}
    with (code / "project" / "settings.py").open("a") as settings:
        settings.write(f"INSTALLED_APPS.append('greetings')\nCELERY_BEAT_SCHEDULE = {{'greet': {entry}}}\n")
    return code


def test_it_restarts_the_processes_when_code_changes_and_keeps_them_when_it_is_no_python(servers, edited, tmp_path):
    said, tasks = tmp_path / "said", edited / "greetings" / "tasks.py"
    up = Up(servers.workspace, tmp_path / "var", code=edited)
    try:
        eventually(lambda: said.exists() and "one" in said.read_text())
        tasks.write_text(TASKS.replace("def greet(path):", "def greet(path:"))
        up.says(r"The code is not restarted: greetings/tasks.py, line \d+: ")
        before = said.read_text()
        eventually(lambda: said.read_text() != before)
        tasks.write_text(TASKS.replace("one", "two"))
        up.says(r"greetings/tasks.py changed: restarting web, worker, beat\.")
        eventually(lambda: "two" in said.read_text())
        assert not re.search("killed|ended with status", up.lines)
    finally:
        up.signal(signal.SIGTERM)
        up.ends()
