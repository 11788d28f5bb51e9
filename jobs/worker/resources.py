"""What does a worker do with resources? It preloads them, lends them to tasks, drops outdated ones, and reports them.

Its one rule: a process reads the current versions before it first uses a resource, and then every two seconds, in a
thread. So an invalidated resource is dropped everywhere within seconds. Values that were loaded while the database was
unavailable are dropped as soon as the versions can be read: nothing fails, and nothing stays outdated.

Limits: only workers check and report. Elsewhere (web, shell, tests) a resource is kept for its `ttl`, and there is no
thread. A load in a transaction that sees older data (REPEATABLE READ) returns older data, which the process keeps.
"""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any, TypeVar

from celery import Task, signals
from django.db import Error, connection, connections, transaction
from django.db.models import F
from django.db.models.functions import Now

from jobs.cache.resources import Key, Resource, Tally, before_first_use, registry
from jobs.models import Holding, ResourceVersion
from jobs.models.audit import Act, Actor, Changed, Kind, note
from jobs.models.resources import GONE_AFTER
from jobs.rules.errors import logged

log = logging.getLogger(__name__)
T = TypeVar("T")

CHECK_EVERY = 2.0  # seconds between reads of the versions
REPORT_EVERY = 10.0  # seconds, at least, between reports of changed holdings
REPEAT_EVERY = 60.0  # seconds between reports of unchanged holdings
PATIENCE = 5.0  # seconds that the first use waits for the first check, and a shutdown for the removal of the report

_here = ""  # the node name of the worker that this process belongs to
_watch: "_Watch | None" = None
_starting = threading.Lock()
_lent: "ContextVar[_Lent | None]" = ContextVar("lent", default=None)  # the values of the task that executes here


class UnknownResourceError(LookupError):
    """No resource has this name. The message suggests a similar name, or lists all."""

    def __init__(self, name: str, names: Iterable[str]) -> None:
        close = get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(sorted(names)) or 'none'}."
        super().__init__(f"No resource is called {name!r}. {hint}")


