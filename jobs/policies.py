"""What should happen to a due moment, a failed attempt, a lost one: decided here, without a database or a clock.

Its one rule: values in, a decision out; `now` is always a parameter. Each skipped moment gets a reason in one plain
sentence, because that sentence is what a person reads in the ledger at four in the morning.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# A moment claimed later than this was missed: beat was down, and catch-up decides about it.
MISSED_AFTER = timedelta(seconds=60)
# A run whose process died is tried this often in all, even where failures are not retried.
LOST_ATTEMPTS = 3
# The longest wait between two attempts.
LONGEST_RETRY_DELAY = timedelta(hours=6)
# The longest wait that a task may ask for itself: a date that no calendar holds could not be read back.
LONGEST_COUNTDOWN = timedelta(days=3650)
# How long a sent message may go without a start before it counts as lost; doubles with each sending, up to an hour.
FIRST_PATIENCE = timedelta(seconds=20)
LONGEST_PATIENCE = timedelta(hours=1)


class Overlap(StrEnum):
    """What to do with a due moment while an earlier run of the schedule is not over."""

    SKIP = "skip"
    ALLOW = "allow"


class CatchUp(StrEnum):
    """Which moments that passed while no beat was there are still run."""

    NONE = "none"
    LATEST = "latest"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Rule:
    """The part of a schedule's policy that decides about due moments."""

    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.LATEST
    window: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Busy:
    """The run that is in the way of the next one: when it was due, what it does, where."""

    due_at: datetime
    state: str
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one due moment, or of a stretch of skipped ones; an empty reason means it runs."""

    due_at: datetime
    last_due_at: datetime
    count: int = 1
    reason: str = ""


def decide(rule: Rule, due: Sequence[datetime], now: datetime, *, busy: Busy | None, more: bool) -> list[Decision]:
    """Decide about the moments of one schedule that are due, oldest first.

    `more` says that younger due moments follow in the next pass, so that none of these can be the latest.
    """
    caught_up = _caught_up(rule, due, now, more=more)
    decisions: list[Decision] = []
    for moment in due:
        reason = ""
        if now - moment > MISSED_AFTER and moment not in caught_up:
            reason = _missed_sentence(rule)
        elif busy and rule.overlap is Overlap.SKIP:
            reason = _overlap_sentence(busy)
        else:
            busy = Busy(moment, "waiting")
        _append(decisions, moment, reason)
    return decisions


def _caught_up(rule: Rule, due: Sequence[datetime], now: datetime, *, more: bool) -> set[datetime]:
    missed = [moment for moment in due if MISSED_AFTER < now - moment <= rule.window]
    if rule.catch_up is CatchUp.ALL:
        return set(missed)
    is_latest = missed and missed[-1] == due[-1] and not more
    return {missed[-1]} if rule.catch_up is CatchUp.LATEST and is_latest else set()


def _append(decisions: list[Decision], moment: datetime, reason: str) -> None:
    """Add a decision, growing the last one where the same reason skipped the moment before."""
    last = decisions[-1] if decisions else None
    if last and reason and last.reason == reason:
        decisions[-1] = Decision(last.due_at, moment, last.count + 1, reason)
    else:
        decisions.append(Decision(moment, moment, 1, reason))


def skip(due: Sequence[datetime], reason: str) -> list[Decision]:
    """Skip all these moments for one reason."""
    return [Decision(due[0], due[-1], len(due), reason)]


def _missed_sentence(rule: Rule) -> str:
    kept = {
        CatchUp.NONE: "nothing that was missed",
        CatchUp.LATEST: "only the latest missed one",
        CatchUp.ALL: f"what was missed in the last {rule.window}",
    }
    return f"missed: no beat was running when this was due; catch-up runs {kept[rule.catch_up]}"


def _overlap_sentence(busy: Busy) -> str:
    where = f" on {busy.worker}" if busy.worker else ""
    return f"overlap: the run due {busy.due_at:%Y-%m-%d %H:%M:%S} UTC was still {busy.state}{where}; policy: skip"


def retry_delay(attempt: int, max_attempts: int, base: timedelta) -> timedelta | None:
    """How long to wait after failed attempt number `attempt` (from 1), or None when the attempts are used up.

    The delay doubles with each attempt, is capped, and is spread by a tenth: many failures must not return at once.
    """
    if attempt >= max_attempts:
        return None
    delay = min(min(base, LONGEST_RETRY_DELAY) * _doubled(attempt), LONGEST_RETRY_DELAY)
    return delay * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load, guards nothing


def runs_again_after_loss(attempt: int, max_attempts: int, *, wanted: bool) -> bool:
    """Whether a run whose process died during attempt number `attempt` is started once more."""
    return wanted and attempt < max(max_attempts, LOST_ATTEMPTS)


def patience(sends: int) -> timedelta:
    """How long a message that was sent `sends` times (from 1) may go without a start before it is sent again."""
    return min(FIRST_PATIENCE * _doubled(sends), LONGEST_PATIENCE)


def _doubled(times: int) -> int:
    """1, 2, 4 ... for the first, second, third time; bounded, so that no length of time overflows."""
    return 1 << min(max(times, 1) - 1, 20)
