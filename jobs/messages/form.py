"""Can a worker read this item of its queue? Checks the form of an item before kombu and Celery read it.

Its one rule: a message has exactly the form in which Celery sends it. In kombu and Celery 5.7, a value of another form
ends the worker, some again at each restart. Each function returns the fault of an item as a sentence, or an empty text.
Limits: the names and values of an application's own headers, and the contents of a signature, stay unchecked: errors in
them fail a task, not a worker. The size of decompressed content is limited for gzip, bzip2, lzma and zstd.
"""

import base64
import bz2
import lzma
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from math import isfinite
from typing import Any
from uuid import UUID

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import compression
from kombu.utils.json import loads

from jobs.rules import queues

LARGEST = 16 * 1024 * 1024  # bytes of a message after decompression
LONGEST_ID = 1_000  # characters of an id or a name
MOST_MEMORY = 128 * 1024 * 1024  # bytes that lzma may use; its highest preset needs 65 MB
LARGEST_COUNT = 2**31 - 1
LARGEST_CLOCK = 2**53
LARGEST_ATTEMPT = 32_767  # the column `attempt` of a run is a small integer
LONGEST_LIMIT = 10.0**10  # seconds
# The errors that kombu raises for items of another form.
ODD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Unreadable(ValueError):  # noqa: N818 - describes the message
    """A worker cannot take this message. The text says why."""


ENCODINGS = ("", "base64", "utf-8")


def _is_text(value: Any) -> bool:
    """Whether the value is text without lone surrogates, which no encoding has."""
    if not isinstance(value, str):
        return False
    with suppress(UnicodeEncodeError):
        return value.isascii() or bool(value.encode())
    return False


def _is_id(value: Any) -> bool:
    """A printable text, or what senders give in its place: a UUID or a number."""
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST_ID and value.isprintable()
    return isinstance(value, (UUID, int)) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _is_id(value)


def _is_line(value: Any) -> bool:
    """Text that a log may show: it begins no line of its own."""
    return value is None or (isinstance(value, str) and value.isprintable())


def _is_reference(value: Any) -> bool:
    return value is None or value == "" or _is_id(value)


def _is_optional_text(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and 0 <= value <= LARGEST_COUNT)


def _is_attempt(value: Any) -> bool:
    return value is None or (isinstance(value, int) and 1 <= value <= LARGEST_ATTEMPT)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int))


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 <= value <= LONGEST_LIMIT and isfinite(value))


def _are_limits(value: Any) -> bool:
    return value is None or (_is_list(value) and len(value) == 2 and all(map(_is_limit, value)))


def _is_moment(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, str):
        return False
    with suppress(ValueError, TypeError, AttributeError, OverflowError):
        moment: Any = maybe_iso8601(value)
        moment = maybe_make_aware(moment, UTC)
        return isinstance(moment, datetime) and abs(moment.astimezone(UTC).timestamp()) >= 0
    return False


def _is_step(value: Any) -> bool:
    if value is None:
        return True
    return _is_list(value) and len(value) in (2, 3) and all(isinstance(part, (str, int)) for part in value)


def _are_names(value: Any) -> bool:
    return value is None or (_is_list(value) and all(map(_is_text, value)))


