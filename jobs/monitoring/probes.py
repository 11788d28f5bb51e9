"""Can this installation do its work now? Checks of the database, the migrations, the broker, a beat and a worker.

Its one rule: an answer comes in time, whatever hangs. Each check has a thread, a connection and a deadline of its own.
A process executes each check once at a time and keeps its answer for a moment, so many probes cost no more than one.
Limits: sentences name no address, error or version, because anyone may read them; the log says more. A check that hangs
for good fails until its connection ends; the process's other connections hang then, too.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing
from functools import cache, partial

from celery import current_app
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from jobs.models import Node
from jobs.rules.errors import Invalid, error_of

log = logging.getLogger(__name__)

DEADLINE = 2.0  # seconds for a check
FRESH = 1.0  # seconds for which an answer is kept
BEAT, WORKER = Node.Kind.BEAT, Node.Kind.WORKER
UNUSABLE = "it cannot be used, and the log says why"


class Check:
    """Answers whether something works, in time."""

    def __init__(self, name: str, look: Callable[[], None]) -> None:
        """`look` raises `Invalid` with a sentence that anyone may read, or any other error, which is logged."""
        self._name, self._look = name, look
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._began_at = self._ended_at = float("-inf")
        self._why = ""

    def begin(self) -> None:
        """Look again, unless a thread does so already or has just done so."""
        with self._lock:
            if self._over.is_set() and time.monotonic() - self._ended_at > FRESH:
                self._began_at = time.monotonic()
                self._over.clear()
                threading.Thread(target=self._answer, name="probe", daemon=True).start()

    def why_not(self) -> str:
        """Why it does not work; empty if it does."""
        if self._over.wait(max(self._began_at + DEADLINE - time.monotonic(), 0)):
            return self._why
        return f"no answer within {DEADLINE:g} s"

    def _answer(self) -> None:
        why = UNUSABLE
        try:
            with closing(connection):
                error = error_of(self._look)
            why = str(error) if isinstance(error, Invalid) else UNUSABLE if error else ""
            if error and why != self._why:
                log.warning("The probe of the %s failed: %s", self._name, error, extra={"action": "probe"})
        finally:
            self._why, self._ended_at = why, time.monotonic()
            self._over.set()


def not_ready(excluded: Collection[str] = ()) -> dict[str, str]:
    """For each check that is not excluded: why it fails, or empty text. Raises `Invalid`."""
    if unknown := set(excluded) - set(CHECKS):
        raise Invalid(f"There is no check {min(unknown)}: exclude some of {', '.join(CHECKS)}.")
    chosen = {name: check for name, check in CHECKS.items() if name not in excluded}
    for check in chosen.values():
        check.begin()
    return {name: check.why_not() for name, check in chosen.items()}


def why_silent(kind: Node.Kind, name: str = "") -> str:
    """Why the beat or worker of this machine, or the worker `name`, is not alive; empty if it is."""
    check = Check(kind, partial(_here, kind, name))
    check.begin()
    return check.why_not()


def _database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _migrations() -> None:
    if _last_migrations() - set(MigrationRecorder(connection).applied_migrations()):
        raise Invalid("some are not applied: run manage.py migrate")


@cache
def _last_migrations() -> frozenset[tuple[str, str]]:
    """The last migration of each app, in the code of this process."""
    return frozenset(MigrationLoader(None).graph.leaf_nodes())


def _broker() -> None:
    with current_app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


def _somewhere(kind: Node.Kind) -> None:
    """A node with a problem, such as one of another installation, does no work."""
    if not Node.objects.live().filter(kind=kind, problem="").exists():
        raise Invalid("none has sent a heartbeat in the last minute")


def _here(kind: Node.Kind, name: str) -> None:
    here = socket.gethostname()
    mine = (
        {"name": name}
        if name
        else {"name__startswith": f"beat@{here} ("}
        if kind == BEAT
        else {"name__endswith": f"@{here}"}
    )
    if not Node.objects.live().filter(kind=kind, **mine).exists():
        raise Invalid(f"no heartbeat of {name or f'a {kind} of {here}'} in the last minute")


CHECKS = {
    "database": Check("database", _database),
    "migrations": Check("migrations", _migrations),
    "broker": Check("broker", _broker),
    "beat": Check("beat", partial(_somewhere, BEAT)),
    "worker": Check("worker", partial(_somewhere, WORKER)),
}
