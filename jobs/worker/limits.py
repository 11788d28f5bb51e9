"""How does a message wait for the rate limit of its task? In a line of its own, in this worker's main process.

Its one rule: only a message that may start something takes a token, and one that waits keeps no other message out of
the worker. Celery starts a task for each copy of a message, and counts waiting messages among those it may fetch. The
ledger hears which runs wait here, and beat sends them again only after their turn. A run whose turn is far goes back to
the ledger instead.

Limits: each worker has its own lines, as with Celery. Where runs come faster than they may start, later ones can
overtake those that went back. Steps and plain tasks cannot go back: all that come wait in the worker's memory. While
the database is unavailable, messages wait and start as Celery's do.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakSet

from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from django.db import Error as DatabaseError
from kombu.utils.limits import TokenBucket

from jobs.ledger import outbox
from jobs.models import UNSTARTED, Run, Step
from jobs.worker import refusals
from jobs.worker.connection import on_good_connection

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_WAIT = 300.0  # seconds that a message may wait here
MOST_WAITING = 500  # messages in one line
SOON = 5.0  # seconds; beat sends nothing again so soon
EARLY = 0.01  # seconds; a timer may come so much before its time


class Line(TokenBucket):
    """The waiting messages of one task, and its tokens."""

    contents: deque[tuple[Any, int]]
    fill_rate: float

    def __init__(self, fill_rate: float) -> None:
        super().__init__(fill_rate)
        self.lock = threading.RLock()  # a pool of threads has another thread for timers
        self.asleep_until = 0.0  # when a timer looks again
        self._away_until = 0.0  # the turn of the last run that went back to the ledger

    def clear_pending(self) -> None:
        super().clear_pending()
        self.asleep_until = 0.0

    def wait(self) -> float:
        """Seconds until the turn of one more message."""
        return float(self.expected_time(len(self.contents) + 1))

    def has_room(self) -> bool:
        return self.wait() <= LONGEST_WAIT and len(self.contents) < MOST_WAITING

    def has_copy_of(self, request: Any) -> bool:
        return any(_key(waiting) == _key(request) for waiting, _ in self.contents)

    def turn_away(self) -> float:
        """Seconds until the turn of a run that goes back: after all that wait, and all that went back before."""
        now = monotonic()
        self._away_until = max(now + self.wait(), self._away_until + 1 / self.fill_rate)
        return self._away_until - now


class LimitedConsumer(CeleryConsumer):
    """Celery's consumer with these lines in place of its token buckets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waiting: WeakSet[Any] = WeakSet()  # messages that do not count as fetched
        super().__init__(*args, **kwargs)

    def bucket_for_task(self, type: Any) -> Line | None:  # noqa: A002 - Celery's name
        bucket = super().bucket_for_task(type)
        return Line(bucket.fill_rate) if bucket else None

    def reset_rate_limits(self) -> None:
        """After a change of a limit, by remote control too: those that wait join the new line, or start at once."""
        former = dict(self.task_buckets)  # type: ignore[attr-defined] # not in the stubs
        super().reset_rate_limits()
        for name, line in former.items():
            waiting = list(line.contents) if line else []
            if waiting:
                line.clear_pending()
                self._move(waiting, self.task_buckets[name])  # type: ignore[attr-defined] # not in the stubs

    def _move(self, waiting: list[tuple[Any, int]], line: Line | None) -> None:
        for request, tokens in waiting:
            if line is None:
                self._limit_move_to_pool(request)
            else:
                line.add((request, tokens))
        if line is not None:
            self._schedule_bucket_request(line)

    def _limit_task(self, request: Any, bucket: Line, tokens: int) -> None:
        with bucket.lock:
            if self._may_wait(request, bucket):
                bucket.add((request, tokens))
                self._schedule_bucket_request(bucket)
            else:
                self._drop(request)

    def _limit_post_eta(self, request: Any, bucket: Line, tokens: int) -> None:
        self.qos.decrement_eventually()  # type: ignore[attr-defined] # not in the stubs
        self._limit_task(request, bucket, tokens)

    def _schedule_bucket_request(self, bucket: Line) -> None:
        with bucket.lock:
            if monotonic() < bucket.asleep_until - EARLY:
                return
            while bucket.contents and not bucket.expected_time() and not _is_wanted(bucket.contents[0][0]):
                self._drop(bucket.pop()[0])
            super()._schedule_bucket_request(bucket)  # type: ignore[misc] # not in the stubs
            bucket.asleep_until = monotonic() + bucket.expected_time() if bucket.contents else 0.0

    def _limit_move_to_pool(self, request: Any) -> None:
        self._count_as_fetched(request)
        super()._limit_move_to_pool(request)  # type: ignore[misc] # not in the stubs

    def _may_wait(self, request: Any, line: Line) -> bool:
        """Whether this message joins the line: it is no copy, its run is still wanted, and there is room."""
        named = refusals.named_by(request.request_dict)
        if named and line.has_copy_of(request):
            return False
        waits_long = line.wait() >= SOON or not line.has_room()
        if waits_long and named and not named.step and not self._tell_ledger(named, request, line):
            return False
        self._waiting.add(request)
        self.qos.increment_eventually()  # type: ignore[attr-defined] # not in the stubs
        return True

    def _tell_ledger(self, named: refusals.Named, request: Any, line: Line) -> bool:
        """Record that a run waits here, or that it comes back later; returns whether it waits here."""
        limit, has_room = f"rate limit {request.task.rate_limit}", line.has_room()
        if has_room:
            why, tell, wait = f"{self.hostname} holds it: {limit}", outbox.hold, line.wait()
        else:
            why, tell, wait = f"{self.hostname} starts others first: {limit}", outbox.put_off, line.turn_away()
        wanted = _unless_unavailable(partial(tell, named.run, named.attempt, why, timedelta(seconds=wait)))
        return wanted is None or (wanted and has_room)

    def _drop(self, request: Any) -> None:
        """Forget a message without executing it."""
        named = refusals.named_by(request.request_dict)
        extra = named.keys if named else {}
        log.info("A message of %s is dropped: it would start nothing now.", request.id, extra=extra)
        self._count_as_fetched(request)
        request.acknowledge()
        task_id = request.id
        if state.requests.get(task_id) is request:  # not another message with this id, which is being executed
            del state.requests[task_id]

    def _count_as_fetched(self, request: Any) -> None:
        if request in self._waiting:
            self._waiting.discard(request)
            self.qos.decrement_eventually()  # type: ignore[attr-defined] # not in the stubs


def _key(request: Any) -> tuple[Any, ...]:
    """Equal for copies of one message."""
    return refusals.named_by(request.request_dict), request.request_dict.get("retries")


def _is_wanted(request: Any) -> bool:
    """Whether this message may still start its run or step; true for a plain task."""
    named = refusals.named_by(request.request_dict)
    if named is None:
        return True
    if named.step:
        found: Any = Step.objects.filter(id=named.step, attempt=named.attempt, state=Step.State.QUEUED)
    else:
        found = Run.objects.filter(id=named.run, attempt=named.attempt, state__in=UNSTARTED)
    return _unless_unavailable(found.exists) is not False


def _unless_unavailable(act: Callable[[], T]) -> T | None:
    try:
        return on_good_connection(act)
    except DatabaseError:
        log.info("A rate limit acts without the ledger: the database is unavailable.", exc_info=True)
        return None
