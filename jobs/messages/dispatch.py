"""Publishes runs: the only module that hands one to Celery.

Its one rule: it changes nothing in the ledger. It says which runs the broker took and why no message can be made of the
others; `ledger.outbox` writes that down.

A message is an ordinary Celery message with the run's id as its task id, so that routing, `inspect` and Flower work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from celery import current_app
from kombu.exceptions import KombuError, OperationalError

from jobs.messages import envelope
from jobs.messages.envelope import Envelopes, Sendable
from jobs.models import LONGEST_REASON
from jobs.rules.errors import ENDING, hidden
from jobs.secrets import in_one_line

BATCH = 500  # messages per pipeline


class BrokerUnavailableError(Exception):
    """The broker took no messages: the runs stay in the ledger and are sent when it is back."""


@dataclass(slots=True)
class Published:
    """Which runs the broker took, and which ones have no message, each with the reason."""

    sent: list[Sendable] = field(default_factory=list)
    refused: list[tuple[Sendable, str]] = field(default_factory=list)


def publish(runs: Sequence[Sendable]) -> Published:
    """Publish at most `BATCH` runs in one pipeline. Raises `BrokerUnavailableError` when the broker took none."""
    published, unavailable = Published(), _broker_errors()
    try:
        with current_app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch(BATCH):  # type: ignore[attr-defined] # new in kombu 5.7
            envelopes = Envelopes(producer)
            for run in runs:
                error = try_to_publish(partial(envelopes.publish, run), unavailable)
                if error is None:
                    published.sent.append(run)
                else:
                    published.refused.append((run, in_one_line(error, LONGEST_REASON)))
    except (KombuError, *unavailable) as error:  # type: ignore[misc] # kombu has no type hints
        _pass_on_ending(error)
        raise BrokerUnavailableError(f"The broker takes no messages ({error}): runs wait in the ledger.") from error
    return published


def try_to_publish(publish: Callable[[], object], passing: tuple[type[BaseException], ...]) -> Exception | None:
    """Call `publish`; returns the error of a message that cannot be published, None of one that was.

    A task's own router or serializer may raise anything, and no other run may wait for it. Raises errors of `passing`
    and `ENDING`.
    """
    try:
        publish()
    except passing:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        _pass_on_ending(error)
        return error
    return None


def queue_of(run: Sendable) -> str:
    """The queue that the run's message goes to; empty if its task, its options or a router leave that open."""
    found: list[str] = []
    try_to_publish(lambda: found.append(envelope.queue_of(run)), ())
    return found[0] if found else ""


def _pass_on_ending(error: Exception) -> None:
    """Raise what asked this process or task to end while it was publishing: kombu wraps errors of any kind."""
    if (ending := hidden(error, *ENDING)) is not None:
        raise ending from None


@cache
def _broker_errors() -> tuple[type[BaseException], ...]:
    """Errors of an unavailable broker; kombu counts KeyError among them, which a message may cause as well."""
    connection = current_app.connection_for_write()
    errors: tuple[Any, ...] = (OperationalError, *connection.connection_errors, *connection.channel_errors)
    return tuple(error for error in errors if not issubclass(error, LookupError))
