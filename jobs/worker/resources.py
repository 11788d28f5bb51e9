"""What does a worker do about its resources? It preloads them, lends them to tasks, drops what is outdated, and tells.

Its one rule: no process hands out a resource before it has looked which version is the present one, and from then on
it looks every two seconds, in a thread of its own. So what is invalidated is gone everywhere within seconds. What was
loaded while the database was away is dropped when the versions can be read: nothing fails, nothing stays outdated.

Limits: only workers look and tell. Elsewhere (web, shell, tests) a resource is kept for its `ttl`, and there is no
thread. A load in a transaction that sees older data (REPEATABLE READ) brings older data, and they are kept.
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
from jobs.models.audit import Actor, note
from jobs.models.resources import GONE_AFTER
from jobs.rules.errors import logged

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_EVERY = 2.0  # seconds
TELL_EVERY = 10.0  # seconds, at most, where something has changed
REPEAT_EVERY = 60.0  # seconds, where nothing has
PATIENCE = 5.0  # seconds that a first use waits for the first look, and an end for the goodbye

_here = ""  # the node name of the worker that this process belongs to
_watch: "_Watch | None" = None
_starting = threading.Lock()
_lent: "ContextVar[_Lent | None]" = ContextVar("lent", default=None)  # to the task that executes here


class UnknownResourceError(LookupError):
    """No resource has this name. The message names one that is spelled alike, or all."""

    def __init__(self, name: str, names: Iterable[str]) -> None:
        close = get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(sorted(names)) or 'none'}."
        super().__init__(f"No resource is called {name!r}. {hint}")


class ResourceTask(Task):  # type: ignore[type-arg] # generic for the type checker only
    """The base of a task that works with a resource: `@shared_task(base=ResourceTask, bind=True, resource=prices)`.

    In it, `self.shared` is the value of that resource, and `self.take(rates, "EUR")` that of any other one. What is
    taken is not closed before the task is over, however it ends.
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
            raise TypeError(f"{self.name} shares nothing: give its decorator resource=..., or call self.take(...).")
        return self.take(self.resource)

    def take(self, resource: Resource[T], *key: Hashable) -> T:
        lent = _lent.get()
        if lent is None:
            raise RuntimeError(f"{self.name} is not executing: there is nobody to take {resource.name} back from.")
        return lent.take(resource, key)


class _Lent(ExitStack):
    """What a task has taken: each value once, however often it asks, and all of it until the task is over."""

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

    In one transaction with a change of their data, no process keeps values loaded before the change. Raises
    `UnknownResourceError`, and then invalidates none.
    """
    actor = Actor.of(actor)
    known = {*registry, *ResourceVersion.objects.values_list("name", flat=True)}
    for name in names:
        if name not in known:
            raise UnknownResourceError(name, known)
    _have_rows(names)
    versions = ResourceVersion.objects.filter(name__in=names)
    versions.update(number=F("number") + 1, invalidated_at=Now(), invalidated_by=actor.name)
    note(actor, ResourceVersion, ((name, name) for name in names), "Invalidated.")
    log.info("Invalidated: %s", ", ".join(names), extra={"action": "invalidate"})
    transaction.on_commit(look, robust=True)


def look() -> None:
    """Drop what this process holds of another version than the present one."""
    present = dict(ResourceVersion.objects.values_list("name", "number"))
    _have_rows(registry.keys() - present.keys())
    for name, resource in list(registry.items()):
        number = present.get(name, 0)
        if resource.version != number:
            if resource.version is not None:
                log.info("%s is dropped: its version is %d now.", name, number, extra={"action": "invalidate"})
            resource.drop(number)


def _have_rows(names: Collection[str]) -> None:
    if names:
        rows = [ResourceVersion(name=name) for name in names]
        ResourceVersion.objects.bulk_create(rows, ignore_conflicts=True)


class _Watch(threading.Thread):
    """Looks and tells for this process, until it is stopped."""

    def __init__(self, node: str) -> None:
        super().__init__(name="resources", daemon=True)
        self.has_looked = threading.Event()
        self._over = threading.Event()
        self._process = {"node": node, "pid": os.getpid()}
        self._told: dict[str, Tally] = {}
        self._told_at = float("-inf")

    def run(self) -> None:
        self._act(look)
        self.has_looked.set()
        while not self._over.wait(LOOK_EVERY):
            self._act(self._look_and_tell)
        self._act(self._say_goodbye)
        connection.close()

    def stop(self) -> None:
        self._over.set()
        self.join(PATIENCE)

    def _act(self, what: Callable[[], object]) -> None:
        with logged(log, "The resources of this process could not be looked after."):
            try:
                what()
            except Error as error:
                log.info("The versions of resources cannot be read at present: %s", str(error).strip())
        connection.close_if_unusable_or_obsolete()

    def _look_and_tell(self) -> None:
        look()
        tallies = {name: resource.tally() for name, resource in list(registry.items())}
        held = {name: tally for name, tally in tallies.items() if tally.hits or tally.misses or tally.entries}
        silent_for = time.monotonic() - self._told_at
        if silent_for >= REPEAT_EVERY or (silent_for >= TELL_EVERY and held != self._told):
            self._tell(held)
            self._told, self._told_at = held, time.monotonic()

    def _tell(self, held: dict[str, Tally]) -> None:
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

    def _say_goodbye(self) -> None:
        Holding.objects.filter(**self._process).delete()


def _begin() -> None:
    """Look, and go on looking. Where the first look takes too long, the use does not wait for it."""
    global _watch  # noqa: PLW0603 - one thread per process, made when it first uses a resource
    with _starting:
        if _watch is None:
            _watch = _Watch(_here)
            _watch.start()
    _watch.has_looked.wait(PATIENCE)


def _preload() -> None:
    wanted = [resource for resource in registry.values() if resource.preload]
    if not wanted:
        return
    with suppress(Error):
        look()
    for resource in wanted:
        # The worker can do without: the first job that needs it loads it, and fails with the reason.
        with logged(log, "%s could not be preloaded.", resource.name):
            resource.get()
    connections.close_all()  # no child is to inherit one
    gc.collect()
    gc.freeze()  # or the collector of each child would mark, and so copy, every page of what they share


def _on_worker_init(sender: Any, **_: Any) -> None:
    """In the main process, before it forks."""
    _preload()
    _belong_to(sender.hostname)


def _on_process_init(sender: Any, **_: Any) -> None:
    """In a child: where it was not forked, it knows nothing of its parent."""
    _belong_to(sender)


def _belong_to(node: str) -> None:
    global _here  # noqa: PLW0603 - a process is one worker
    _here = node
    before_first_use(_begin)


def _on_shutdown(**_: Any) -> None:
    if _watch:
        _watch.stop()


def _forget() -> None:
    """In a forked child: threads do not survive a fork."""
    global _watch, _starting
    _watch, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def connect() -> None:
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.resources.worker_init")
    signals.worker_process_init.connect(_on_process_init, dispatch_uid="jobs.worker.resources.process_init")
    signals.worker_process_shutdown.connect(_on_shutdown, dispatch_uid="jobs.worker.resources.process_shutdown")
    signals.worker_shutdown.connect(_on_shutdown, dispatch_uid="jobs.worker.resources.shutdown")
