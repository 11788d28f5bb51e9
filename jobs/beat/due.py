"""Which due moments of a schedule does one pass decide, and which are left to later passes?

Its one rule: each moment counts under the timing that was in force when it was due, and none that has an outcome is
decided again. It reads; `claim` decides and writes.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import dropwhile, takewhile
from typing import Any
from uuid import UUID

from jobs.models import Run, Trigger
from jobs.rules import policies
from jobs.rules.moments import FOREVER
from jobs.rules.occurrences import Clocked, from_text, occurrences


@dataclass(slots=True)
class Claimed:
    """The columns of a due schedule and its policy that a claim reads, in one row.

    Plain, as thousands are made in a second: two model instances take 38 µs, this takes 15.
    """

    schedule_id: int
    next_due_at: datetime | None
    owed_from: datetime | None
    timing: str
    timing_since: datetime | None
    decided_until: datetime | None
    former: list[tuple[str, str]] | None
    stretch: UUID | None
    overlap: str
    catch_up: str
    catch_up_window: timedelta
    catch_up_cap: int
    jitter: timedelta
    remaining_runs: int | None
    skip_next: int
    skip_from: datetime | None
    paused_at: datetime | None
    paused_until: datetime | None
    paused_by: str
    pause_reason: str
    pause_catch_up: str
    soft_time_limit: int | None
    time_limit: int | None
    keep_result: bool | None
    options: dict[str, Any] | None
    fingerprint: str
    invalid_reason: str

    name: str
    enabled: bool
    one_off: bool
    task: str
    args: str
    kwargs: str
    queue: str | None
    exchange: str | None
    routing_key: str | None
    headers: str
    priority: int | None
    expire_seconds: int | None


@dataclass(frozen=True, slots=True)
class Due:
    """The moments of one schedule that this pass decides, oldest first, and the moments after them."""

    moments: list[datetime]
    upcoming: datetime | None
    later: policies.Later = policies.NONE_LATER
    held_back: datetime | None = None  # the first moment that only the end of the pause decides
    named_late: bool = False  # a moment of a one-off that was over when an edit named it


def due_moments(policy: Claimed, first: datetime, now: datetime, until: datetime, most: int) -> Due:
    """The due moments up to `until`, which is now, or earlier where later ones are left to other beats."""
    coming = _coming(policy, first, now)
    moments, upcoming = [first], next(coming, None)
    while upcoming is not None and upcoming <= until and len(moments) < most:
        moments.append(upcoming)
        upcoming = next(coming, None)
    if policy.former and policy.timing_since and is_clocked(policy):  # each setting of a one-off has its own run
        moments, later = [each for each in moments if each <= policy.timing_since] or moments, moments
        upcoming = later[len(moments)] if len(moments) < len(later) else upcoming
    pause = policies.Pause.of(policy)
    if pause and (held_back := next((moment for moment in moments if pause.holds_back(moment, now)), None)):
        due = Due(moments[: moments.index(held_back)], held_back, held_back=held_back)
    elif upcoming is None or upcoming > until:
        due = Due(moments, upcoming, named_late=_is_named_late(policy, first))
    else:
        due = Due(moments, upcoming, later=_later(policy, pause, upcoming, now))
    return due if policy.decided_until is None else _undecided(policy, due)


def _later(policy: Claimed, pause: policies.Pause | None, upcoming: datetime, now: datetime) -> policies.Later:
    """The late moments from `upcoming` on, counted as far as they matter to this pass."""
    cap = policy.catch_up_cap if policies.CatchUp.ALL in (policy.catch_up, policy.pause_catch_up) else 1
    missed, paused, any_runs = 0, 0, False
    moment: datetime | None = upcoming
    coming = _coming(policy, upcoming, now)
    while moment is not None and moment <= now and missed < cap:
        is_paused = pause is not None and pause.covers(moment)
        if pause and is_paused and (pause.catch_up is policies.CatchUp.NONE or paused >= cap):
            if pause.end is None:
                break
            coming = _coming(policy, pause.end - timedelta.resolution, now)
        else:
            paused, any_runs = paused + is_paused, True
            missed += not is_paused and now - moment > policies.MISSED_AFTER
        moment = next(coming, None)
    return policies.Later(missed, paused, any_runs)


def _undecided(policy: Claimed, due: Due) -> Due:
    """Leave out moments that have an outcome, and all after the next of these, which a later pass decides.

    So no series of skipped moments includes one that ran.
    """
    decided = _decided(policy.schedule_id, due.moments)
    left = list(dropwhile(decided.__contains__, due.moments))
    if len(left) < len(due.moments):
        policy.stretch = None
    now_left = list(takewhile(lambda moment: moment not in decided, left))
    if len(now_left) == len(left):
        if policy.decided_until and due.upcoming and due.upcoming >= policy.decided_until:
            policy.decided_until = None
        return replace(due, moments=left)
    missed = due.later.missed + sum(moment not in decided for moment in left[len(now_left) :])
    return Due(now_left, left[len(now_left)], later=replace(due.later, missed=missed, any=True))


def _decided(schedule: int, moments: Sequence[datetime]) -> set[datetime]:
    """Those of the moments that have an outcome."""
    if not moments:
        return set()
    rows = Run.objects.filter(schedule=schedule, trigger=Trigger.SCHEDULE).values_list("due_at", "last_due_at")
    ends = dict(rows.filter(due_at__lte=moments[0]).order_by("-due_at")[:1])  # a series may have begun before
    ends |= dict(rows.filter(due_at__range=(moments[0], moments[-1])))
    starts = sorted(ends)
    before = {moment: bisect_right(starts, moment) - 1 for moment in moments}
    return {moment for moment, index in before.items() if index >= 0 and moment <= ends[starts[index]]}


def _coming(policy: Claimed, first: datetime, now: datetime) -> Iterator[datetime]:
    """All moments after `first`, each under the timing that was in force then; the present timing has no end."""
    after = first
    for text, until in policy.former or ():
        end = datetime.fromisoformat(until)
        if text:
            yield from occurrences(from_text(text), after, end)
        after = max(after, end)
    if policy.timing:
        yield from occurrences(from_text(policy.timing), max(after, policy.timing_since or now), FOREVER)


def _is_named_late(policy: Claimed, first: datetime) -> bool:
    return not policy.former and policy.timing_since is not None and first < policy.timing_since and is_clocked(policy)


def is_clocked(policy: Claimed) -> bool:
    return bool(policy.timing) and isinstance(from_text(policy.timing).timing, Clocked)
