"""How does Django's cache keep values in Redis? As JSON, under keys of its own.

Its one rule: what is read is what was written, whichever process and version of the code reads it; what JSON would
bring back as something else is refused. Pickles would let whoever can write to Redis run code here.

Redis is often the broker's, too: `clear()` takes away the cache's own keys, where Django's would empty the database.
"""

import json
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, NoReturn

from django.core.cache.backends.redis import RedisCache
from django.db.models import Model, QuerySet

PATIENCE = 1.0  # seconds to wait for Redis: without a cache a page is slow, with one that is frozen it would hang
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
    """What should be cached is not plain JSON. The message says what to pass instead."""


class JSON:
    """The form of values in Redis. A whole number stands there as Redis counts it."""

    def dumps(self, value: Any) -> str:
        """Raises `NotJSONError`."""
        try:
            text = json.dumps(value, default=_refuse, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise NotJSONError(f"This cannot be cached: {error}") from error
        if json.loads(text) != value:
            raise NotJSONError(
                "This cannot be cached, for it would come back as something else: pass lists instead of tuples, and"
                " dicts whose keys are text."
            )
        return text

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class Cache(RedisCache):
    """Django's cache on Redis; its settings must name a KEY_PREFIX."""

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        client = {"serializer": JSON, "socket_connect_timeout": PATIENCE, "socket_timeout": PATIENCE}
        super().__init__(server, {**params, "OPTIONS": {**client, **params.get("OPTIONS", {})}})

    def count(self, key: str) -> int:
        """Add one to a number, or to 0 where there is none; atomic, as `incr` is not. Returns the new number."""
        return int(self._cache.get_client(write=True).incr(self.make_and_validate_key(key)))

    def clear(self) -> None:
        """Take away all that was cached, in whatever version, and nothing else."""
        client = self._cache.get_client(write=True)
        keys = client.scan_iter(match=f"{self.key_prefix}:*", count=BATCH)
        while some := list(islice(keys, BATCH)):
            client.unlink(*some)


def _refuse(value: object) -> NoReturn:
    advice = next((advice for kinds, advice in ADVICE.items() if isinstance(value, kinds)), "pass plain values")
    raise TypeError(f"{type(value).__name__} is not JSON, {advice}.")
