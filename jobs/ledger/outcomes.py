"""How does a run end? Always here: by a worker, by beat, by an admin user, or by the claim that skips a moment.

Its one rule: every end of every run passes through `announce` once, and reaches the listeners after its commit. If
several processes end the same run at the same time, one wins; the losers learn it from the return value and announce
nothing.

`listen` registers a listener for ends in its own process; a `Follower` finds the ends of all processes. A listener that
raises is logged; the run, its worker and the other listeners go on.

Limits: listeners are not called if the process or its connection dies between the commit of an end and them, or if an
earlier `on_commit` callback of the caller's transaction raises. A `Follower` misses ends that are committed more than
five seconds after they were written. A reader that must miss nothing compares the rows with those it has handled.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction

from jobs.ledger import steps
from jobs.models import LONGEST_REASON, UNSTARTED, Attempt, Ended, Policy, Run, RunQuerySet, State
from jobs.rules import policies
from jobs.rules.errors import logged

log = logging.getLogger(__name__)

Listener = Callable[[Sequence[Ended]], object]

_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Call `listener` with the runs that end in this process, in batches, each run once, after the commit.

    It delays its caller, a tick of beat or a worker's next run, and counts towards the time limit of the task: write a
    row, and leave slow work to a task. A task it sends belongs to no run.
    """
    if listener not in _listeners:
        _listeners.append(listener)


def end(runs: RunQuerySet, expected: Collection[State], to: State, **changes: Any) -> int:
    """End the runs whose state is one of `expected`; returns how many this call ended."""
    ended = runs.conclude(expected, to, **changes)
    announce(ended)
    return len(ended)


def announce(ended: Sequence[Ended]) -> None:
    """Call the listeners with these runs after the transaction that ended them is committed."""
    if ended:
        transaction.on_commit(partial(_announce, ended))


def _announce(ended: Sequence[Ended]) -> None:
    for listener in _listeners:
        with logged(log, "A listener failed at the end of %d runs.", len(ended)):
            listener(ended)


def finish(run_id: UUID, attempt: int, state: State, **changes: Any) -> bool:
    """End a run by its attempt; False if the attempt no longer owned it. A lost attempt is then marked as fenced."""
    if state == State.SUCCEEDED and not changes:
        ended = Run.objects.succeed(run_id, attempt)
    else:
        ended = Run.objects.filter(id=run_id, attempt=attempt).conclude({State.RUNNING}, state, **changes)
    if not ended:
        Attempt.fence(run_id, attempt)
    announce(ended)
    return bool(ended)


def fail(run_id: UUID, attempt: int, reason: str, error: dict[str, Any]) -> None:
    """Record a failed attempt. Another one follows if the schedule's policy has any left; else the run has failed."""
    run = Run.objects.select_related("schedule__policy").get(id=run_id)
    run.attempt = attempt
    policy = Policy.of(run)
    delay = policies.retry_delay(attempt, policy.max_attempts, policy.retry_delay)
    if delay is not None and run.return_to_waiting(Attempt.Outcome.FAILED, delay, reason=reason, **error):
        return
    if not finish_cancelled(run, **error):
        finish(run_id, attempt, State.FAILED, reason=reason, **error)


def finish_cancelled(run: Run, **changes: Any) -> bool:
    """End a run as cancelled if it was asked to end; returns whether it was."""
    run.refresh_from_db(fields=["cancel_reason"])
    if run.cancel_reason:
        finish(run.id, run.attempt, State.CANCELLED, reason=run.cancel_reason, **changes)
    return bool(run.cancel_reason)


def settle(run_id: UUID, attempt: int) -> None:
    """End a run whose body is over, if all its steps are over, too."""
    if not steps.is_over(run_id=run_id, attempt=attempt):
        return
    run = Run.objects.get(id=run_id)
    run.attempt = attempt
    state, reason, step = steps.outcome(run)
    if state == State.FAILED:
        failed = step or run
        error = {"error_class": failed.error_class, "error_text": failed.error_text}
        fail(run_id, attempt, reason[:LONGEST_REASON], error)
    else:
        finish(run_id, attempt, state, reason=reason)


class Cancelled(NamedTuple):
    """How many unstarted runs were ended, and how many running ones were asked to end."""

    ended: int
    asked: int


def cancel(runs: RunQuerySet, reason: str) -> Cancelled:
    """End unstarted runs at once and ask running ones to end."""
    sentence = f"cancelled: {reason}"
    ended = end(runs, UNSTARTED, State.CANCELLED, reason=sentence)
    return Cancelled(ended, runs.filter(state=State.RUNNING).update(cancel_reason=sentence))


def pause_failing(ended: Sequence[Ended]) -> None:
    """Pause each schedule whose runs have failed as often in a row as its policy allows."""
    failed = {run.schedule for run in ended if run.schedule and run.state in {State.FAILED, State.LOST}}
    for schedule in sorted(failed):
        Policy.objects.filter(pk=schedule).pause_if_failing()


class Follower:
    """Finds the runs that end after its creation, in any process: each once, in order (index run_finished)."""

    # A transaction may commit later than one that began after it, so each call reads the last seconds again.
    OVERLAP = timedelta(seconds=5)

    def __init__(self) -> None:
        finished = Run.objects.filter(finished_at__isnull=False).order_by("-finished_at")
        self._newest: datetime | None = finished.values_list("finished_at", flat=True).first()
        self._seen: set[object] = set()
        self.news()

    def news(self) -> list[Run]:
        """The runs that ended since the last call. It may be called again after a DatabaseError."""
        runs = Run.objects.filter(finished_at__isnull=False).order_by("finished_at", "id")
        if self._newest is not None:
            runs = runs.filter(finished_at__gte=self._newest - self.OVERLAP)
        found = list(runs.defer("args", "kwargs", "options", "error_text"))
        news = [run for run in found if run.id not in self._seen]
        self._seen = {run.id for run in found}
        self._newest = found[-1].finished_at if found else self._newest
        return news