class ResourceTask(Task):  # type: ignore[type-arg] # generic for the type checker only
    """The base of a task that uses a resource: `@shared_task(base=ResourceTask, bind=True, resource=prices)`.

    In it, `self.shared` is the value of that resource, and `self.take(rates, "EUR")` a value of any other one. These
    values are not closed before the task is over, even if it fails.
    """

    abstract = True
    resource: Resource[Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Lent() as lent:
            before = _lent.set(lent)
            try:
                return super().__call__(*args, **kwargs)
            finally:
                _lent.reset(before)

    @property
    def shared(self) -> Any:
        if self.resource is None:
            raise TypeError(f"{self.name} has no resource: give its decorator resource=..., or call self.take(...).")
        return self.take(self.resource)

    def take(self, resource: Resource[T], *key: Hashable) -> T:
        lent = _lent.get()
        if lent is None:
            raise RuntimeError(f"{self.name} is not executing: take {resource.name} while the task runs.")
        return lent.take(resource, key)


class _Lent(ExitStack):
    """The values that a task has taken, each taken only once, and all kept until the task is over."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[tuple[Resource[Any], Key], Any] = {}

    def take(self, resource: Resource[T], key: Key) -> T:
        if (resource, key) not in self._values:
            self._values[resource, key] = self.enter_context(resource.use(*key))
        value: T = self._values[resource, key]
        return value


def invalidate(*names: str, actor: Actor | str = "") -> None:
    """Drop these resources: here when the transaction is committed, in every worker within seconds after that.

    In one transaction with the change of their data, it leaves no process with older values. Raises
    `UnknownResourceError`, and then invalidates none.
    """
    actor = Actor.of(actor)
    actor.check_act(Kind.RESOURCE, Act.INVALIDATE)
    known = {*registry, *ResourceVersion.objects.values_list("name", flat=True)}
    for name in names:
        if name not in known:
            raise UnknownResourceError(name, known)
    _have_rows(names)
    versions = ResourceVersion.objects.filter(name__in=names)
    with transaction.atomic():
        versions.update(number=F("number") + 1, invalidated_at=Now(), invalidated_by=actor.name)
        note(actor, Kind.RESOURCE, Act.INVALIDATE, [Changed(name, name) for name in names])
    log.info("Invalidated: %s", ", ".join(names), extra={"action": "invalidate"})
    transaction.on_commit(drop_outdated, robust=True)


def drop_outdated() -> None:
    """Drop the values of this process that are not of the current version."""
    present = dict(ResourceVersion.objects.values_list("name", "number"))
    _have_rows(registry.keys() - present.keys())
    for name, resource in list(registry.items()):
        number = present.get(name, 0)
        if resource.version != number:
            if resource.version is not None:
                log.info("%s is dropped: its version is now %d.", name, number, extra={"action": "invalidate"})
            resource.drop(number)


def _have_rows(names: Collection[str]) -> None:
    if names:
        rows = [ResourceVersion(name=name) for name in names]
        ResourceVersion.objects.bulk_create(rows, ignore_conflicts=True)


class _Watch(threading.Thread):
    """Drops outdated values of this process and reports the rest, until it is stopped."""

    def __init__(self, node: str) -> None:
        super().__init__(name="resources", daemon=True)
        self.has_checked = threading.Event()
        self._over = threading.Event()
        self._process = {"node": node, "pid": os.getpid()}
        self._reported: dict[str, Tally] = {}
        self._reported_at = float("-inf")

    def run(self) -> None:
        self._act(drop_outdated)
        self.has_checked.set()
        while not self._over.wait(CHECK_EVERY):
            self._act(self._check)
        self._act(self._remove_report)
        connection.close()

    def stop(self) -> None:
        self._over.set()
        self.join(PATIENCE)

    def _act(self, what: Callable[[], object]) -> None:
        with logged(log, "The resources of this process could not be checked."):
            try:
                what()
            except Error as error:
                log.info("The versions of resources cannot be read now: %s", str(error).strip())
        connection.close_if_unusable_or_obsolete()

    def _check(self) -> None:
        drop_outdated()
        tallies = {name: resource.tally() for name, resource in list(registry.items())}
        held = {name: tally for name, tally in tallies.items() if tally.hits or tally.misses or tally.entries}
        silent_for = time.monotonic() - self._reported_at
        if silent_for >= REPEAT_EVERY or (silent_for >= REPORT_EVERY and held != self._reported):
            self._report(held)
            self._reported, self._reported_at = held, time.monotonic()

    def _report(self, held: dict[str, Tally]) -> None:
        Holding.objects.filter(seen_at__lt=Now() - GONE_AFTER).delete()
        rows = [
            Holding(resource_id=name, **self._process, **asdict(tally), seen_at=Now()) for name, tally in held.items()
        ]
        Holding.objects.bulk_create(
            rows,
            update_conflicts=True,
            unique_fields=["resource", "node", "pid"],
            update_fields=["entries", "bytes", "hits", "misses", "seen_at"],
        )

    def _remove_report(self) -> None:
        Holding.objects.filter(**self._process).delete()


def _begin() -> None:
    """Start the thread, and wait for its first check, but no longer than `PATIENCE`."""
    global _watch  # noqa: PLW0603 - one thread per process, made when it first uses a resource
    with _starting:
        if _watch is None:
            _watch = _Watch(_here)
            _watch.start()
    _watch.has_checked.wait(PATIENCE)


def _preload() -> None:
    wanted = [resource for resource in registry.values() if resource.preload]
    if not wanted:
        return
    with suppress(Error):
        drop_outdated()
    for resource in wanted:
        # The worker starts anyway: the first job that needs the resource loads it, and fails with the reason.
        with logged(log, "%s could not be preloaded.", resource.name):
            resource.get()
    connections.close_all()  # no child may inherit one
    gc.collect()
    gc.freeze()  # or the garbage collector of each child would mark, and so copy, all shared memory


def _on_worker_init(sender: Any, **_: Any) -> None:
    """In the main process, before it forks."""
    _preload()
    _belong_to(sender.hostname)


def _on_process_init(sender: Any, **_: Any) -> None:
    """In a child: one that was not forked has inherited nothing from its parent."""
    _belong_to(sender)


def _belong_to(node: str) -> None:
    global _here  # noqa: PLW0603 - a process is one worker
    _here = node
    before_first_use(_begin)


def stop(**_: Any) -> None:
    """End the watch of this process's worker. Resources that are used later, as in a test, belong to no worker."""
    before_first_use(_nothing)
    if _watch:
        _watch.stop()


def _nothing() -> None:
    """Begin no watch."""


def _reset_after_fork() -> None:
    """In a forked child: threads do not survive a fork."""
    global _watch, _starting
    _watch, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_reset_after_fork)


def connect() -> None:
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.resources.worker_init")
    signals.worker_process_init.connect(_on_process_init, dispatch_uid="jobs.worker.resources.process_init")
    signals.worker_process_shutdown.connect(stop, dispatch_uid="jobs.worker.resources.process_shutdown")
    signals.worker_shutdown.connect(stop, dispatch_uid="jobs.worker.resources.shutdown")
