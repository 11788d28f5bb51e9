"""How is a schedule doing, and who is told when? Decisions about facts that others have read.

Its one rule: values in, a finding out, without a database or a clock; `now` is a parameter. The worst finding counts:
what cannot run at all comes first, a long pause last. Sentences hold no moments, so that each reader gets these in an
own time zone.
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, tzinfo
from enum import StrEnum
from uuid import UUID

from jobs.rules import words


class Health(StrEnum):
    OK = "ok"
    BLOCKED = "blocked"
    FAILING = "failing"
    LATE = "late"
    SLOW = "slow"
    SHORT = "short"
    PAUSED = "paused"
    DOWN = "down"  # a part of the system


# What a person reads beside the name of a schedule.
TITLES = {
    Health.OK: "ok",
    Health.BLOCKED: "cannot run",
    Health.FAILING: "failing",
    Health.LATE: "late",
    Health.SLOW: "running too long",
    Health.SHORT: "suspiciously short",
    Health.PAUSED: "paused for long",
    Health.DOWN: "down",
}
LATE_AFTER = timedelta(minutes=5)
LONGEST_PAUSE = timedelta(days=7)
MOST_FAILURES = 100  # in a row, that a limit may ask for

# The usual runtime of a schedule follows from its last `SAMPLE` successes, once there are `LEAST_RUNS`.
SAMPLE, LEAST_RUNS = 200, 20
FACTOR = 3  # beyond the usual range
SHORTEST_LIMIT = timedelta(minutes=1)  # no run counts as too long before that
LEAST_SHORT = timedelta(seconds=2)  # no run counts as too short where runs usually take less than that


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits within which a schedule is well. None: no limit."""

    late_after: timedelta = LATE_AFTER
    failures: int = 1
    longest: timedelta | None = None
    shortest: timedelta | None = None
    longest_pause: timedelta | None = LONGEST_PAUSE


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a due moment or a request ended. `duration` is None if it never started."""

    run: UUID
    due_at: datetime
    state: str
    reason: str = ""
    duration: timedelta | None = None

    @property
    def is_bad(self) -> bool:
        return self.state in {"failed", "lost"}

    @property
    def is_missed(self) -> bool:
        """Whether it should have run, but never started."""
        return self.state == "expired" or (self.state == "skipped" and self.reason.startswith("missed:"))


@dataclass(frozen=True, slots=True)
class Active:
    """An unfinished run, or a due moment without a run. `since` is its start, or when it was due."""

    since: datetime
    due_at: datetime
    run: UUID | None = None
    why: str = ""  # what it waits for, or where it runs


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger says about a schedule. `outcomes` are the last ones, the latest first."""

    is_watched: bool = True
    invalid_reason: str = ""
    paused_since: datetime | None = None
    pause: str = ""
    unstarted: Active | None = None
    running: Active | None = None
    outcomes: Sequence[Outcome] = field(default=())


@dataclass(frozen=True, slots=True)
class Finding:
    """The health of a subject. `since` is None if it is so from now on; `count` says how often in a row."""

    health: Health
    sentence: str
    expected: str = ""
    since: datetime | None = None
    due_at: datetime | None = None
    run: UUID | None = None
    count: int = 1


def judge(facts: Facts, limits: Limits, now: datetime) -> Finding:
    """The health of a schedule."""
    if not facts.is_watched:
        return Finding(Health.OK, "It is disabled, so nothing is expected of it.")
    if facts.invalid_reason:
        return Finding(Health.BLOCKED, facts.invalid_reason, "It can run.")
    rules = (_failing, _late, _slow, _short, _paused)
    return next(filter(None, (rule(facts, limits, now) for rule in rules)), None) or _well(facts)


def _failing(facts: Facts, limits: Limits, _: datetime) -> Finding | None:
    ended = [each for each in facts.outcomes if each.is_bad or each.state == "succeeded"]
    bad = ended[: next((at for at, each in enumerate(ended) if not each.is_bad), len(ended))]
    if len(bad) < limits.failures:
        return None
    last = bad[0]
    return Finding(
        Health.FAILING, last.reason, "It succeeds.", bad[-1].due_at, due_at=last.due_at, run=last.run, count=len(bad)
    )