def _is_mapping(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_address(exchange: Any, routing_key: Any) -> bool:
    return _is_text(exchange) and _is_text(routing_key) and bool(exchange or routing_key)


def _is_signature(value: Any) -> bool:
    if not isinstance(value, Mapping) or not _is_name(value.get("task")):
        return False
    return all(_is_mapping(value.get(part)) for part in ("options", "kwargs"))


def _are_signatures(value: Any) -> bool:
    return value is None or _is_signature(value) or (_is_list(value) and all(map(_is_signature, value)))


# The fields of a task's message: its headers, or in protocol 1 its body.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "task": _is_name,
    "id": _is_id,
    **dict.fromkeys(("root_id", "parent_id", "group"), _is_reference),
    **dict.fromkeys(("group_index", "retries", "replaced_task_nesting"), _is_count),
    **dict.fromkeys(("shadow", "lang", "meth", "origin"), _is_line),
    **dict.fromkeys(("argsrepr", "kwargsrepr"), _is_optional_text),
    **dict.fromkeys(("periodic_task_name", "compression", "punctual_signature"), _is_optional_text),
    **dict.fromkeys(("eta", "expires"), _is_moment),
    "ignore_result": lambda value: value is None or isinstance(value, (bool, int, str)),
    "redelivered": _is_flag,
    "timelimit": _are_limits,
    "stamped_headers": _are_names,
    "stamps": _is_mapping,
    "headers": _is_mapping,  # Sentry and Datadog send their own twice, here too
    "punctual_attempt": _is_attempt,
    "punctual_step": _is_step,
}
PARTS: dict[str, Callable[[Any], bool]] = {
    "callbacks": _are_signatures,
    "errbacks": _are_signatures,
    "chain": _are_signatures,
    "chord": lambda value: value is None or _is_signature(value),
}
FIRST: dict[str, Callable[[Any], bool]] = {
    "args": _is_list,
    "kwargs": lambda value: isinstance(value, Mapping),
    "taskset": _is_reference,
    "utc": _is_flag,
}
# Methods and marks of Celery's request, which a header of the same name would replace. Celery sets all other ones.
TAKEN = frozenset(name for name in dir(Context) if callable(getattr(Context, name)) and not name.startswith("__"))
TAKEN |= {"is_eager", "called_directly", "children", "_children", "_root_id", "_protected", "punctual_execution"}
TAKEN -= FIELDS.keys()


def fault_of_item(item: Any) -> str:
    """Why kombu cannot read an item of a Redis queue or channel as a message."""
    try:
        return fault_of_envelope(_read(item))
    except Unreadable as error:
        return str(error)


def fault_of_unacked(item: Any) -> str:
    """Why kombu cannot put an unacknowledged message back into its queue."""
    try:
        whole = _read(item)
    except Unreadable as error:
        return str(error)
    if not isinstance(whole, list) or len(whole) != 3:
        return "it is not a message with its exchange and routing key"
    message, exchange, routing_key = whole
    if not _is_address(exchange, routing_key):
        return "its exchange and routing key name no queue"
    return fault_of_envelope(message)


def _read(item: Any) -> Any:
    """The value of an item as kombu reads it. Raises `Unreadable`."""
    try:
        return loads(item.decode() if isinstance(item, bytes) else item)
    except ODD as error:
        raise Unreadable(f"kombu cannot read it as JSON: {type(error).__name__}") from error


def fault_of_envelope(whole: Any) -> str:
    """Why this is not a message of kombu. `fault_of_task` checks its headers and body later."""
    if not isinstance(whole, dict):
        return "it is not a JSON object"
    properties, headers = whole.get("properties"), whole.get("headers")
    if not isinstance(properties, dict):
        return "its properties are not an object"
    if not _is_mapping(headers):
        return "its headers are not an object"
    if not all(_is_optional_text(whole.get(name)) for name in ("content-type", "content-encoding")):
        return "its content type or encoding is not text"
    return _fault_of_properties(properties) or _fault_of_body(whole.get("body"), properties.get("body_encoding"))


def _fault_of_properties(properties: dict[str, Any]) -> str:
    delivery = properties.get("delivery_info")
    if not _is_id(properties.get("delivery_tag")):
        return "its delivery tag is not an id"
    if not isinstance(delivery, dict) or not _is_address(delivery.get("exchange"), delivery.get("routing_key")):
        return "its delivery information names no exchange and routing key"
    if not delivery["exchange"] and queues.reserved(delivery["routing_key"]):
        return "its routing key is not a queue: Celery or the broker keeps something of its own under this name"
    if not _is_count(properties.get("priority")):
        return "its priority is not a number"
    if not all(_is_optional_text(properties.get(name)) for name in ("reply_to", "correlation_id")):
        return "its reply_to or correlation_id is not text"
    return ""


def _fault_of_body(body: Any, encoding: Any) -> str:
    if not _is_text(body):
        return "its body is not text"
    if not (encoding is None or _is_one_of(ENCODINGS, encoding)):
        return "its body has an unknown encoding"
    if encoding == "base64":
        try:
            base64.b64decode(body)
        except ValueError:
            return "its body is not base64"
    return ""


