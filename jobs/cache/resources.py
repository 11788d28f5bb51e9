"""How do the jobs of a process share a value that is expensive to load? It is loaded once and kept for all of them.

    prices = Resource("prices", load_prices, ttl=3600)         # prices.get()
    rates = Resource("rates", load_rates_of, limit=50)         # rates.get("EUR") calls load_rates_of("EUR") once

Its one rule: a value stays usable until its last user is done. A dropped value (newer entries needed its room, it
expired, or it was invalidated) lives on while a job uses it. A value that must be closed is therefore only lent:
`with connections.use() as connection`.

Limits: jobs share the same object and must not change it. The limits of entries and bytes count kept values only.
Dropped values still in use come on top. A load that never returns blocks every caller that asks for the same key.
"""

import logging
import math
import os
import re
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from jobs.rules.errors import logged

log = logging.getLogger(__name__)
T = TypeVar("T")
Key = tuple[Hashable, ...]

NAME = re.compile(r"\A\w[\w.-]{0,99}\Z")  # names appear in rows, commands and folder names
SAMPLES = (1_000, 50, 10)  # items sampled from one container, by its depth; deeper ones: 3

_lock = threading.RLock()  # guards the bookkeeping of all resources; never held while user code runs
_hook: Callable[[], None] | None = None  # see `before_first_use`
_unused: Callable[[], None] | None = None  # the same, until this process has used a resource


@dataclass(frozen=True, slots=True)
class Tally:
    """The size of a resource in this process, and its hits and misses since the process began."""

    entries: int
    bytes: int
    hits: int  # calls that needed no load of their own
    misses: int  # completed loads, failed ones included