def _late(facts: Facts, limits: Limits, now: datetime) -> Finding | None:
    expected = f"It starts within {words.length(limits.late_after)}."
    unstarted = facts.unstarted
    if unstarted and unstarted.since + limits.late_after < now:
        late = words.length(now - unstarted.since)
        sentence = f"It has not started {late} after its time{f': {unstarted.why}' if unstarted.why else '.'}"
        return Finding(Health.LATE, sentence, expected, unstarted.since, due_at=unstarted.due_at, run=unstarted.run)
    missed = facts.outcomes[:1]
    if not facts.running and missed and missed[0].is_missed:
        last = missed[0]
        return Finding(Health.LATE, last.reason, expected, last.due_at, due_at=last.due_at, run=last.run)
    return None


def _slow(facts: Facts, limits: Limits, now: datetime) -> Finding | None:
    running = facts.running
    if running is None or limits.longest is None or running.since + limits.longest >= now:
        return None
    sentence = (
        f"It has been running for {words.length(now - running.since)}{f' on {running.why}' if running.why else ''}."
    )
    expected = f"It ends within {words.length(limits.longest)}."
    return Finding(Health.SLOW, sentence, expected, running.since, due_at=running.due_at, run=running.run)


def _short(facts: Facts, limits: Limits, _: datetime) -> Finding | None:
    last = next((each for each in facts.outcomes if each.state == "succeeded"), None)
    if last is None or limits.shortest is None or last.duration is None or last.duration >= limits.shortest:
        return None
    sentence = f"It succeeded after only {words.length(last.duration)}."
    expected = f"It takes at least {words.length(limits.shortest)}."
    return Finding(Health.SHORT, sentence, expected, last.due_at, due_at=last.due_at, run=last.run)


def _paused(facts: Facts, limits: Limits, now: datetime) -> Finding | None:
    since = facts.paused_since
    if since is None or limits.longest_pause is None or since + limits.longest_pause >= now:
        return None
    expected = f"No pause is longer than {words.length(limits.longest_pause)}."
    return Finding(Health.PAUSED, f"It is {facts.pause}.", expected, since)


def _well(facts: Facts) -> Finding:
    if facts.running:
        return Finding(Health.OK, "It is running.", due_at=facts.running.due_at, run=facts.running.run)
    last = facts.outcomes[0] if facts.outcomes else None
    if last is None:
        return Finding(Health.OK, "Nothing speaks against its next run.")
    took = f" after {words.length(last.duration)}" if last.duration is not None else ""
    became = "succeeded" if last.state == "succeeded" else f"ended as {last.state}"
    return Finding(Health.OK, f"Its last run {became}{took}.", due_at=last.due_at, run=last.run)


def usual_range(durations: Collection[timedelta]) -> tuple[timedelta | None, timedelta | None]:
    """The shortest and the longest runtime that are not suspicious, from those of the last successes.

    They lie a factor beyond the first and the last percentile. None where there are too few runs, or too short ones.
    """
    if len(durations) < LEAST_RUNS:
        return None, None
    ordered = sorted(durations)
    low, high = ordered[len(ordered) // 100], ordered[math.ceil(len(ordered) * 0.99) - 1]
    return low / FACTOR if low >= LEAST_SHORT else None, max(high * FACTOR, SHORTEST_LIMIT)


def matches(patterns: Collection[str], *names: str) -> bool:
    """Whether one of the names is one of these patterns, in which * stands for any text. Without patterns: yes."""
    return not patterns or any(_expression(pattern).fullmatch(name) for pattern in patterns for name in names if name)


def _expression(pattern: str) -> re.Pattern[str]:
    """Each part but the last is matched at its first place, for good (`?>`): trying others could take for ever."""
    first, *rest = map(re.escape, str(pattern).split("*"))  # a loaded row may hold anything
    ends = [f"(?>.*?{part})" for part in rest[:-1]] + [f".*{part}" for part in rest[-1:]]
    return re.compile(first + "".join(ends), re.DOTALL)


def in_quiet_hours(now: datetime, start: time, end: time, zone: tzinfo) -> bool:
    """Whether `now` is between two times of day, which may have midnight between them. Equal ones: never."""
    at = now.astimezone(zone).time()
    return start <= at < end if start <= end else at >= start or at < end
