"""How do alerts get to mail addresses? Each address gets its own message, so that one that is refused stops no other.

Its one rule: the Message-ID follows from the message and the address, so a repeated message is one for mail programs
that look at it. An address that this process has sent the message to is left out when it is repeated.
Limits: another process that repeats a message does not know who has got it, and sends to all addresses again.
"""

import hashlib
from collections.abc import Sequence
from email.utils import parseaddr

from django.core.mail import EmailMultiAlternatives
from django.template.loader import render_to_string

from jobs.alerts import message as words
from jobs.alerts.message import Message
from jobs.alerts.outbound import ChannelError, Deadline, in_thread, note_sent, was_sent
from jobs.mail import smtp
from jobs.mail.addresses import canonical, deliverable, masked
from jobs.models import Channel

LONGEST_ANSWER = 5.0  # seconds between two answers of the mail server
LONGEST_SUBJECT = 200  # characters


def why_not(channel: Channel) -> str:
    """Why mail cannot reach the addresses of a channel; empty if it can."""
    if not channel.addresses:
        return "It has no address: add one."
    for address in channel.addresses:
        try:
            deliverable(str(address))
        except ValueError as error:
            return f"{address}: {error}."
    return ""


def send(channel: Channel, message: Message, seconds: float) -> None:
    """Raises ChannelError."""
    server, deadline = smtp.Server(LONGEST_ANSWER), Deadline(seconds)
    addresses = list(dict.fromkeys(canonical(str(each)) for each in channel.addresses))
    in_thread(channel.name, lambda: _send(server, addresses, message, deadline), seconds, server.cut)


def _send(server: smtp.Server, addresses: Sequence[str], message: Message, deadline: Deadline) -> None:
    failed: dict[str, smtp.Reply] = {}
    left = [address for address in addresses if not was_sent(message.id, address)]
    try:
        with server:
            for address in left:
                server.make_ready()
                deadline.check()
                try:
                    server.send(letter(message, address))
                except smtp.Reply as reply:
                    failed[address] = reply
                else:
                    note_sent(message.id, address)
    except smtp.MailError as error:
        raise ChannelError(str(error)) from error
    if failed:
        _report(failed, len(addresses))


def _report(failed: dict[str, smtp.Reply], number: int) -> None:
    """One of the failures, with what became of the others."""
    waiting = [address for address, reply in failed.items() if not isinstance(reply, smtp.Refused)]
    address = (waiting or list(failed))[0]
    advice = "It is tried again later." if waiting else "Check the address."
    others = f" {len(failed)} of {number} addresses did not get it." if number > 1 else ""
    raise ChannelError(
        f"The mail server did not take the message for {masked(address)} ({failed[address]}).{others} {advice}",
        is_permanent=not waiting,
    )


def letter(message: Message, address: str) -> EmailMultiAlternatives:
    """The message as mail: text, and the same as HTML."""
    subject = words.line(words.subject(message), LONGEST_SUBJECT)
    mail = EmailMultiAlternatives(subject, words.text(message), to=[address])
    domain = parseaddr(mail.from_email)[1].rpartition("@")[2]
    part = hashlib.sha256(address.encode()).hexdigest()[:8]
    mail.extra_headers = {"Message-ID": f"<{message.id}.{part}@{domain}>", "Auto-Submitted": "auto-generated"}
    html = render_to_string("jobs/alert.html", {"subject": subject, "groups": words.groups(message)})
    mail.attach_alternative(html, "text/html")
    return mail
