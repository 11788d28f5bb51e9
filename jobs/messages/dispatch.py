"""Publishes runs: the only module that hands one to Celery.

Its one rule: it changes nothing in the ledger. It says which runs the broker took and why no message can be made of the
others; `ledger.outbox` writes that down.

A message is an ordinary Celery message with the run's id as its task id, so that routing, `inspect` and Flower work.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from amqp import exceptions as of_amqp
from celery import current_app
from kombu.exceptions import BatchPublishError, KombuError, OperationalError  # type: ignore[attr-defined] # new in 5.7
from redis.exceptions import DataError, NoPermissionError, ResponseError

from jobs.messages import envelope
from jobs.messages.envelope import Envelopes, Sendable
from jobs.models import LONGEST_REASON
from jobs.rules.errors import ENDING, Invalid, error_of, hidden, of_broker
from jobs.secrets import head, in_one_line

BATCH = 500  # messages per pipeline

# Errors about one message: its exchange, its queue, or its size.
OF_MESSAGE = (
    *(of_amqp.AccessRefused, of_amqp.NotFound, of_amqp.ResourceLocked, of_amqp.PreconditionFailed),
    *(of_amqp.ContentTooLarge, of_amqp.NoConsumers, DataError),
)
OTHER_TYPE = "WRONGTYPE "  # begins the error of Redis about a key of another type
OF_KEY = re.compile(r"\b(?:key|keys|channel)\b")  # other errors of permission name the command: they concern all keys
OF_PIPELINE = "of pipeline caused error: "  # the client puts the beginning of the message and this before the error


class BrokerUnavailableError(Exception):
    """The broker took no messages: the runs stay in the ledger and are sent when it is back."""


@dataclass(slots=True)
class Published:
    """Which runs the broker took, and which ones have no message, each with the reason."""

    sent: list[Sendable] = field(default_factory=list)
    refused: list[tuple[Sendable, str]] = field(default_factory=list)


def publish(runs: Sequence[Sendable]) -> Published:
    """Publish at most `BATCH` runs in one pipeline. If the broker refuses one, find that one by halving the pipeline.

    The broker may have taken other messages of a refused pipeline; it then gets them twice, which is harmless. Raises
    `BrokerUnavailableError` when it takes none.
    """
    published, parts = Published(), [runs]
    while parts:
        part = parts.pop()
        try:
            together = _publish_together(part)
        except _RefusedError as error:
            if len(part) == 1:
                published.refused.append((part[0], _reason(part[0], error)))
            else:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            published.sent += together.sent
            published.refused += together.refused
    return published


class _RefusedError(Exception):
    """The broker refuses one of these messages. The text is its reason."""


def _publish_together(runs: Sequence[Sendable]) -> Published:
    published, unavailable, connected = Published(), _broker_errors(), False
    try:
        with current_app.producer_pool.acquire(block=True, timeout=5) as producer:
            connected = bool(producer.channel)  # a refused login may raise the same errors as a message
            with producer.batch(BATCH):  # type: ignore[attr-defined] # new in kombu 5.7
                envelopes = Envelopes(producer)
                for run in runs:
                    # A task's own router or serializer may raise anything, and no other run may wait for it.
                    error = error_of(partial(envelopes.publish, run), unavailable)
                    if error is None:
                        published.sent.append(run)
                    else:
                        why = str(error) if isinstance(error, Invalid) else in_one_line(error, LONGEST_REASON)
                        published.refused.append((run, why))
            _hear_of_refusals(producer)
    except (KombuError, *unavailable) as error:  # type: ignore[misc] # kombu has no type hints
        _pass_on_ending(error)
        if connected and is_of_one_message(error):
            raise _RefusedError(_text(error)) from error
        why = f"The broker takes no messages ({_text(error)}): runs wait in the ledger."
        raise BrokerUnavailableError(why) from error
    return published


def _reason(run: Sendable, error: _RefusedError) -> str:
    queue = queue_of(run)
    return head(f"the broker refuses its message{queue and f' for queue `{queue}`'}: {error}", LONGEST_REASON)


def _hear_of_refusals(producer: Any) -> None:
    """Wait for an answer of an AMQP broker. Until it answers, it refuses messages silently and drops all later ones."""
    if producer.connection.transport.driver_type == "amqp":
        producer.channel.basic_qos(0, 0, False)


def is_of_one_message(error: BaseException) -> bool:
    """Whether the error concerns one message. False for an unknown error: the run of a refused message fails."""
    error = _cause(error)
    text = _text(error)
    of_key = isinstance(error, NoPermissionError) and OF_KEY.search(text)
    replied = isinstance(error, ResponseError) and (of_key or text.startswith(OTHER_TYPE))
    return bool(replied) or isinstance(error, OF_MESSAGE)


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ or error if isinstance(error, BatchPublishError) else error


def _text(error: BaseException) -> str:
    """The broker's own text, without the message that the client puts before it."""
    return str(_cause(error)).rpartition(OF_PIPELINE)[2]


def queue_of(run: Sendable) -> str:
    """The queue that the run's message goes to; empty if its task, its options or a router leave that open."""
    found: list[str] = []
    error_of(lambda: found.append(envelope.queue_of(run)))
    return found[0] if found else ""


def _pass_on_ending(error: Exception) -> None:
    """Raise what asked this process or task to end while it was publishing: kombu wraps errors of any kind."""
    if (ending := hidden(error, *ENDING)) is not None:
        raise ending from None


@cache
def _broker_errors() -> tuple[type[BaseException], ...]:
    connection = current_app.connection_for_write()
    return of_broker((OperationalError, *connection.connection_errors, *connection.channel_errors))
