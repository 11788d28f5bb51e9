"""Hands runs to Celery. No other module publishes a run.

Its one rule: publish first, then mark as queued. Dying in between publishes again, which is harmless: the attempt in
the message's header can be started once. A broker that is away costs nothing but time: what was not marked waits in
the ledger, and so does what was marked but never started, with growing patience.

A message is an ordinary Celery message with the run's id as its task id, so that routing, `inspect` and Flower work.
"""

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from celery import current_app
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from kombu.exceptions import KombuError, OperationalError

from jobs.messages.envelope import Envelopes, Sendable
from jobs.models import SENDING, UNSTARTED, Policy, Run, State, database_now
from jobs.rules import policies

log = logging.getLogger(__name__)

BATCH = 500  # messages per pipeline


class BrokerAwayError(Exception):
    """The broker did not take the messages: the runs stay in the ledger and are sent when it is back."""


def send(runs: Sequence[Sendable]) -> None:
    """Publish these runs and mark them as queued. They must be committed, and the caller's alone for `SENDING`.

    A run whose message cannot be made ends as failed, with the reason. Raises `BrokerAwayError` when nothing was taken.
    """
    for start in range(0, len(runs), BATCH):
        sent = _publish(runs[start : start + BATCH])
        _mark_queued(sent)


def send_waiting() -> int:
    """Send what the outbox offers: runs nobody sent yet, and runs whose message led nowhere. Returns how many."""
    total = 0
    while runs := _take():
        send(runs)
        total += len(runs)
    return total


def _take() -> list[Run]:
    """Take up to a batch of runs for this process alone; two senders never take the same."""
    now = database_now()
    if not Run.objects.to_send(now).exists():
        return []
    with transaction.atomic():
        runs = list(Run.objects.to_send(now).select_for_update(skip_locked=True)[:BATCH])
        taken = Run.objects.filter(id__in=[run.id for run in runs])
        taken.move(UNSTARTED, State.WAITING, not_before=now + SENDING)
    return runs


def _publish(runs: Sequence[Sendable]) -> list[Sendable]:
    try:
        with current_app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch(BATCH):  # type: ignore[attr-defined] # new in kombu 5.7
            envelopes = Envelopes(producer)
            return [run for run in runs if _publish_one(run, envelopes)]
    except (KombuError, *_broker_errors()) as error:  # type: ignore[misc] # kombu has no type hints
        raise BrokerAwayError(f"The broker does not take messages ({error}): runs wait in the ledger.") from error


def _publish_one(run: Sendable, envelopes: Envelopes) -> bool:
    try:
        envelopes.publish(run)
    except _broker_errors():
        raise
    except Exception as error:  # noqa: BLE001 - a task's own router or serializer: no other run must wait for it
        return _refuse(run, str(error) or repr(error))
    return True


def _refuse(run: Sendable, why: str) -> bool:
    log.warning("Run %s cannot be sent: %s", run.id, why, extra={"action": "dispatch", "run": str(run.id)})
    this = Run.objects.filter(id=run.id, attempt=run.attempt)
    if this.move({State.WAITING}, State.FAILED, reason=f"could not be sent: {why}"):
        Policy.objects.filter(schedule__runs=run.id).pause_if_failing()
    return False


def _mark_queued(runs: Sequence[Sendable]) -> None:
    """Note the sending. What has started meanwhile, or even come to its next attempt, stays as it is."""
    for (attempt, sends), group in groupby(sorted(runs, key=_sending), key=_sending):
        sent = Run.objects.filter(id__in=[run.id for run in group], attempt=attempt)
        again_at = Now() + policies.patience(sends + 1)
        sent.move({State.WAITING}, State.QUEUED, queued_at=Now(), sends=F("sends") + 1, not_before=again_at)


def _sending(run: Sendable) -> tuple[int, int]:
    return run.attempt, run.sends


def _broker_errors() -> tuple[type[BaseException], ...]:
    """What means that the broker is away; kombu counts a KeyError, which a message of its own may cause, too."""
    connection = current_app.connection_for_write()
    errors: tuple[Any, ...] = (OperationalError, *connection.connection_errors, *connection.channel_errors)
    return tuple(error for error in errors if not issubclass(error, LookupError))
