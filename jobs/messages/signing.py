"""Did a process of this installation send this message? With MESSAGE_KEYS, each message carries a signature.

Its one rule: the signature (HMAC-SHA256) covers everything that decides what a worker does: the serialized body, its
content type and encoding, the address for the result, and every header except those that a broker adds. Senders sign
with the first key; workers accept each key.

Limits: it does not cover the queue, the priority and the number of deliveries. So a program that can read and write the
broker can delay, drop, move and repeat a signed message. A run starts each attempt once; a plain task executes again.
"""

import hmac
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from django.conf import settings
from kombu.utils.json import dumps

SIGNATURE_HEADER = "punctual_signature"
# Brokers add `redelivered` and the headers that begin as in `ADDED`. Some transports remove `compression`; senders sign
# the body before it is compressed.
UNSIGNED = frozenset([SIGNATURE_HEADER, "redelivered", "compression"])
ADDED = (
    *("x-death", "x-first-death-", "x-last-death-", "x-deliver", "x-acquired-"),
    *("x-received-", "x-shovelled", "x-stream-"),
)
PURPOSE = b"message of Punctual, version 1\n"
ADVICE = "give its sender this installation's MESSAGE_KEYS"


def keys() -> list[str]:
    """The keys of this installation. Without a key, Punctual neither signs nor verifies messages."""
    return list(getattr(settings, "MESSAGE_KEYS", ()))


def digest(body: Any) -> str:
    """The hash of a serialized body, before compression."""
    return sha256(body.encode() if isinstance(body, str) else body).hexdigest()


def sign(body_digest: str, content: tuple[Any, Any], headers: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """The signature of a message by the first key. `content` is its content type and encoding."""
    return _signature(keys()[0], _signed(body_digest, content, headers, properties))


def fault(message: Any) -> str:
    """Why a worker must not trust a received message; empty if it may, or if there is no key."""
    known = keys()
    if not known:
        return ""
    found = message.headers.get(SIGNATURE_HEADER) if isinstance(message.headers, Mapping) else None
    if not isinstance(found, str):
        return f"it is not signed: {ADVICE}"
    content = message.content_type, message.content_encoding
    signed = _signed(digest(message.body or b""), content, message.headers, message.properties)
    if any(hmac.compare_digest(_signature(key, signed).encode(), found.encode()) for key in known):
        return ""
    return f"its signature is wrong: another program changed it, or {ADVICE}"


def _signature(key: str, signed: bytes) -> str:
    return hmac.digest(key.encode(), PURPOSE + signed, "sha256").hex()


def _signed(
    body_digest: str, content: tuple[Any, Any], headers: Mapping[str, Any], properties: Mapping[str, Any]
) -> bytes:
    """The signed parts, as a text that is equal at the sender and at the worker."""
    own = {name: _plain(value) for name, value in headers.items() if not _is_added(name)}
    reply_to = properties.get("reply_to") or ""
    named = [properties.get("correlation_id") or "", getattr(reply_to, "name", reply_to)]
    return dumps([own, body_digest, *content, *named], sort_keys=True).encode()


def _is_added(name: str) -> bool:
    return str(name) in UNSIGNED or str(name).lower().startswith(ADDED)


def _plain(value: Any) -> Any:
    """A value as JSON carries it: keys of other types become text there."""
    parts = value if isinstance(value, (list, tuple)) else [value] if value else []
    return json.loads(dumps(value)) if any(isinstance(part, (Mapping, list, tuple)) for part in parts) else value
