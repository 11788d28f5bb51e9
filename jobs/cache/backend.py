"""How does Django's cache keep values in Redis? As JSON, under keys with the cache's prefix.

Its one rule: every process and every version of the code reads the value that was written. A value that JSON would
change is refused. Pickles would let anyone who can write to Redis run code here. Pages, which Django's `cache_page`
stores, have a JSON of their own.

Redis is often the broker, too. So `clear()` deletes only the cache's own keys. Django's would empty the database.
"""

import json
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, NoReturn

from django.core.cache.backends.redis import RedisCache
from django.db.models import Model, QuerySet
from django.http import HttpResponse

from jobs.cache import pages

PATIENCE = 1.0  # seconds to wait for Redis: a page without a cache is slow, one with a frozen cache would hang
BATCH = 1000  # keys in one command

ADVICE: dict[type | tuple[type, ...], str] = {
    Model: "pass a dict of plain values, such as values() of its manager gives",
    QuerySet: "pass list(queryset.values(...))",
    (date, time): "pass its isoformat()",
    timedelta: "pass its total_seconds()",
    Decimal: "pass it as text",
    (set, frozenset): "pass a sorted list",
}


class NotJSONError(TypeError):
    """The value is not plain JSON. The message says which value to pass instead."""


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
        text = data.decode()
        return pages.from_text(text) if text.startswith(pages.MARK) else json.loads(text)


class Cache(RedisCache):
    """Django's cache on Redis. Its settings must have a KEY_PREFIX."""

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        client = {"serializer": JSON, "socket_connect_timeout": PATIENCE, "socket_timeout": PATIENCE}
        super().__init__(server, {**params, "OPTIONS": {**client, **params.get("OPTIONS", {})}})

    def count(self, key: str) -> int:
        """Add 1 to a number, or to 0 if the key is missing. Atomic, unlike `incr`. Returns the new number."""
        return int(self._cache.get_client(write=True).incr(self.make_and_validate_key(key)))

    def clear(self) -> None:
        """Delete all cached values of every version, and no other keys."""
        client = self._cache.get_client(write=True)
        keys = client.scan_iter(match=f"{self.key_prefix}:*", count=BATCH)
        while some := list(islice(keys, BATCH)):
            client.unlink(*some)


def _refuse(value: object) -> NoReturn:
    advice = next((advice for kinds, advice in ADVICE.items() if isinstance(value, kinds)), "pass plain values")
    raise TypeError(f"{type(value).__name__} is not JSON, {advice}.")
