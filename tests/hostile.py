"""Hostile items that a program can write to the broker and that Celery never sends, each kind with a name.

Its one rule: an item differs from a message that Celery would publish in one thing, which is its name.
"""

import base64
import bz2
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any
from uuid import uuid4

TASK = "tests.nothing"
BOMB = 17_000_000  # bytes after decompression
ODD: dict[str, Any] = {
    "null": None,
    "a number": 7,
    "a float": 0.5,
    "true": True,
    "text": "x",
    "empty text": "",
    "a list": [1],
    "an empty list": [],
    "an object": {"a": 1},
    "nested lists": [[[[]]]],
    "huge text": "x" * 100_000,
    "control characters": "\x00\x1b[2J\r\n\u202e",
    "a lone surrogate": "\ud800",
    "a huge number": 10**400,
    "a negative number": -1,
}

FEW = {name: ODD[name] for name in ("a number", "text", "a list", "an object", "a lone surrogate")}


def encoded(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def message(**changes: Any) -> dict[str, Any]:
    """A message as Celery puts it into a queue. Given `headers` and `properties` extend its own."""
    task_id = str(uuid4())
    headers = {
        "lang": "py",
        "task": TASK,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "gen1@here",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": str(uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    for name, own in (("headers", headers), ("properties", properties)):
        if isinstance(changes.get(name), dict):
            changes[name] = {**own, **changes[name]}
        changes.setdefault(name, own)
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    whole = {
        "body": encoded([[], {}, embedded]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def without(part: str, name: str) -> dict[str, Any]:
    whole = message()
    del whole[part][name]
    return whole


def items() -> Iterator[tuple[str, bytes]]:
    """Each kind by name, in the form that Redis holds."""
    yield from _raw()
    for name, whole in [*_parts(), *_headers(), *_values(), *_bodies(), *_compressed()]:
        yield name, json.dumps(whole).encode()


def _raw() -> Iterator[tuple[str, bytes]]:
    yield from {
        "an empty item": b"",
        "bytes that are not UTF-8": b"\xff\xfe\x00",
        "text that is not JSON": b"not json",
        "JSON that is cut off": json.dumps(message()).encode()[:-20],
        "NUL bytes": b"\0" * 100,
        "nesting 10,000 deep": b"[" * 10_000 + b"]" * 10_000,
        "objects 10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "a list of a million": json.dumps([0] * 1_000_000).encode(),
        "NaN": b"NaN",
        "an unknown type of kombu": b'{"__type__": "no such type", "__value__": 1}',
        "a broken date of kombu": b'{"__type__": "datetime", "__value__": "yesterday"}',
        "a broken UUID of kombu": b'{"__type__": "uuid", "__value__": {"hex": 5}}',
        "a list as type of kombu": b'{"__type__": [], "__value__": 1}',
        "a number of 5,000 digits": b"9" * 5_000,
    }.items()
    for name, odd in ODD.items():
        yield f"{name} as the item", json.dumps(odd).encode()


def _parts() -> Iterator[tuple[str, Any]]:
    parts = ("body", "headers", "properties", "content-type", "content-encoding")
    for part, name in product(parts, ODD):
        if (part, name) not in {("headers", "an object"), ("properties", "an object")}:
            yield f"{name} as {part}", message(**{part: ODD[name]})
    for part in parts:
        yield f"no {part}", message(**{part: ...})
    for name in ("delivery_tag", "delivery_info", "priority", "body_encoding", "correlation_id", "reply_to"):
        for kind, odd in (ODD if name == "delivery_tag" else FEW).items():
            yield f"{kind} as {name}", message(properties={name: odd})
        yield f"no {name}", without("properties", name)
    for name, kind in product(("exchange", "routing_key"), FEW):
        yield f"{kind} as {name}", message(properties={"delivery_info": {"routing_key": "celery", name: FEW[kind]}})
    yield "a body that is not base64", message(body="=====!")
    yield "a body with a digit too many", message(body="A" * 5)
    for kind in ("application/x-python-serialize", "application/x-yaml", "application/x-msgpack", "text/plain"):
        yield f"content of type {kind}", message(**{"content-type": kind})
    yield "an unknown encoding", message(**{"content-encoding": "no-such-encoding"})
    yield "binary content", message(**{"content-encoding": "binary", "content-type": "application/data"})


def _headers() -> Iterator[tuple[str, Any]]:
    names = ("id", "task", "root_id", "parent_id", "group", "group_index", "timelimit", "eta", "expires", "retries")
    names += ("shadow", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "lang", "meth")
    names += ("stamped_headers", "stamps", "compression", "punctual_attempt", "punctual_step", "punctual_execution")
    names += (
        "args",
        "kwargs",
        "callbacks",
        "errbacks",
        "chain",
        "chord",
        "headers",
        "hostname",
        "delivery_info",
        "get",
    )
    names += (
        "periodic_task_name",
        "utc",
        "called_directly",
        "is_eager",
        "redelivered",
        "clock",
        "properties",
        "as_task_v1",
    )
    for name in names:
        for kind, odd in (ODD if name in ("id", "task", "timelimit", "eta") else FEW).items():
            yield f"{kind} as header {name}", message(headers={name: odd})
    for name in ("id", "task", "timelimit", "retries", "root_id", "lang"):
        yield f"no header {name}", without("headers", name)


def _values() -> Iterator[tuple[str, Any]]:
    for kind, limit in {
        "one element": [5],
        "three elements": [1, 2, 3],
        "texts": ["5", "5"],
        "lists": [[1], [2]],
        "an object": [{}, {}],
        "negative": [-1, -1],
        "huge": [10**400, 10**400],
        "infinite": [float("inf"), float("nan")],
    }.items():
        yield f"{kind} as elements of timelimit", message(headers={"timelimit": limit})
    for name in ("eta", "expires"):
        for kind, moment in {
            "an impossible date": "2026-02-30T00:00:00",
            "the year 1": "0001-01-01T00:00:00+14:00",
            "the year 9999": "9999-12-31T23:59:59-14:00",
            "a year of six digits": "999999-01-01T00:00:00",
            "the past": "1970-01-01T00:00:00+00:00",
        }.items():
            yield f"{kind} as {name}", message(headers={name: moment})
    for kind, step in {
        "no UUID": ["x", 1, "y"],
        "a long list": [str(uuid4()), 1, "x"] * 1_000,
        "an attempt that is not a number": [str(uuid4()), "one", "y"],
        "a huge attempt": [str(uuid4()), 10**30, "y"],
        "a list as key": [str(uuid4()), 1, ["y"]],
        "a lone surrogate as key": [str(uuid4()), 1, "\ud800"],
        "NUL as key": [str(uuid4()), 1, "\0"],
        "no such step": [str(uuid4()), 1, "y"],
    }.items():
        yield f"{kind} as punctual_step", message(headers={"punctual_step": step})
    for kind, attempt in {"no such run": 1, "a huge attempt": 10**30, "minus one": -1, "NaN": float("nan")}.items():
        yield f"{kind} as punctual_attempt", message(headers={"punctual_attempt": attempt})


def _bodies() -> Iterator[tuple[str, Any]]:
    for name, odd in ODD.items():
        with suppress(ValueError):
            yield f"{name} as decoded body", message(body=encoded(odd))
            yield f"{name} as args", message(body=encoded([odd, {}, {}]))
            yield f"{name} as kwargs", message(body=encoded([[], odd, {}]))
            yield f"{name} as embedded", message(body=encoded([[], {}, odd]))
    for name, odd in FEW.items():
        for part in ("callbacks", "errbacks", "chain", "chord"):
            yield f"{name} as {part}", message(body=encoded([[], {}, {part: odd}]))
            yield f"{name} in {part}", message(body=encoded([[], {}, {part: [odd]}]))
    yield "two parts", message(body=encoded([[], {}]))
    yield "four parts", message(body=encoded([[], {}, {}, {}]))
    yield "a body nested 10,000 deep", message(body=base64.b64encode(b"[" * 10_000 + b"]" * 10_000).decode())
    yield "a body of a million numbers", message(body=encoded([[0] * 1_000_000, {}, {}]))
    yield (
        "an embedded name of the request",
        message(body=encoded([[], {}, {"id": [], "hostname": 5, "timelimit": "x"}])),
    )
    first = {"task": TASK, "id": str(uuid4()), "args": [], "kwargs": {}, "retries": 0}
    for name, odd in FEW.items():
        for part in ("id", "args", "kwargs", "retries", "timelimit", "eta", "expires", "taskset", "callbacks", "utc"):
            whole = message(headers={}, body=encoded({**first, part: odd}))
            yield f"{name} as {part} of protocol 1", {**whole, "headers": {}}
    yield "protocol 1 without an id", {**message(body=encoded({"task": TASK})), "headers": {}}


def _compressed() -> Iterator[tuple[str, Any]]:
    whole = b'[["' + b"x" * BOMB + b'"], {}, {}]'
    packed = {"gzip": zlib.compress(whole, 1), "bzip2": bz2.compress(whole, 1), "lzma": lzma.compress(whole, preset=0)}
    with suppress(ImportError):
        from backports import zstd

        packed["zstd"] = zstd.compress(whole)
    for name, content in packed.items():
        body = base64.b64encode(content).decode()
        yield f"a bomb by {name}", message(body=body, headers={"compression": name})
    for name in packed:
        yield f"no content of {name}", message(headers={"compression": name})
    yield "an unknown compression", message(headers={"compression": "no-such"})


def unacked() -> Iterator[tuple[str, bytes]]:
    """Hostile items for the hash of unacknowledged messages, each kind by name."""
    wholes = [message(**{part: odd}) for part in ("body", "headers", "properties") for odd in FEW.values()]
    for name, item in [*_raw(), *((f"whole {n}", json.dumps(whole).encode()) for n, whole in enumerate(wholes))]:
        yield name, item
        with suppress(ValueError, RecursionError):
            yield f"{name}, with an exchange", json.dumps([json.loads(item), "", "celery"]).encode()
    for name, odd in ODD.items():
        yield f"{name} as its exchange", json.dumps([message(), odd, "celery"]).encode()
        yield f"{name} as its routing key", json.dumps([message(), "", odd]).encode()


def commands() -> Iterator[tuple[str, bytes]]:
    """Items on the channel of the remote control, each kind by name."""
    yield from _raw()
    info = {"exchange": "celery.pidbox", "routing_key": ""}
    good = {"method": "ping", "arguments": {}, "destination": None, "pattern": None, "matcher": None}

    def command(**changes: Any) -> bytes:
        whole = message(body=encoded({**good, **changes}), properties={"delivery_info": info}, headers={})
        return json.dumps({**whole, "headers": {"clock": 1, **changes.get("headers", {})}}).encode()

    for name, odd in FEW.items():
        for part in ("method", "arguments", "destination", "pattern", "matcher", "reply_to", "ticket"):
            yield f"{name} as {part}", command(**{part: odd})
        yield f"{name} as a part of reply_to", command(reply_to={"exchange": odd, "routing_key": "x"}, ticket="x")
        yield f"{name} as clock", command(headers={"clock": odd})
        yield f"{name} as a command", json.dumps(message(body=encoded(odd))).encode()
        for part in ("headers", "properties", "body", "content-type"):
            yield f"{name} as {part} of a command", json.dumps(message(**{part: odd})).encode()
    yield "a pattern that takes for ever", command(pattern="(.*)*(.*)*(.*)*x", matcher="pcre")
    yield "an argument with the name of another", command(arguments={"state": 1})
