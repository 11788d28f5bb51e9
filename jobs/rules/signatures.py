"""Does a webhook come from a sender that has the key, and which event is it? Standard Webhooks, GitHub, Stripe.

Its one rule: nothing of a delivery is believed, parsed or hashed before its sizes are checked, and every key is tried
whatever the others gave: how long it takes says nothing about a key. `now` is a parameter.
Limits: GitHub signs neither a time nor an id, only the body. So the body is the identity of the event: two equal bodies
are one event. The other headers of a delivery prove nothing.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from jobs.rules.errors import Invalid

TOLERANCE = timedelta(minutes=5)  # between the clock of the sender and `now`, in both directions
LARGEST_BODY = 1_000_000  # bytes
LONGEST_HEADER = 4_000  # characters
LONGEST_EVENT = 150  # characters of an id
MOST_SIGNATURES = 20  # in one header; a sender that rotates its key sends two
SHORTEST_KEY = 16  # bytes
PREFIX = "whsec_"  # of the keys of Standard Webhooks, which are base64 after it, and of Stripe's, which are plain text

_EVENT = re.compile(rf"[!-~]{{1,{LONGEST_EVENT}}}")
_SECONDS = re.compile(r"[0-9]{1,12}")


class Reason(StrEnum):
    """Why a delivery is refused. Only `MALFORMED` is told to the sender apart from the others."""

    MISSING = "missing"
    OLD = "old"
    FORGED = "forged"
    MALFORMED = "malformed"


class RefusedError(Exception):
    """The delivery is refused. The message is for the log of this site, not for the sender."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(f"{reason}: {sentence}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Signed:
    """What a delivery says: the signed bytes, its signatures as text, and when it was signed."""

    text: bytes
    signatures: list[str]
    at: int | None  # seconds since 1970; None where the sender signs no time


def verify(form: str, headers: Mapping[str, str], body: bytes, keys: Sequence[str], now: datetime) -> str:
    """The id of the event, signed with one of the keys. `headers` ignores case, or has lower-case names.

    Raises `RefusedError`; `Invalid` for a form or a key that this site cannot use.
    """
    secrets = [signing_key(form, key) for key in keys]
    if not secrets:
        raise Invalid("There is no key for this webhook.")
    if len(body) > LARGEST_BODY:
        raise RefusedError(Reason.MALFORMED, f"its body has more than {LARGEST_BODY:,} bytes.")
    kind = FORMS[form]
    signed = kind.read(headers, body)
    _check_signatures(signed, [kind.sign(secret, signed.text) for secret in secrets])
    if signed.at is not None and abs(now.timestamp() - signed.at) > TOLERANCE.total_seconds():
        raise RefusedError(Reason.OLD, f"it was signed {signed.at} s after 1970, and now is {now.timestamp():.0f} s.")
    return kind.event(headers, body)


def signed(event: str, body: bytes, keys: Sequence[str], now: datetime) -> dict[str, str]:
    """The headers with which this site sends an event, by Standard Webhooks. Each of the keys signs it.

    Raises `Invalid` for a key that does not suit.
    """
    seconds = str(int(now.timestamp()))
    text = f"{event}.{seconds}.".encode() + body
    values = [f"v1,{_sign_standard(signing_key('standard', key), text)}" for key in keys]
    return {"webhook-id": event, "webhook-timestamp": seconds, "webhook-signature": " ".join(values)}


def signing_key(form: str, text: str) -> bytes:
    """The bytes of a key as the sender shows it. Raises `Invalid`, without the key, for one that does not suit."""
    if form not in FORMS:
        raise Invalid(f"No form of webhooks is named {form!r}: choose one of {', '.join(FORMS)}.")
    key = FORMS[form].key(text)
    if len(key) < SHORTEST_KEY:
        raise Invalid(f"A key has fewer than {SHORTEST_KEY} bytes: copy all of it from the sender.")
    return key


def _check_signatures(signed: _Signed, expected: Iterable[str]) -> None:
    """Compare each expected signature with each given one. Stops at none, so that the time tells nothing."""
    given = [text.encode("utf-8", "backslashreplace") for text in signed.signatures]
    equal = [hmac.compare_digest(each.encode(), one) for each in expected for one in given]
    if not any(equal):
        raise RefusedError(Reason.FORGED, "no key of this source made its signature.")