def fault_of_task(headers: Any, payload: Any) -> str:
    """Why Celery cannot execute a message with these headers and this decoded body."""
    if not isinstance(headers, Mapping):
        return "its headers are not an object"
    if "task" not in headers:
        return _fault_of_protocol_1(payload)
    if taken := sorted(TAKEN.intersection(headers)):
        return f"its header {taken[0]} would replace a part of Celery's request"
    return _odd(headers, FIELDS, {"task", "id"}, "header") or _fault_of_payload(payload)


def _fault_of_payload(payload: Any) -> str:
    if isinstance(payload, Mapping):  # some clients send the body of protocol 1 with the headers of protocol 2
        return _odd(payload, FIELDS | PARTS | FIRST, set(), "part")
    if not _is_list(payload) or len(payload) != 3:
        return "its body is not a list of arguments, keyword arguments and followers"
    args, kwargs, embedded = payload
    if not _is_list(args):
        return "its arguments are not a list"
    if not isinstance(kwargs, Mapping) or not all(map(_is_text, kwargs)):
        return "its keyword arguments are not an object"
    if not _is_mapping(embedded):
        return "its followers are not an object"
    return _odd(embedded or {}, PARTS, set(), "part")


def _fault_of_protocol_1(payload: Any) -> str:
    if not isinstance(payload, Mapping) or "task" not in payload:
        return "it is not a message of Celery: it names no task"
    if taken := sorted(TAKEN.intersection(payload)):
        return f"its part {taken[0]} would replace a part of Celery's request"
    return _odd(payload, FIELDS | PARTS | FIRST, {"task", "id"}, "part")


def _odd(values: Mapping[str, Any], checks: dict[str, Callable[[Any], bool]], needed: set[str], what: str) -> str:
    if missing := sorted(needed - values.keys()):
        return f"it has no {missing[0]}"
    for name in checks.keys() & values.keys():
        if not checks[name](values[name]):
            return f"Celery never sends the value of its {what} {name}"
    return ""


def fault_of_command(body: Any, headers: Any, matchers: Collection[str]) -> str:
    """Why Celery cannot obey a command of remote control; `matchers` are the known kinds of patterns."""
    if not isinstance(body, Mapping) or not _is_text(body.get("method")):
        return "it is not a command of remote control"
    arguments, clock, reply_to = body.get("arguments"), headers.get("clock"), body.get("reply_to")
    pattern, destination = body.get("pattern"), body.get("destination")
    is_address = _is_mapping(reply_to) and _is_address(
        (reply_to or {}).get("exchange"), (reply_to or {}).get("routing_key")
    )
    checks = (
        (
            _is_mapping(arguments) and all(map(_is_text, arguments or ())),
            "the arguments of its command are not an object",
        ),
        (clock is None or (isinstance(clock, int) and 0 <= clock <= LARGEST_CLOCK), "its clock is not a number"),
        (
            pattern is None or (_is_text(pattern) and _is_one_of(matchers, body.get("matcher"))),
            "its pattern is unknown",
        ),
        (_is_optional_text(destination) or _are_names(destination), "its destination is not a list of names"),
        (not reply_to or is_address, "its address for the reply is not an address"),
    )
    return next((why for is_right, why in checks if not is_right), "")


def _is_one_of(known: Collection[str], value: Any) -> bool:
    return isinstance(value, str) and value in known


def limit_decompression() -> None:
    """Limit kombu's decompression in this process to `LARGEST` bytes: a few bytes can expand to gigabytes."""
    makers: dict[str, Callable[[], Any]] = {
        "application/x-gzip": zlib.decompressobj,
        "application/x-bz2": bz2.BZ2Decompressor,
        "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=MOST_MEMORY),
    }
    with suppress(ImportError):
        makers["application/zstd"] = import_module("backports.zstd").ZstdDecompressor
    for kind in makers.keys() & set(compression.encoders()):
        encoder: Any = compression.get_encoder(kind)
        compression.register(encoder[0], _limited(makers[kind]), kind)


def _limited(make: Callable[[], Any]) -> Callable[[bytes], bytes]:
    def decompress(body: bytes) -> bytes:
        engine = make()
        content: bytes = engine.decompress(body, LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST // 1024**2} MB after decompression")
        if not engine.eof:
            raise ValueError("its compressed content is cut off")
        return content

    return decompress
