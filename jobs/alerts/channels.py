"""How does a message leave? By mail, as a signed webhook, through a service that Apprise knows, or as a ping.

Its one rule: an address is a secret, and a channel holds only its name. The value is looked up when it is used, in the
variables of the process that sends, and is in no error, log or page.
Limits: a message whose outcome is unknown is sent again. So a receiver may get it twice, with the same id.
"""

import json
from datetime import datetime
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.utils import timezone

from jobs import http
from jobs.alerts import mailing, services
from jobs.alerts.message import Message, Ping, as_json
from jobs.alerts.outbound import DEADLINE, ChannelError, call
from jobs.models import Channel
from jobs.rules import signatures
from jobs.rules.errors import Invalid
from jobs.secrets import head

__all__ = ["ChannelError", "ping_alive", "send", "why_not"]

LONGEST_PING = 10_000  # bytes, as at healthchecks.io
PLACES = {"start": "/start", "success": "", "fail": "/fail"}
TEST_PLACE = "/log"  # changes no state at healthchecks


def send(channel: Channel, message: Message | Ping, seconds: float = DEADLINE) -> None:
    """Send a message, within so many seconds. Any number of threads may do so. Raises ChannelError."""
    refusal = _missing(channel) if channel.kind == Channel.Kind.APPRISE else why_not(channel)
    if refusal:
        raise ChannelError(refusal)
    if isinstance(message, Ping) or channel.kind == Channel.Kind.PING:
        _ping(channel, message, seconds)
    elif channel.kind == Channel.Kind.MAIL:
        mailing.send(channel, message, seconds)
    elif channel.kind == Channel.Kind.WEBHOOK:
        _post(channel, message, timezone.now(), seconds)
    else:
        services.send(channel, _address(channel), message, seconds)


def why_not(channel: Channel) -> str:
    """Why a channel cannot send from this process, as a sentence; empty if it can. Nothing is sent."""
    if channel.kind == Channel.Kind.MAIL:
        return mailing.why_not(channel)
    return _missing(channel) or _unusable(channel, channel.url, _address(channel))


def _missing(channel: Channel) -> str:
    if not channel.url:
        return "It has no address: give the NAME of a variable CHANNEL_URL_NAME."
    if not _address(channel):
        return f"CHANNEL_URL_{channel.url} is not set: set it for beat and the web process, and restart them."
    return ""


def _unusable(channel: Channel, name: str, address: str) -> str:
    if channel.kind == Channel.Kind.APPRISE:
        return services.why_not(f"CHANNEL_URL_{name}", address)
    try:
        http.locate(address)
    except http.Refused as error:
        return f"CHANNEL_URL_{name} cannot be used. {error}"
    if channel.kind == Channel.Kind.WEBHOOK and name not in _keys():
        return f"CHANNEL_KEY_{name} is not set: set the key that signs its messages for beat and the web process."
    return ""


def ping_alive(seconds: float = DEADLINE) -> None:
    """Tell the address in BEAT_PING_URL that this beat works. Raises ChannelError."""
    if address := getattr(settings, "BEAT_PING_URL", ""):
        call("GET", address, {}, None, seconds)


def _address(channel: Channel) -> str:
    return str(getattr(settings, "CHANNEL_URLS", {}).get(channel.url, ""))


def _keys() -> dict[str, list[str]]:
    return getattr(settings, "CHANNEL_KEYS", {})


def _post(channel: Channel, message: Message, now: datetime, seconds: float) -> None:
    body = json.dumps(as_json(message), ensure_ascii=False).encode()
    try:
        headers = signatures.signed(str(message.id), body, _keys()[channel.url], now)
    except Invalid as error:
        raise ChannelError(f"CHANNEL_KEY_{channel.url} cannot sign. {error}") from None
    call("POST", _address(channel), {**headers, "content-type": "application/json"}, body, seconds)


def _ping(channel: Channel, message: Message | Ping, seconds: float) -> None:
    if channel.kind != Channel.Kind.PING:
        raise ChannelError("Only a ping channel takes the events of runs.", is_permanent=True)
    if isinstance(message, Ping):
        address = _at(_address(channel), PLACES[message.event], {"rid": str(message.run)})
        call("POST", address, {}, _short(message.sentence), seconds)
    elif message.is_test:
        asked = f"{message.asked_by} asked for this test message."
        call("POST", _at(_address(channel), TEST_PLACE, {}), {}, _short(asked), seconds)
    else:
        raise ChannelError("A ping channel takes no alerts.", is_permanent=True)


def _short(text: str) -> bytes:
    return head(text, LONGEST_PING).encode()[:LONGEST_PING].decode(errors="ignore").encode()


def _at(address: str, place: str, query: dict[str, str]) -> str:
    parts = urlsplit(address)
    both = "&".join(filter(None, [parts.query, urlencode(query)]))
    return parts._replace(path=f"{parts.path.rstrip('/')}{place}", query=both, fragment="").geturl()