# --- Standard Webhooks: standardwebhooks.com ------------------------------------------------------------------------


def _read_standard(headers: Mapping[str, str], body: bytes) -> _Signed:
    event, seconds = _header(headers, "webhook-id"), _header(headers, "webhook-timestamp")
    _check_event(event)
    at = _time(seconds)
    listed = _listed(_header(headers, "webhook-signature"), " ")
    signatures = [value for version, _, value in (each.partition(",") for each in listed) if version == "v1"]
    return _Signed(f"{event}.{seconds}.".encode() + body, _some(signatures), at)


def _key_of_standard(text: str) -> bytes:
    encoded = text.removeprefix(PREFIX)
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"A key of Standard Webhooks is base64 after {PREFIX}: copy it again from the sender.") from None


def _sign_standard(key: bytes, text: bytes) -> str:
    return base64.b64encode(hmac.digest(key, text, "sha256")).decode()


def _event_of_standard(headers: Mapping[str, str], _: bytes) -> str:
    return headers["webhook-id"]


# --- GitHub: X-Hub-Signature-256 -------------------------------------------------------------------------------------


def _read_github(headers: Mapping[str, str], body: bytes) -> _Signed:
    method, _, value = _header(headers, "x-hub-signature-256").partition("=")
    return _Signed(body, _some([value] if method == "sha256" else []), None)


def _event_of_github(_: Mapping[str, str], body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- Stripe: Stripe-Signature ----------------------------------------------------------------------------------------


def _read_stripe(headers: Mapping[str, str], body: bytes) -> _Signed:
    parts = [each.partition("=") for each in _listed(_header(headers, "stripe-signature"), ",")]
    seconds = [value for name, _, value in parts if name == "t"]
    if len(seconds) != 1:
        raise RefusedError(Reason.MALFORMED, "its signature has no time, or several.")
    at = _time(seconds[0])
    signatures = [value for name, _, value in parts if name == "v1"]
    return _Signed(f"{seconds[0]}.".encode() + body, _some(signatures), at)


def _event_of_stripe(_: Mapping[str, str], body: bytes) -> str:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(Reason.MALFORMED, "its body is not JSON.") from None
    event = found.get("id") if isinstance(found, dict) else None
    return _check_event(event if isinstance(event, str) else "")


# --- All forms -------------------------------------------------------------------------------------------------------


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name) or ""
    if not value:
        raise RefusedError(Reason.MISSING, f"it has no header {name}.")
    if len(value) > LONGEST_HEADER:
        raise RefusedError(Reason.MALFORMED, f"its header {name} has more than {LONGEST_HEADER:,} characters.")
    return value


def _listed(text: str, between: str) -> list[str]:
    found = [each.strip() for each in text.split(between)]
    if len(found) > MOST_SIGNATURES:
        raise RefusedError(Reason.MALFORMED, f"it has more than {MOST_SIGNATURES} signatures.")
    return found


def _some(signatures: list[str]) -> list[str]:
    if not signatures:
        raise RefusedError(Reason.MISSING, "it has no signature of the version that this site checks.")
    return signatures


def _time(text: str) -> int:
    if not _SECONDS.fullmatch(text):
        raise RefusedError(Reason.MALFORMED, "its time is no number of seconds since 1970.")
    return int(text)


def _check_event(event: str) -> str:
    if not _EVENT.fullmatch(event):
        raise RefusedError(
            Reason.MALFORMED, f"its id is not 1 to {LONGEST_EVENT} printable characters of ASCII, without spaces."
        )
    return event


def _sign_in_hex(key: bytes, text: bytes) -> str:
    return hmac.digest(key, text, "sha256").hex()


@dataclass(frozen=True, slots=True)
class _Form:
    """How the deliveries of one kind of sender are read."""

    key: Callable[[str], bytes]
    read: Callable[[Mapping[str, str], bytes], _Signed]
    sign: Callable[[bytes, bytes], str]
    event: Callable[[Mapping[str, str], bytes], str]


FORMS = {
    "standard": _Form(_key_of_standard, _read_standard, _sign_standard, _event_of_standard),
    "github": _Form(str.encode, _read_github, _sign_in_hex, _event_of_github),
    "stripe": _Form(str.encode, _read_stripe, _sign_in_hex, _event_of_stripe),
}
