"""How do alerts get to Slack, Teams, Discord, ntfy, PagerDuty and a hundred others? By Apprise and an address of it.

Its one rule: a message is plain text in which no name mentions anybody, and each service gets as much as it shows.
PagerDuty gets an event for each alert instead: a problem opens the incident of its subject, its recovery resolves it.
Limits: Apprise only says that it failed, and logs why: its log becomes the error. It uses the proxies of the
environment. `MOST_EVENTS` alerts of a message become incidents, and one more counts the rest.
"""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.conf import settings

from jobs.alerts import message as words
from jobs.alerts.message import Item, Message
from jobs.alerts.outbound import FINAL, ChannelError, Deadline, in_thread, note_sent, was_sent
from jobs.models import Channel
from jobs.rules.health import Health

if TYPE_CHECKING:
    from apprise.plugins.base import NotifyBase

CONNECT, ANSWER = 5.0, 8.0  # seconds, of each request
MOST_EVENTS = 100  # of a message; PagerDuty takes 120 a minute
PAGERDUTY = "pagerduty"
SHIELD = "\u200b"  # has no width; after it, a service sees no mention, tag or link with another text
MENTION = re.compile(r"(?<=[@<])(?=\S)|(?<=\])(?=\()")
STATUS = re.compile(r"\berror=(\d{3})\b")
LONGEST_REASON = 250  # characters

_loading = threading.Lock()


def why_not(variable: str, address: str) -> str:
    """Why Apprise cannot use the address in that variable; empty if it can."""
    if _service(address) is None:
        return f"{variable} is no address that Apprise can use: its form for each service is at appriseit.com/services."
    return ""


def send(channel: Channel, address: str, message: Message, seconds: float) -> None:
    """Raises ChannelError."""
    deadline = Deadline(seconds)
    in_thread(channel.name, lambda: _send(channel.url, address, message, deadline), seconds)


def shielded(text: str) -> str:
    """The text without mentions, tags and disguised links; it looks the same."""
    return MENTION.sub(SHIELD, text)


def _send(name: str, address: str, message: Message, deadline: Deadline) -> None:
    service = _service(address)
    if service is None:
        raise ChannelError(why_not(f"CHANNEL_URL_{name}", address))
    if service.secure_protocol == PAGERDUTY:
        _send_events(service, message, deadline)
        return
    title = shielded(words.subject(message))
    used = len(title) + 2 if service.title_maxlen <= 0 or service.overflow_amalgamate_title else 0
    _notify(service, shielded(words.text(message, max(service.body_maxlen - used, 1), has_title=True)), title, message)


def _notify(service: "NotifyBase", body: str, title: str, message: Message, severity: str = "") -> None:
    kind = severity or words.severity(message)
    with _logged_by_apprise() as lines:
        is_sent = service.notify(body=body, title=title, notify_type=kind, body_format="text", overflow="truncate")
    if not is_sent:
        reason = lines[-1] if lines else "Apprise does not say why."
        raise ChannelError(
            f"{service.service_name} did not take the message: {words.line(reason, LONGEST_REASON)}",
            is_permanent=any(int(status) in FINAL for status in STATUS.findall(reason)),
        )


def _service(address: str) -> "NotifyBase | None":
    """A new instance for an address; None if Apprise cannot use it."""
    with _loading, _logged_by_apprise():
        from apprise import Apprise, AppriseAsset  # late: most processes never use it

        site = getattr(settings, "SITE_URL", "")
        asset = AppriseAsset(app_id="Punctual", app_desc="Punctual", app_url=site, image_url_mask="")
        service = Apprise.instantiate(address, asset)
    if service is not None:
        service.socket_connect_timeout, service.socket_read_timeout, service.redirects = CONNECT, ANSWER, False
        vars(service)["throttle"] = _throttle
    return service


def _throttle(*_: Any, **__: Any) -> None:
    """Apprise would sleep for as long as a service says. The sender has its own waits."""


# --- PagerDuty --------------------------------------------------------------------------------------------------------


def _send_events(service: "NotifyBase", message: Message, deadline: Deadline) -> None:
    """An event for each alert. When a message is repeated, this process goes on where it stopped."""
    site = urlsplit(getattr(settings, "SITE_URL", "")).netloc or "punctual"
    ranked = sorted(message.items, key=lambda item: words.WORST_FIRST.index(item.health))
    for item in ranked[:MOST_EVENTS]:
        if not was_sent(message.id, item.subject):
            deadline.check()
            _send_event(service, item, message, site)
            note_sent(message.id, item.subject)
    rest = len(ranked) - MOST_EVENTS
    if rest > 0 or message.is_test:
        deadline.check()
        text = f"{rest} more alerts are not shown one by one." if rest > 0 else words.text(message)
        _fill(service, site, "trigger", "test" if message.is_test else "more", site, {})
        _notify(service, text, "", message)


def _send_event(service: "NotifyBase", item: Item, message: Message, site: str) -> None:
    one = Message(message.id, message.at, message.zone, [item])
    (entry,) = words.groups(one)[0].entries
    details = {name.lower(): text for name, text in entry.details}
    if entry.log:
        details["log"] = "\n".join(entry.log)
    action = "resolve" if item.health == Health.OK else "trigger"
    _fill(service, site, action, item.subject, item.link, details)
    _notify(service, f"{entry.headline}. {entry.sentence}", "", message, words.severity(one))


def _fill(service: Any, site: str, action: str, subject: str, link: str, details: dict[str, str]) -> None:
    """What an event says besides its text: attributes of Apprise's plugin. Several sites may share one PagerDuty."""
    service.action, service.dedup, service.details = action, f"punctual/{site}/{subject}"[:255], details
    service.source, service.click = site, link or None


# --- Apprise's log ----------------------------------------------------------------------------------------------------


class _Collector(logging.Handler):
    """Keeps the warnings of each thread that asks for them."""

    lines: dict[int, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if (found := self.lines.get(threading.get_ident())) is not None:
            found.append(record.getMessage())


@contextmanager
def _logged_by_apprise() -> Iterator[list[str]]:
    """What Apprise logs meanwhile in this thread. It goes nowhere else: its lines may hold an address in pieces."""
    log, me = logging.getLogger("apprise"), threading.get_ident()
    if not any(isinstance(each, _Collector) for each in log.handlers):
        log.addHandler(_Collector())
        log.setLevel(logging.WARNING)
        log.propagate = False
    _Collector.lines[me] = []
    try:
        yield _Collector.lines[me]
    finally:
        del _Collector.lines[me]
