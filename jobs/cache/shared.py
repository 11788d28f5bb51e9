"""How do all processes share a computed value for a while? The function that computes it is `cached`.

    @cached("prices", seconds=30)
    def prices(currency: str) -> dict[str, int]: ...

    invalidate("prices")  # the cached values are no longer served, whatever their arguments

Its one rule: after an invalidation, no process serves a value computed from older data, even if the computation was
still running. Each name has a random token, part of its values' keys. An invalidation deletes the token. A process that
began with the old token stores its value under a key that is never read again.

Limits: inside a transaction the function always computes, as a rollback may undo its data. An unavailable Redis breaks
nothing: every call computes. A missed invalidation takes effect when the value expires. A frozen Redis delays a process
by one second in every six.
"""

import hashlib
import inspect
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast
from uuid import uuid4

from django.core.cache import caches
from django.db import connection, transaction
from redis import exceptions

from jobs.cache.backend import JSON, Cache, NotJSONError

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER = 5.0  # seconds without calls to Redis after a timeout
TOKEN = re.compile("[0-9a-f]{32}")
NOTHING = object()  # None may be a cached value


@dataclass(frozen=True, slots=True)
class Usage:
    """Cache hits and misses of a name since the cache was last cleared."""

    hits: int
    misses: int

    @property
    def hit_rate(self) -> float | None:
        """From 0 to 1; None before the first call."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class UnavailableError(Exception):
    """Redis does not answer: continue without it."""


def cached(
    name: str, seconds: int, fits: Callable[[Any], bool] = lambda _: True
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Cache a function's results for `seconds` or until `invalidate(name)`: one for each combination of arguments.

    If `fits` rejects a stored value, as after a change of the code, the function computes it again.

    Arguments and results must be plain JSON. Two processes that miss at the same time both compute. Raises
    `NotJSONError`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @wraps(function)
        def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
            which = _digest(signature.bind(*args, **kwargs))
            if connection.in_atomic_block:
                return _checked(function(*args, **kwargs))
            try:
                key, value = _find(name, which)
            except UnavailableError:
                return _checked(function(*args, **kwargs))
            if value is not NOTHING and fits(value):
                return cast("T", value)
            result = function(*args, **kwargs)
            with suppress(UnavailableError), _cache() as cache:
                cache.set(key, result, seconds)
            return result

        return remembered

    return decorate


def invalidate(name: str) -> None:
    """Stop serving the current value of `name`. Inside a transaction, this takes effect once it is committed."""
    if not _will_delete(name):
        transaction.on_commit(_Deletion(name))


@dataclass(frozen=True, slots=True)
class _Deletion:
    """Deletes the token of a name when it is called."""

    name: str

    def __call__(self) -> None:
        _delete(self.name)


def _will_delete(name: str) -> bool:
    """Whether the last callback of this transaction does the same, and is kept if this savepoint is.

    A transaction that deletes thousands of rows invalidates a name for each of them.
    """
    callbacks = connection.run_on_commit
    if not (connection.in_atomic_block and callbacks):
        return False
    savepoints, callback, *_ = callbacks[-1]
    return callback == _Deletion(name) and savepoints <= set(connection.savepoint_ids)


def usage(name: str) -> Usage | None:
    """The hits and misses of `name`; None while Redis is unavailable."""
    try:
        with _cache() as cache:
            counts = cache.get_many([f"hits:{name}", f"misses:{name}"])
    except UnavailableError:
        return None
    hits, misses = (counts.get(f"{kind}:{name}", 0) for kind in ("hits", "misses"))
    return Usage(hits if type(hits) is int else 0, misses if type(misses) is int else 0)


def _checked(value: T) -> T:
    """Returns the value if it is plain JSON. So a wrong type is refused even if it is not stored, as in tests."""
    JSON().dumps(value)
    return value


def _digest(call: inspect.BoundArguments) -> str:
    """The part of a key that stands for these arguments, however they are passed; empty if there are none.

    Raises `NotJSONError`.
    """
    call.apply_defaults()
    if not call.arguments:
        return ""
    try:
        given = JSON().dumps([list(call.args), dict(sorted(call.kwargs.items()))])
    except NotJSONError as error:
        raise NotJSONError(f"The arguments of a cached function are part of the key. {error}") from error
    return ":" + hashlib.sha256(given.encode()).hexdigest()


def _find(name: str, which: str) -> tuple[str, object]:
    """The current key of the value, and the value or NOTHING. Raises UnavailableError."""
    with _cache() as cache:
        token = cache.get_or_set(f"token:{name}", lambda: uuid4().hex, timeout=None)
        if not (isinstance(token, str) and TOKEN.fullmatch(token)):  # another program wrote it
            token = uuid4().hex
            cache.set(f"token:{name}", token, timeout=None)
        key = f"value:{name}:{token}{which}"
        value = cache.get(key, NOTHING)
        cache.count(f"misses:{name}" if value is NOTHING else f"hits:{name}")
    return key, value


def _delete(name: str) -> None:
    try:
        with _cache() as cache:
            cache.delete(f"token:{name}")
    except UnavailableError:
        log.warning("%s is served until it expires: the cache is unavailable.", name, extra={"action": "cache"})


_back_at = 0.0  # monotonic time; no calls to Redis before it


@contextmanager
def _cache() -> Iterator[Cache]:
    """The cache of this thread. Raises UnavailableError, without a call for RETRY_AFTER seconds after a timeout."""
    global _back_at  # noqa: PLW0603 - shared, or each thread would wait for its own timeout
    if time.monotonic() < _back_at:
        raise UnavailableError
    try:
        yield cast("Cache", caches["default"])
    except exceptions.RedisError as error:
        if isinstance(error, exceptions.TimeoutError):
            _back_at = time.monotonic() + RETRY_AFTER
        log.warning("The cache is unavailable, values are computed: %s", error, extra={"action": "cache"})
        raise UnavailableError from error
