"""Which runs should be sent now? Unstarted runs whose `not_before` has come: the outbox.

Its one rule: publish first, then mark as queued. A process that dies in between causes a second message, which is
harmless: an attempt starts only once. While the broker is unavailable, runs wait in the ledger. If no worker starts a
run, or a worker gives it back, its message is sent again, with growing patience, until `undelivered` gives it up.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from jobs import tracing
from jobs.ledger import outcomes
from jobs.ledger.undelivered import deliverable
from jobs.messages import dispatch, keys
from jobs.messages.dispatch import BATCH
from jobs.messages.envelope import Sendable
from jobs.models import SENDING, UNSTARTED, Run, State, Tally, database_now
from jobs.rules import policies

log = logging.getLogger(__name__)


def send(runs: Sequence[Sendable]) -> None:
    """Publish these runs and mark them as queued. They must be committed, and for `SENDING` belong to the caller alone.

    A run whose message cannot be made ends as failed, with the reason. Raises `BrokerUnavailableError`.
    """
    for start in range(0, len(runs), BATCH):
        batch = runs[start : start + BATCH]
        with _span(batch):
            published = _publish(batch)
            _mark_queued(published.sent)
            for run, why in published.refused:
                _refuse(run, why)


def send_waiting() -> int:
    """Send runs that were not sent yet, and runs whose message no worker started. Returns how many."""
    total = 0
    while runs := _take():
        send(deliverable(runs))
        total += len(runs)
    return total


def give_back(run_id: UUID, attempt: int, why: str) -> bool:
    """Let a run wait again whose message a worker refuses; `why` becomes its reason.

    Returns False if the attempt is no longer wanted.
    """
    return _answer(run_id, attempt, State.WAITING, timedelta(0), reason=why, queued_at=None)


def hold(run_id: UUID, attempt: int, why: str, wait: timedelta) -> bool:
    """Note that a worker holds the message of a run for so long; its patience ends after that.

    Returns False if the attempt is no longer wanted.
    """
    return _answer(run_id, attempt, State.QUEUED, wait + policies.FIRST_PATIENCE, reason=why, queued_at=Now())


def put_off(run_id: UUID, attempt: int, why: str, wait: timedelta) -> bool:
    """Let a run wait in the ledger for so long, at least, which a worker could take later.

    Returns False if the attempt is no longer wanted.
    """
    return _answer(run_id, attempt, State.WAITING, wait, reason=why, queued_at=Now())


def _answer(run_id: UUID, attempt: int, to: State, wait: timedelta, **changes: Any) -> bool:
    """Write down what a worker says about the latest message of an unstarted run.

    It may be faster than the note of its sender, and replaces it then. It changes nothing if the run was given back
    before: this is one of several messages.
    """
    now = database_now()
    with transaction.atomic():
        sent = Run.objects.filter(id=run_id, attempt=attempt, state__in=UNSTARTED)
        run = sent.select_for_update().first()
        if run is None:
            return False
        unnoted = run.state == State.WAITING and run.not_before is not None and run.not_before <= now + SENDING
        if run.state == State.QUEUED or unnoted:
            sends = run.sends + unnoted
            again_at = now + max(policies.patience(sends), wait)
            sent.move(UNSTARTED, to, sends=sends, not_before=again_at, **changes)
    return True


def _take() -> list[Run]:
    """Take up to a batch of runs for this process alone; two senders never take the same run."""
    now = database_now()
    if not Run.objects.to_send(now).exists():
        return []
    with transaction.atomic():
        runs = list(Run.objects.to_send(now).select_for_update(skip_locked=True)[:BATCH])
        taken = Run.objects.filter(id__in=[run.id for run in runs])
        taken.move(UNSTARTED, State.WAITING, not_before=now + SENDING)
    return runs


def _publish(runs: Sequence[Sendable]) -> dispatch.Published:
    try:
        return dispatch.publish(runs)
    except dispatch.BrokerUnavailableError:
        with suppress(DatabaseError):  # the count is for metrics only, and the caller has to hear of the broker
            Tally.add("publish_failures")
        raise


def _refuse(run: Sendable, why: str) -> None:
    log.warning("Run %s cannot be sent: %s", run.id, why, extra={**keys.of_run(run), "action": "dispatch"})
    this = Run.objects.filter(id=run.id, attempt=run.attempt)
    outcomes.end(this, {State.WAITING}, State.FAILED, reason=f"could not be sent: {why}")


def _span(runs: Sequence[Sendable]) -> AbstractContextManager[object]:
    """Part of the trace of the code that created these runs; if several did, linked to each of their traces."""
    if not tracing.is_on():
        return nullcontext()
    parents = {(run.options.get("headers") or {}).get(tracing.HEADER) for run in runs}
    attributes = {"messaging.operation.name": "send", "messaging.batch.message_count": len(runs)}
    return tracing.span("send", "producer", parents, attributes)


def _mark_queued(runs: Sequence[Sendable]) -> None:
    """Record the sending. A run that has started or reached its next attempt, or was given back, stays unchanged."""
    for (attempt, sends), group in groupby(sorted(runs, key=_sending), key=_sending):
        sent = Run.objects.filter(id__in=[run.id for run in group], attempt=attempt, sends=sends)
        again_at = Now() + policies.patience(sends + 1)
        sent.move({State.WAITING}, State.QUEUED, queued_at=Now(), sends=F("sends") + 1, not_before=again_at)


def _sending(run: Sendable) -> tuple[int, int]:
    return run.attempt, run.sends
