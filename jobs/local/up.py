"""How does a complete Punctual run on one machine, from the first command to Ctrl-C?

Its one rule: check before starting. It first tries the folder, the port, the broker and the database. It ends with one
sentence at the first that is unusable. It only reads the ledger, to report finished runs.
Limits: one supervisor for each VAR_DIR. jobs/local/supervisor.py looks after the started processes.
"""

import fcntl
import http.client
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from celery import current_app
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection
from django.db.models import Count
from django.urls import reverse
from kombu.exceptions import OperationalError

from jobs.ledger.outcomes import Follower
from jobs.local import demo, embedded, processes
from jobs.local.supervisor import Child, Supervisor, SupervisorError
from jobs.models import Run, State, Trigger

if TYPE_CHECKING:
    from jobs.local.changes import Changes

# In seconds.
POLL = 0.2
PORT_PATIENCE = 2.0  # how long the web process of a killed supervisor may hold the port

CODE = {"web", "worker", "beat"}  # the children that run the project's code


@dataclass(frozen=True)
class Options:
    """The options of `manage.py up`. `until`: end after so many succeeded scheduled runs, within `deadline` seconds."""

    port: int
    demo: bool = False
    until: int | None = None
    deadline: float = 60

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def run(options: Options, report: Callable[[str], None], describe: Callable[[Run], str]) -> None:
    """Run everything until a signal arrives or `options.until` is reached. `describe` turns a run into a line.

    Raises SupervisorError or ServerError, after stopping every process that it started.
    """
    os.environ.setdefault("SITE_URL", options.address)  # for the children: the settings did not know the port
    with _alone(settings.VAR_DIR), suppress(KeyboardInterrupt), Supervisor(report) as supervisor:
        _check_port(options.port, supervisor)
        _check_broker()
        _prepare_database()
        _start_server(supervisor)
        if options.demo:
            _install_demo(supervisor)
        follower = Follower()
        _start_children(options, supervisor)
        address = f"{options.address}{reverse('admin:index')}"
        supervisor.report(f"Punctual runs at {address} (logs: {settings.VAR_DIR}/log; Ctrl-C stops it).")
        _follow(options, supervisor, follower, describe)
        return
    if options.until is not None:
        raise SupervisorError(f"Stopped before {options.until} scheduled runs had succeeded.")


# --- Checks before the start ----------------------------------------------------------------------------------------


