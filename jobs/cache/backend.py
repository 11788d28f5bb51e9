"""How does Django's cache keep values in Redis? As JSON, under keys with the cache's prefix.

Its one rule: every process and every version of the code reads the value that was written. A value that JSON would
change is refused. Pickles would let anyone who can write to Redis run code here. Pages, which Django's `cache_page`
stores, have a JSON of their own.

A value under the cache's keys that it cannot read counts as missing, and the reader deletes it.

Redis is often the broker, too. So `clear()` deletes only the cache's own keys. Django's would empty the database.
"""

import json
from collections.abc import Callable, Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, NoReturn

from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from django.db.models import Model, QuerySet
from django.http import HttpResponse
from redis.exceptions import ResponseError

from jobs.cache import pages

PATIENCE = 1.0  # seconds to wait for Redis: a page without a cache is slow, one with a frozen cache would hang
BATCH = 1000  # keys in one command
_MISSING = object()

# The errors of Redis for a list or a hash under one of our keys, and for a counter that it cannot increment.
ANOTHER_KIND, NO_NUMBER = "WRONGTYPE", ("value is not an integer", "increment or decrement would overflow")

ADVICE: dict[type | tuple[type, ...], str] = {
    Model: "pass a dict of plain values, such as values() of its manager gives",
    QuerySet: "pass list(queryset.values(...))",
    (date, time): "pass its isoformat()",
    timedelta: "pass its total_seconds()",
    Decimal: "pass it as text",
    (set, frozenset): "pass a sorted list",
}


# The prefixes of Django's keys of pages, each with a test of the values that Django expects there.
PAGES: dict[str, Callable[[Any], bool]] = {
    "views.decorators.cache.cache_header.": lambda value: (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ),
    "views.decorators.cache.cache_page.": lambda value: isinstance(value, HttpResponse),
}


class NotJSONError(TypeError):
    """The value is not plain JSON. The message says which value to pass instead."""


class UnreadableError(ValueError):
    """This cache did not write the stored text."""


class JSON:
    """The serializer of cached values. It writes a whole number so that Redis can increment it."""

    def dumps(self, value: Any) -> str:
        """Raises `NotJSONError`."""
        if isinstance(value, HttpResponse):
            return pages.as_text(value)
        try:
            text = json.dumps(value, default=_refuse, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise NotJSONError(f"This cannot be cached: {error}") from error
        if json.loads(text) != value:
            raise NotJSONError(
                "This cannot be cached: it would come back as another value. Pass lists instead of tuples, and dicts"
                " whose keys are text."
            )
        return text

    def loads(self, data: bytes) -> Any:
        """Raises `UnreadableError`."""
        try:
            text = data.decode()
            return pages.from_text(text) if text.startswith(pages.MARK) else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(str(error)) from error


class Client(RedisCacheClient):
    """Deletes values that it cannot read. `get_many` leaves them out."""

    def get(self, key: Any, default: Any) -> Any:
        try:
            return super().get(key, default)
        except UnreadableError:
            self.delete(key)
        except ResponseError as error:
            if not str(error).startswith(ANOTHER_KIND):
                raise
            self.delete(key)
        return default

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        found = ((key, self.get(key, _MISSING)) for key in keys)
        return {key: value for key, value in found if value is not _MISSING}

    def count(self, key: str) -> int:
        client = self.get_client(key, write=True)
        try:
            return int(client.incr(key))
        except ResponseError as error:
            if not str(error).startswith((ANOTHER_KIND, *NO_NUMBER)):
                raise
        client.set(key, 1)
        return 1


class Cache(RedisCache):
    """Django's cache on Redis. Its settings must have a KEY_PREFIX."""

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        client = {"serializer": JSON, "socket_connect_timeout": PATIENCE, "socket_timeout": PATIENCE}
        super().__init__(server, {**params, "OPTIONS": {**client, **params.get("OPTIONS", {})}})
        self._class = Client

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """The value. Under the keys of `cache_page`, a value that Django did not write counts as missing."""
        value = super().get(key, default, version)
        return default if any(str(key).startswith(of) and not fits(value) for of, fits in PAGES.items()) else value

    def count(self, key: str) -> int:
        """Add 1 to a number, or to 0 if the key is missing. Atomic, unlike `incr`. Returns the new number."""
        client: Any = self._cache
        return int(client.count(self.make_and_validate_key(key)))

    def clear(self) -> None:
        """Delete all cached values of every version, and no other keys."""
        client = self._cache.get_client(write=True)
        keys = client.scan_iter(match=f"{self.key_prefix}:*", count=BATCH)
        while some := list(islice(keys, BATCH)):
            client.unlink(*some)


def _refuse(value: object) -> NoReturn:
    advice = next((advice for kinds, advice in ADVICE.items() if isinstance(value, kinds)), "pass plain values")
    raise TypeError(f"{type(value).__name__} is not JSON, {advice}.")
