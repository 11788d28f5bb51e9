"""What may be remembered for a while, by every process? What a function returns that is `cached`.

    @cached("prices", seconds=30)
    def prices() -> dict[str, int]: ...

    invalidate("prices")  # what it returned up to now is served no more

Its one rule: what was computed from data of before an invalidation is not served after it, not even by a process that
was still computing. Values stand under a random token of their name; an invalidation takes the token away, and whoever
began under it stores where nobody looks.

Limits: inside a transaction everything is computed, as others must not see what it may undo. A Redis that is away
breaks nothing: everything is computed, and an invalidation that it misses takes effect when the value is too old. One
that is frozen keeps a process waiting for a second, once in six.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import TypeVar, cast
from uuid import uuid4

from django.core.cache import caches
from django.db import connection, transaction
from redis import exceptions

from jobs.cache.backend import JSON, Cache

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_AFTER = 5.0  # seconds for which a Redis that did not answer is not asked again
NOTHING = object()  # for None may be remembered


@dataclass(frozen=True, slots=True)
class Usage:
    """How often a value was asked for since the cache was emptied last: found, and computed anew."""

    hits: int
    misses: int

    @property
    def hit_rate(self) -> float | None:
        """From 0 to 1; None before it was first asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class UnavailableError(Exception):
    """Redis does not answer: go on without."""


def cached(name: str, seconds: int) -> Callable[[Callable[[], T]], Callable[[], T]]:
    """Remember what a function returns, which must be plain JSON, for so many seconds or until `invalidate(name)`.

    Two processes that find nothing both compute. Raises `NotJSONError` for what cannot be remembered.
    """

    def decorate(function: Callable[[], T]) -> Callable[[], T]:
        @wraps(function)
        def remembered() -> T:
            if connection.in_atomic_block:
                return _checked(function())
            try:
                key, value = _find(name)
            except UnavailableError:
                return _checked(function())
            if value is not NOTHING:
                return cast("T", value)
            result = function()
            with suppress(UnavailableError), _cache() as cache:
                cache.set(key, result, seconds)
            return result

        return remembered

    return decorate


def invalidate(name: str) -> None:
    """Serve no more what was computed up to now; inside a transaction, from when it is committed."""
    transaction.on_commit(partial(_delete, name))


def usage(name: str) -> Usage | None:
    """How often the value of that name was found; None while Redis is away."""
    try:
        with _cache() as cache:
            counts = cache.get_many([f"hits:{name}", f"misses:{name}"])
    except UnavailableError:
        return None
    return Usage(hits=counts.get(f"hits:{name}", 0), misses=counts.get(f"misses:{name}", 0))


def _checked(value: T) -> T:
    """The value, if it could be remembered: what cannot be is refused everywhere, in tests too."""
    JSON().dumps(value)
    return value


def _find(name: str) -> tuple[str, object]:
    """Where the value stands now, and the value, or NOTHING. Raises UnavailableError."""
    with _cache() as cache:
        token = cache.get_or_set(f"token:{name}", lambda: uuid4().hex, timeout=None)
        key = f"value:{name}:{token}"
        value = cache.get(key, NOTHING)
        cache.count(f"misses:{name}" if value is NOTHING else f"hits:{name}")
    return key, value


def _delete(name: str) -> None:
    try:
        with _cache() as cache:
            cache.delete(f"token:{name}")
    except UnavailableError:
        log.warning("%s is served until it is too old: the cache is away.", name, extra={"action": "cache"})


_back_at = 0.0  # of the monotonic clock: until then Redis is not asked


@contextmanager
def _cache() -> Iterator[Cache]:
    """The cache of this thread. Raises UnavailableError, at once if Redis has kept somebody waiting just now."""
    global _back_at  # noqa: PLW0603 - one for all threads, which would wait one after the other
    if time.monotonic() < _back_at:
        raise UnavailableError
    try:
        yield cast("Cache", caches["default"])
    except exceptions.RedisError as error:
        if isinstance(error, exceptions.TimeoutError):
            _back_at = time.monotonic() + RETRY_AFTER
        log.warning("The cache is away, everything is computed: %s", error, extra={"action": "cache"})
        raise UnavailableError from error
