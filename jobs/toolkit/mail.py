"""Which addresses got this message? Sends each address its own message, and never the same message twice.

Its one rule: a `Delivery` row is committed before the mail server sees the message, and its outcome is written
afterwards. So the run's next attempt continues from there. An address at which a process died is *in doubt*. The server
may have accepted the message, so it is not sent again. An operator can find out in the mail server's log. There the
left part of the Message-ID is the row's id.

Limits: outside a run nothing is remembered. A message that the server accepted may still not arrive. Any exception of
another backend than SMTP ends the attempt and leaves one address in doubt.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Annotated
from uuid import UUID, uuid4, uuid5

from django.core.mail import EmailMultiAlternatives
from django.db import transaction
from django.db.models import Max
from pydantic import AfterValidator, Field

from jobs.mail import smtp
from jobs.mail.addresses import canonical, deliverable, masked
from jobs.mail.smtp import MailError
from jobs.models import LONGEST_NAME, Delivery, database_now
from jobs.secrets import head
from jobs.toolkit.current import progress
from jobs.worker import context

LONGEST_SUBJECT = 200  # characters
MOST_ADDRESSES = 100_000  # of one message; they are held in memory
NAP = 0.5  # seconds; in the threads pool, a longer sleep would delay the end of a cancelled run
NAMED = 20  # addresses in each state that the log lists

log = logging.getLogger(__name__)

State = Delivery.State


class DeferredError(MailError):
    """The server deferred the message for some addresses. The next attempt of the run tries them again."""


class NobodyReachedError(MailError):
    """The message reached no address, and another attempt would change nothing."""


def one_line(subject: str) -> str:
    """The subject, if it is one line. A second line would become another header. Raises ValueError."""
    if not subject.isprintable() or not subject.strip():
        raise ValueError("the subject must be one line of text")
    return subject


# The arguments of jobs that send mail.
Address = Annotated[str, AfterValidator(deliverable)]
Subject = Annotated[str, Field(min_length=1, max_length=LONGEST_SUBJECT), AfterValidator(one_line)]
Text = Annotated[str, Field(min_length=1, json_schema_extra={"format": "multi-line"})]
Html = Annotated[
    str, Field(description="The same message as HTML. Optional.", json_schema_extra={"format": "multi-line"})
]


@dataclass(frozen=True)
class Message:
    """A message that a run sends to each address once. Its name identifies it or, without one, its content."""

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
    """Limits how often something happens: `per_minute` times a minute, evenly spaced; None sets no limit."""

    def __init__(
        self,
        per_minute: float | None,
        since_last: float | None = None,  # seconds since the last time, in an earlier attempt
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._distance = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = clock() if since_last is None else clock() + self._distance - since_last

    def wait(self) -> None:
        """Sleep until it may happen again, and count it as happening now."""
        while (left := self._next - self._clock()) > 0:
            self._sleep(min(left, NAP))
        self._next = self._clock() + self._distance


def send(message: Message, addresses: Iterable[str], per_minute: float | None = None) -> dict[str, int]:
    """Send to each address once; returns the numbers of sent, refused and in doubt over all attempts of the run.

    Sends at most `per_minute` messages a minute. Call it outside a transaction. Raises MailError or a subclass.
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
            raise MailError(f"There are more than {MOST_ADDRESSES:,} addresses: split them over several runs.")
    return list(found)


def _send(message: Message, address: str, deliveries: "DeliveryLog", server: smtp.Server, pace: Pace) -> None:
    """Send to one address. An unexpected exception, or the death of the process, leaves the address in doubt."""
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
    except (smtp.Refused, ValueError) as reply:  # ValueError: the message cannot be encoded
        deliveries.end(address, State.REFUSED, str(reply))
    except smtp.Deferred as reply:
        deliveries.undo(address)
        deliveries.answers.append(str(reply)[:3])  # the code; the text may name the address
    except smtp.BrokeOff as reply:
        deliveries.end(address, State.SENDING, str(reply))
    except smtp.ServerError:
        deliveries.undo(address)
        raise
    else:
        deliveries.end(address, State.SENT)


class DeliveryLog:
    """The state of each address, over all attempts of the run; outside a run, for one call of `send`."""

    def __init__(self, message: Message) -> None:
        execution = context.of_caller()
        self._run_id = execution.run_id if execution else None
        self._namespace = self._run_id or uuid4()
        self._message = message.digest
        mine = Delivery.objects.filter(run=self._run_id, message=self._message)
        self._rows = mine if execution else Delivery.objects.none()
        self.states = dict(self._rows.values_list("address", "state"))
        self.answers: list[str] = []  # why, for each deferred address
        self.rivals = 0  # addresses that another process took first

    def key(self, address: str) -> UUID:
        """The id of the delivery: the same message to the same address has the same id in all attempts of the run."""
        return uuid5(self._namespace, f"{self._message} {address}")

    def since_last(self) -> float | None:
        """Seconds since an earlier attempt took its last address; None if there was none."""
        last = self._rows.aggregate(last=Max("begun_at"))["last"]
        return (database_now() - last).total_seconds() if last else None

    def begin(self, address: str, state: str = State.SENDING, reason: str = "") -> bool:
        """Take an address; False if another process took it first."""
        self.states[address] = state
        if self._run_id is None:
            return True
        columns = {"run_id": self._run_id, "message": self._message, "address": address}
        columns |= {"state": state, "reason": head(reason, LONGEST_NAME)}
        with transaction.atomic(durable=True):  # a rollback by the caller would lose the row and send again
            row, is_mine = Delivery.objects.get_or_create(id=self.key(address), defaults=columns)
        self.states[address] = row.state
        self.rivals += not is_mine
        return is_mine

    def look_again(self) -> None:
        """Read the states again: another process may have ended its deliveries, or given addresses back unsent."""
        if self._run_id is None:
            return
        now = dict(self._rows.values_list("address", "state"))
        self.answers += ["another process gave it back"] * len(self.states.keys() - now.keys())
        self.states = {address: now[address] for address in self.states if address in now}

    def end(self, address: str, state: str, reason: str = "") -> None:
        """Write the outcome of a delivery."""
        self.states[address] = state
        self._rows.filter(id=self.key(address)).update(state=state, reason=head(reason, LONGEST_NAME))

    def undo(self, address: str) -> None:
        """Give an address back; certainly nothing was sent to it."""
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
            f"The mail server deferred {len(deliveries.answers)} of the messages ({deliveries.answers[0]}): give"
            " the schedule more attempts and a longer retry delay. No address gets a message twice."
        )
    if deliveries.states and not counts["sent"] and not deliveries.rivals:
        raise NobodyReachedError(
            f"No address was reached: {counts['refused']} refused, {counts['in_doubt']} in doubt."
            " The list of deliveries in the admin says why."
        )
    return counts


def _name(deliveries: DeliveryLog, state: str, what: str) -> None:
    """Log the first addresses in that state, each with the id in its Message-ID, to find it in a mail server's log."""
    found = [address for address, current in deliveries.states.items() if current == state]
    for address in found[:NAMED]:
        log.warning("%s is %s: message %s.", masked(address), what, deliveries.key(address))
    if len(found) > NAMED:
        log.warning("%d more are %s.", len(found) - NAMED, what)