@contextmanager
def _alone(var: Path) -> Iterator[None]:
    """Lock `var` against a second supervisor. The kernel releases the lock when this process ends."""
    with ExitStack() as stack:
        try:
            stack.enter_context(embedded.private(var))
            (var / "log").mkdir(exist_ok=True)
            lock = stack.enter_context((var / "up.lock").open("a"))
        except OSError as error:
            raise SupervisorError(
                f"{var} cannot be written ({error.strerror}): set VAR_DIR to a writable folder."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SupervisorError(
                f"Punctual already runs in {var}: stop it, or set another VAR_DIR for this one."
            ) from error
        yield


def _check_port(port: int, supervisor: Supervisor) -> None:
    deadline = time.monotonic() + PORT_PATIENCE
    while (why := _why_not(port)) is not None:
        if time.monotonic() > deadline:
            raise SupervisorError(f"Port {port} cannot be used ({why}): choose another with --port.")
        supervisor.pause(0.1)


def _why_not(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror
    return None


def _embedded_server() -> embedded.Valkey | None:
    server = embedded.Valkey(settings.VAR_DIR)
    return server if server.url == settings.REDIS_URL else None


def _check_broker() -> None:
    server = _embedded_server()
    if server is not None and embedded.broker_url(server.url) == settings.CELERY_BROKER_URL:
        return  # not started yet; `_start_server` waits for it
    try:
        with current_app.connection_for_write() as broker:
            broker.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except (OperationalError, ImportError, KeyError) as error:
        raise SupervisorError(
            f"The broker cannot be reached ({_brief(error)}): check REDIS_URL or BROKER_URL."
        ) from error


def _prepare_database() -> None:
    try:
        connection.ensure_connection()
        call_command("migrate", verbosity=0, interactive=False)
    except DatabaseError as error:
        raise SupervisorError(f"The database cannot be used ({_brief(error)}): check DATABASE_URL.") from error


def _install_demo(supervisor: Supervisor) -> None:
    users = get_user_model().objects
    if not users.exists():
        password = secrets.token_urlsafe(12)
        users.create_superuser("admin", password=password)
        hint = "(shown only once; `manage.py changepassword admin` sets a new one)"
        supervisor.report(f"Admin user: admin, password: {password} {hint}")
    demo.install()


# --- Starting and watching ------------------------------------------------------------------------------------------


def _start_server(supervisor: Supervisor) -> None:
    if (server := _embedded_server()) is not None:
        valkey = _child("valkey", server.command(), 10)
        valkey.prepare, valkey.tidy = server.prepare, server.tidy
        supervisor.start(valkey)
        supervisor.wait_for(valkey, server.answers)


def _start_children(options: Options, supervisor: Supervisor) -> None:
    gunicorn = [sys.executable, "-m", "gunicorn", _wsgi_application(), "--bind", f"127.0.0.1:{options.port}"]
    threads = ["--workers", "1", "--threads", "4"]
    pool = ["--concurrency", "2", "--hostname", f"up-{options.port}@%h"]
    web = _child("web", [*gunicorn, *threads, "--graceful-timeout", "5", "--no-control-socket"], 10)
    beat = _child("beat", processes.command("beat"), 10)
    worker = _child("worker", processes.command("worker", *pool), 20)
    of_workers = _hidden("JOB_SECRET_", settings.JOB_SECRETS)
    of_web = _hidden("WEBHOOK_KEYS_", getattr(settings, "WEBHOOK_KEYS", {}))
    of_channels = {
        **_hidden("CHANNEL_URL_", getattr(settings, "CHANNEL_URLS", {})),
        **_hidden("CHANNEL_KEY_", getattr(settings, "CHANNEL_KEYS", {})),
        **_hidden("", ["BEAT_PING_URL"]),
    }
    web.environment, worker.environment = {**os.environ, **of_workers}, {**os.environ, **of_web, **of_channels}
    beat.environment = {**os.environ, **of_workers, **of_web}
    supervisor.start(web)
    supervisor.start(worker)
    supervisor.start(beat)
    supervisor.wait_for(web, lambda: _web_answers(options.port))


def _hidden(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Empty variables for processes that need no value of these secrets. They hide those of `.env`, too."""
    return {f"{prefix}{name}{suffix}": "" for name in names for suffix in ("", "_FILE")}


def _wsgi_application() -> str:
    """The setting WSGI_APPLICATION, or Django's own default for it, in gunicorn's notation."""
    path = settings.WSGI_APPLICATION or "django.core.wsgi.get_wsgi_application()"
    module, _, application = path.rpartition(".")
    return f"{module}:{application}"


def _child(name: str, command: Sequence[str], patience: float) -> Child:
    return Child(name, command, settings.BASE_DIR, settings.VAR_DIR / "log" / f"{name}.log", patience)


def _web_answers(port: int) -> bool:
    web = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        web.request("GET", "/livez")
        return web.getresponse().status < 500  # also when ALLOWED_HOSTS refuses 127.0.0.1
    except (OSError, http.client.HTTPException):
        return False
    finally:
        web.close()


def _follow(options: Options, supervisor: Supervisor, follower: Follower, describe: Callable[[Run], str]) -> None:
    """Restart children and report finished runs until `until` is reached. Raises SupervisorError at the deadline."""
    deadline = time.monotonic() + options.deadline
    scheduled = Counter[str]()
    readable = True
    changes = _changes(supervisor)
    while options.until is None or scheduled[State.SUCCEEDED] < options.until:
        supervisor.pause(POLL)
        if changes and (changed := changes.look()):
            _renew(changed, supervisor)
        supervisor.restart()
        if options.until is not None and time.monotonic() > deadline:
            raise SupervisorError(_shortfall(options, scheduled, supervisor.children))
        close_old_connections()
        try:
            news = follower.news()
        except DatabaseError as error:
            if readable:
                supervisor.report(f"The ledger cannot be read ({_brief(error)}); trying again.")
            readable = False
            continue
        readable = True
        for finished in news:
            supervisor.report(describe(finished))
        scheduled.update(finished.state for finished in news if finished.trigger == Trigger.SCHEDULE)


def _changes(supervisor: Supervisor) -> "Changes | None":
    """The changes of the code; None in production, where a deployment restarts what it changes."""
    if not settings.DEBUG:
        return None
    from jobs.local.changes import Changes  # late: production need not load it

    try:
        return Changes(settings.BASE_DIR, settings.VAR_DIR)
    except OSError as error:  # such as too few watches of inotify
        supervisor.report(f"Changes of the code are not followed ({error}): restart after an edit.")
        return None


def _renew(changed: Sequence[Path], supervisor: Supervisor) -> None:
    """Restart the processes that hold the code, each after its work in hand, unless a file is no Python."""
    from jobs.local.changes import mistake  # late, as above

    names = {path: os.path.relpath(path, settings.BASE_DIR) for path in changed}
    if wrong := [f"{names[path]}, {why}" for path in changed if (why := mistake(path))]:
        supervisor.report(f"The code is not restarted: {'; '.join(wrong)}. The next change is tried again.")
        return
    children = [child for child in supervisor.children if child.name in CODE]
    supervisor.report(f"{', '.join(names.values())} changed: restarting {', '.join(child.name for child in children)}.")
    for child in children:
        child.renew()


def _shortfall(options: Options, scheduled: Counter[str], children: Sequence[Child]) -> str:
    """Why `until` was not reached: the runs by state, and the dead children."""
    known = [f"{count} {state}" for state, count in sorted(scheduled.items())]
    with suppress(DatabaseError):
        active = Run.objects.active().filter(trigger=Trigger.SCHEDULE).values_list("state")
        known += [f"{count} {state}" for state, count in active.annotate(Count("id")).order_by("state")]
    dead = [f"{child.name} is not running. {child.last_log_line()}" for child in children if child.process is None]
    success = f"{scheduled[State.SUCCEEDED]} of {options.until} scheduled runs succeeded within {options.deadline:g} s"
    return " ".join([f"Only {success} (runs: {', '.join(known) or 'none'}).", *dead])


def _brief(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