def size_of(value: Any) -> int:
    """Estimates the memory of a value in bytes: its buffer, or the object and the contents of its containers.

    It samples large containers and counts each object once. It cannot see into objects with `__slots__` and most C
    extensions. Of those it counts only the object itself. Pass your own `size` for such a resource.
    """
    if isinstance(nbytes := getattr(value, "nbytes", None), int):
        return nbytes
    total, seen, left = 0.0, set(), [(value, 1.0, 0)]
    while left:
        each, weight, depth = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            total += sys.getsizeof(each) * weight
            most = SAMPLES[depth] if depth < len(SAMPLES) else 3
            for part in _contents(each):
                sample = list(islice(part, 0, None, max(1, -(-len(part) // most))))
                left += ((item, weight * len(part) / len(sample), depth + 1) for item in sample)
    return round(total)


def _contents(value: Any) -> tuple[Collection[Any], ...]:
    if isinstance(value, dict):
        return value.keys(), value.values()
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return (value,)
    inside = getattr(value, "__dict__", None)
    return ([inside],) if isinstance(inside, dict) else ()


@dataclass(slots=True)
class Entry(Generic[T]):
    """A loaded value with its number of users."""

    value: T
    size: int  # bytes
    expires_at: float  # by the clock of its resource
    users: int = 0
    kept: bool = False
    closed: bool = False


@dataclass(slots=True)
class _Load(Generic[T]):
    """A load in progress. The loading thread holds its lock. Waiting threads acquire it one after another."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    entry: Entry[T] | None = None
    error: Exception | None = None


@dataclass(eq=False, repr=False)
class Resource(Generic[T]):
    """Values of one kind, which `load` makes from their keys and all jobs of this process share.

    It keeps at most `limit` entries and `limit_bytes`, measured by `size`. It drops the least recently used first. A
    value expires `ttl` seconds after its load began. `close` receives each dropped value after its last use. With
    `preload`, a worker loads the value without a key before it forks, so that its children start with it.
    """

    name: str
    load: Callable[..., T]
    _: KW_ONLY
    limit: int = 10
    limit_bytes: float = math.inf
    ttl: float = math.inf
    size: Callable[[T], int] = size_of
    close: Callable[[T], object] | None = None
    preload: bool = False
    clock: Callable[[], float] = time.monotonic

    version: int | None = field(default=None, init=False)  # of new loads, once `drop` has set one
    _entries: OrderedDict[Key, Entry[T]] = field(default_factory=OrderedDict, init=False)
    _loads: dict[Key, _Load[T]] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    _hits: int = field(default=0, init=False)
    _misses: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise ValueError(f"{self.name!r} cannot be a resource's name: use up to 100 letters, digits, . _ and -.")
        if not isinstance(self.limit, int) or self.limit < 1:
            raise ValueError(f"The limit of {self.name} is {self.limit!r}: it must be 1 entry or more.")
        for option in ("ttl", "limit_bytes"):
            if not isinstance(number := getattr(self, option), (int, float)) or not number >= 0:
                raise ValueError(f"The {option} of {self.name} is {number!r}: it must be a number of 0 or more.")
        if not callable(self.load):
            raise TypeError(f"{self.name} needs a function that loads it, not {self.load!r}.")
        if self.preload and self.close:
            raise ValueError(f"{self.name} has a close, so forked processes cannot share it: remove preload.")
        if registry.setdefault(self.name, self) is not self:
            raise ValueError(f"There is already a resource called {self.name}: choose another name.")

    def get(self, *key: Hashable) -> T:
        """The value of this key, loaded if necessary. Raises the errors of `load`, which are not kept."""
        if self.close:
            raise TypeError(f"{self.name} is closed when it is dropped: write `with {self.name}.use() as value`.")
        return self._take(key).value

    @contextmanager
    def use(self, *key: Hashable) -> Iterator[T]:
        """Like `get`, but the value stays open until the end of the block, even if its entry is dropped."""
        entry = self._take(key)
        try:
            yield entry.value
        finally:
            with _lock:
                entry.users -= 1
            self._close_unused([entry])

    def drop(self, version: int | None = None) -> None:
        """Drop all values and the results of running loads. Later loads belong to `version`."""
        with _lock:
            self.version = self.version if version is None else version
            self._loads.clear()
            dropped = [self._remove(key) for key in list(self._entries)]
        self._close_unused(dropped)

    def tally(self) -> Tally:
        with _lock:
            return Tally(len(self._entries), self._bytes, self._hits, self._misses)

    def _take(self, key: Key) -> Entry[T]:
        """The entry of this key, with its users increased by one."""
        if _unused:
            _tell_of_first_use()
        while True:
            with _lock:
                if entry := self._fresh(key):
                    return self._hit(entry)
                load = self._loads.setdefault(key, _Load())
            if entry := self._wait_for(load, key):
                return entry

    def _fresh(self, key: Key) -> Entry[T] | None:
        entry = self._entries.get(key)
        if entry is None or entry.expires_at <= self.clock():
            return None
        self._entries.move_to_end(key)
        return entry

    def _hit(self, entry: Entry[T]) -> Entry[T]:
        entry.users += 1
        self._hits += 1
        return entry

    def _wait_for(self, load: _Load[T], key: Key) -> Entry[T] | None:
        """The entry of this load, which this thread may execute itself. None if the entry is already closed again."""
        with load.lock:
            if load.error is not None:
                raise load.error
            if load.entry is None:  # this thread is the first, or the earlier ones were interrupted
                return self._run(load, key)
        with _lock:
            return None if load.entry.closed else self._hit(load.entry)

    def _run(self, load: _Load[T], key: Key) -> Entry[T]:
        try:
            entry = self._make(key)
        except SoftTimeLimitExceeded:  # concerns this job, not the resource: the next waiting thread loads
            raise
        except Exception as error:  # any error of the user's `load`: the waiting threads raise it, too
            load.error = error
            with _lock:
                self._misses += 1
                self._end(load, key)
            raise
        with _lock:
            self._misses += 1
            entry.users = 1
            load.entry = entry
            dropped = self._keep(key, entry) if self._end(load, key) else []
        self._close_unused(dropped)
        if entry.size > self.limit_bytes:
            log.warning("%s: %d bytes exceed its limit_bytes and are loaded again for each use.", self.name, entry.size)
        return entry

    def _make(self, key: Key) -> Entry[T]:
        began = self.clock()
        value = self.load(*key)
        with ExitStack() as on_error:  # without an entry, no other code would close the value
            on_error.callback(self._close, value)
            size = int(self.size(value))
            on_error.pop_all()
        return Entry(value, size, began + self.ttl)

    def _end(self, load: _Load[T], key: Key) -> bool:
        """Let no further thread wait for this load. False: it began before an invalidation; do not keep its entry."""
        if self._loads.get(key) is not load:
            return False
        del self._loads[key]
        return True

    def _keep(self, key: Key, entry: Entry[T]) -> list[Entry[T]]:
        """Keep an entry. Returns the entries dropped for it."""
        now = self.clock()
        dropped = [self._remove(old) for old in list(self._entries) if self._entries[old].expires_at <= now]
        if entry.size > self.limit_bytes:
            return dropped
        self._entries[key] = entry
        self._bytes += entry.size
        entry.kept = True
        while len(self._entries) > self.limit or self._bytes > self.limit_bytes:
            dropped.append(self._remove(next(iter(self._entries))))
        return dropped

    def _remove(self, key: Key) -> Entry[T]:
        entry = self._entries.pop(key)
        self._bytes -= entry.size
        entry.kept = False
        return entry

    def _close_unused(self, entries: Iterable[Entry[T]]) -> None:
        """Close entries that are neither kept nor used. An entry in use comes back here after its last use."""
        if self.close is None:
            return
        for entry in entries:
            with _lock:
                if entry.kept or entry.users or entry.closed:
                    continue
                entry.closed = True
            self._close(entry.value)

    def _close(self, value: T) -> None:
        # A job must not fail over a value that another job left.
        with logged(log, "%s: a dropped value could not be closed.", self.name):
            if self.close:
                self.close(value)

    def _inherit(self) -> None:
        """In a forked child: reset loads and counts, which belong to the parent. Keep values that need no `close`."""
        self._loads.clear()
        self._hits = self._misses = 0
        if self.close:
            _parents.extend(self._entries.values())
            self._entries.clear()
            self._bytes = 0


registry: dict[str, Resource[Any]] = {}  # all resources of this process, by name
_parents: list[Entry[Any]] = []  # a parent's values; garbage collection could close a connection that the parent uses


def before_first_use(hook: Callable[[], None]) -> None:
    """Call `hook` before the first use of any resource, in this process and in each process forked from it.

    Concurrent threads may each call it. Each waits for its own call.
    """
    global _hook, _unused  # noqa: PLW0603 - a process has one hook
    _hook = _unused = hook


def _tell_of_first_use() -> None:
    global _unused  # noqa: PLW0603 - see above
    if hook := _unused:
        hook()
        _unused = None


def _in_child() -> None:
    global _unused  # noqa: PLW0603 - see above
    _unused = _hook
    for resource in registry.values():
        resource._inherit()
    _lock.release()


# Held during the fork, so that no child starts with half-finished bookkeeping of another thread.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)
