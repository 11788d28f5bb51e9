"""Has this message gone out, and to whom not? Sends mail, each address by itself, and never the same message twice.

Its one rule: that a message is about to go to an address is committed before the mail server hears of it, and what
became of it afterwards. So a later attempt of the run goes on from there, and an address at which a process died is *in
doubt*: nobody can know whether the server took the message, so it does not go again. A person may find out: the row, a
`Delivery`, gives the message its Message-ID, by which the server's log knows it.

Limits: outside a run nothing is remembered. That a server took a message does not mean that it arrives. What another
backend than SMTP raises ends the attempt, and leaves one address in doubt.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Annotated
from uuid import UUID, uuid4, uuid5

from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.validators import validate_email
from django.db import transaction
from django.db.models import Max
from django.utils.encoding import punycode
from pydantic import AfterValidator, Field

from jobs.models import LONGEST_ADDRESS, LONGEST_NAME, Delivery, database_now
from jobs.secrets import storable
from jobs.toolkit import smtp
from jobs.toolkit.current import progress
from jobs.toolkit.smtp import MailError
from jobs.worker import context

LONGEST_SUBJECT = 200  # characters
MOST_ADDRESSES = 100_000  # of one message: they are held in memory
NAP = 0.5  # seconds; a longer sleep would notice too late, in the threads pool, that the run is to end
NAMED = 20  # addresses of a kind that the log names

log = logging.getLogger(__name__)

State = Delivery.State


class DeferredError(MailError):
    """The server did not take the message for some addresses yet: another attempt of the run tries them again."""


class NobodyReachedError(MailError):
    """The message has gone to nobody, and another attempt would change nothing."""


def one_line(subject: str) -> str:
    """The subject, if it is one line: what comes after would be another header. Raises ValueError."""
    if not subject.isprintable() or not subject.strip():
        raise ValueError("the subject must be one line of text")
    return subject


def deliverable(address: str) -> str:
    """The address, if mail can go there. Raises ValueError."""
    plain = canonical(address)
    try:
        validate_email(plain)
    except ValidationError:
        raise ValueError("this is no mail address: write name@example.org") from None
    if '"' in plain or "=?" in plain:  # what is quoted or encoded may become another address on its way
        raise ValueError("this address is quoted or encoded: write it plainly, as name@example.org")
    return plain


def canonical(address: str) -> str:
    """The address without what makes no difference: space around it, how its domain is written."""
    name, at, domain = storable(address).strip().rpartition("@")
    with suppress(UnicodeError):  # no domain: it is refused as it is
        domain = punycode(domain)
    return f"{name}{at}{domain.lower()}"[:LONGEST_ADDRESS]


def masked(address: str) -> str:
    """The address as a log may show it."""
    name, _, domain = address.rpartition("@")
    return f"{name[:1]}…@{domain}" if name else "…"


# The arguments of jobs that send mail.
Address = Annotated[str, AfterValidator(deliverable)]
Subject = Annotated[str, Field(min_length=1, max_length=LONGEST_SUBJECT), AfterValidator(one_line)]
Text = Annotated[str, Field(min_length=1, json_schema_extra={"format": "multi-line"})]
Html = Annotated[str, Field(description="The same as HTML, if wanted.", json_schema_extra={"format": "multi-line"})]


@dataclass(frozen=True)
class Message:
    """What a run sends to an address once. It is known by its name or, without one, by what it says."""

    subject: str
    text: str
    html: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        one_line(self.subject)

    @property
    def digest(self) -> str:
        known_by = [self.name] if self.name else [self.subject, self.text, self.html]
        return hashlib.sha256("\0".join(known_by).encode("utf-8", "backslashreplace")).hexdigest()

    def to(self, address: str, key: UUID) -> EmailMultiAlternatives:
        letter = EmailMultiAlternatives(self.subject, self.text, to=[address])
        domain = parseaddr(letter.from_email)[1].rpartition("@")[2]
        letter.extra_headers = {"Message-ID": f"<{key}@{domain}>", "Auto-Submitted": "auto-generated"}
        if self.html:
            letter.attach_alternative(self.html, "text/html")
        return letter


class Pace:
    """Lets something happen so many times a minute at most, at even distances; without a number, at once."""

    def __init__(
        self,
        per_minute: float | None,
        since_last: float | None = None,  # seconds since it happened in an earlier attempt
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._distance = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = clock() if since_last is None else clock() + self._distance - since_last

    def wait(self) -> None:
        """Return when it may happen again, and take it that it does."""
        while (left := self._next - self._clock()) > 0:
            self._sleep(min(left, NAP))
        self._next = self._clock() + self._distance


def send(message: Message, addresses: Iterable[str], per_minute: float | None = None) -> dict[str, int]:
    """Send to each address once; returns how many were sent to, refused, and are in doubt, in all attempts of the run.

    At most `per_minute` of them. Not to be called within a transaction. Raises MailError, of one of its kinds.
    """
    wanted = _distinct(addresses)
    deliveries = DeliveryLog(message)
    pace = Pace(per_minute, deliveries.since_last())
    with smtp.Server() as server:
        for number, address in enumerate(wanted):
            progress(number, len(wanted), "sending")
            if address not in deliveries.states:
                _send(message, address, deliveries, server, pace)
    progress(len(wanted), len(wanted), "sent")
    return _summed_up(deliveries)


def _distinct(addresses: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for address in addresses:
        found[canonical(address)] = None
        if len(found) > MOST_ADDRESSES:
            raise MailError(f"These are over {MOST_ADDRESSES:,} addresses: divide them among several runs.")
    return list(found)


def _send(message: Message, address: str, deliveries: "DeliveryLog", server: smtp.Server, pace: Pace) -> None:
    """Send to one address. What ends this as nobody foresaw, a killed process too, leaves the address in doubt."""
    try:
        deliverable(address)
    except ValueError as error:
        deliveries.begin(address, State.REFUSED, str(error))
        return
    pace.wait()
    server.make_ready()
    if not deliveries.begin(address):
        return
    try:
        server.send(message.to(address, deliveries.key(address)))
    except (smtp.Refused, ValueError) as answer:  # a ValueError: no message can be made of this
        deliveries.end(address, State.REFUSED, str(answer))
    except smtp.Deferred as answer:
        deliveries.undo(address)
        deliveries.answers.append(str(answer))
    except smtp.BrokeOff as answer:
        deliveries.end(address, State.SENDING, str(answer))
    except smtp.ServerError:
        deliveries.undo(address)
        raise
    else:
        deliveries.end(address, State.SENT)


class DeliveryLog:
    """What became of each address, in all attempts of the run; outside a run, while this call lasts."""

    def __init__(self, message: Message) -> None:
        execution = context.current()
        self._run_id = execution.run_id if execution else None
        self._namespace = self._run_id or uuid4()
        self._message = message.digest
        mine = Delivery.objects.filter(run=self._run_id, message=self._message)
        self._rows = mine if execution else Delivery.objects.none()
        self.states = dict(self._rows.values_list("address", "state"))
        self.answers: list[str] = []  # where the server put the message off
        self.rivals = 0  # addresses at which another process was faster

    def key(self, address: str) -> UUID:
        """What makes two messages to this address the same."""
        return uuid5(self._namespace, f"{self._message} {address}")

    def since_last(self) -> float | None:
        """Seconds since an earlier attempt began with an address."""
        last = self._rows.aggregate(last=Max("begun_at"))["last"]
        return (database_now() - last).total_seconds() if last else None

    def begin(self, address: str, state: str = State.SENDING, reason: str = "") -> bool:
        """Take an address; False when another process was faster."""
        self.states[address] = state
        if self._run_id is None:
            return True
        columns = {"run_id": self._run_id, "message": self._message, "address": address}
        columns |= {"state": state, "reason": reason}
        with transaction.atomic(durable=True):  # undone with a transaction of the caller's, it would be sent again
            row, is_mine = Delivery.objects.get_or_create(id=self.key(address), defaults=columns)
        self.states[address] = row.state
        self.rivals += not is_mine
        return is_mine

    def look_again(self) -> None:
        """What another process was at may have ended meanwhile; what it gave back, nothing has gone to."""
        if self._run_id is None:
            return
        now = dict(self._rows.values_list("address", "state"))
        self.answers += ["another process gave it back"] * len(self.states.keys() - now.keys())
        self.states = {address: now[address] for address in self.states if address in now}

    def end(self, address: str, state: str, reason: str = "") -> None:
        """Write down what became of it."""
        self.states[address] = state
        self._rows.filter(id=self.key(address)).update(state=state, reason=storable(reason)[:LONGEST_NAME])

    def undo(self, address: str) -> None:
        """Give an address back, to which certainly nothing went."""
        del self.states[address]
        self._rows.filter(id=self.key(address)).delete()


def _summed_up(deliveries: DeliveryLog) -> dict[str, int]:
    deliveries.look_again()
    number = Counter(deliveries.states.values())
    counts = {"sent": number[State.SENT], "refused": number[State.REFUSED], "in_doubt": number[State.SENDING]}
    for state, what in ((State.REFUSED, "refused"), (State.SENDING, "in doubt")):
        _name(deliveries, state, what)
    log.info("%(sent)d sent, %(refused)d refused, %(in_doubt)d in doubt.", counts)
    if deliveries.answers:
        raise DeferredError(
            f"The mail server put off {len(deliveries.answers)} of the messages ({deliveries.answers[0][:3]}): give"
            " the schedule more attempts and a longer retry delay; who has the message does not get it again."
        )
    if deliveries.states and not counts["sent"] and not deliveries.rivals:
        raise NobodyReachedError(
            f"Nobody was reached: {counts['refused']} refused, {counts['in_doubt']} in doubt. The deliveries say why."
        )
    return counts


def _name(deliveries: DeliveryLog, state: str, what: str) -> None:
    """Log the first addresses in that state, each with the Message-ID that a mail server's log knows."""
    found = [address for address, current in deliveries.states.items() if current == state]
    for address in found[:NAMED]:
        log.warning("%s is %s: message %s.", masked(address), what, deliveries.key(address))
    if len(found) > NAMED:
        log.warning("%d more are %s.", len(found) - NAMED, what)
