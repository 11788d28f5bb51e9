"""What should happen to a due moment, a failed attempt or a lost attempt?

Its one rule: values in, a decision out, without a database or a clock; `now` is always a parameter. Each skipped moment
gets a reason in one plain sentence, which an operator reads in the ledger at four in the morning.
"""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

# A moment that beat claims later than this was missed, and catch-up decides about it.
MISSED_AFTER = timedelta(seconds=60)
# The highest limit of moments to catch up that a policy may set.
MOST_CAUGHT_UP = 10_000
# A run whose process died may have this many attempts in all, even where failures are not retried.
LOST_ATTEMPTS = 3
# The longest wait between two attempts, before its random spread.
LONGEST_RETRY_DELAY = timedelta(hours=6)
# The longest wait that a task may ask for: a date after the year 9999 could not be read back.
LONGEST_COUNTDOWN = timedelta(days=3650)
# How long a sent message has to start its run before it counts as lost; doubles with each sending, up to an hour.
FIRST_PATIENCE = timedelta(seconds=20)
LONGEST_PATIENCE = timedelta(hours=1)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Overlap(StrEnum):
    """What to do with a due moment while an earlier run of the schedule is unfinished."""

    SKIP = "skip"
    QUEUE_ONE = "queue_one"
    ALLOW = "allow"
    CANCEL_PREVIOUS = "cancel_previous"


class CatchUp(StrEnum):
    """Which due moments of an outage or a pause still run afterwards."""

    NONE = "none"
    LATEST = "latest"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Pause:
    """No due moment runs from `start` until `end` (None: until resumed). Then `catch_up` decides which of them run."""

    start: datetime
    end: datetime | None
    by: str
    reason: str
    catch_up: CatchUp

    @classmethod
    def of(cls, policy: Any) -> "Pause | None":
        """The pause in a policy's columns; None before the first pause."""
        if policy.paused_at is None:
            return None
        catch_up = CatchUp(policy.pause_catch_up)
        return cls(policy.paused_at, policy.paused_until, policy.paused_by, policy.pause_reason, catch_up)

    def covers(self, moment: datetime) -> bool:
        return self.start <= moment and (self.end is None or moment < self.end)

    def holds_back(self, moment: datetime, now: datetime) -> bool:
        """Whether the decision about the moment waits for the end of the pause."""
        return self.catch_up is not CatchUp.NONE and self.covers(moment) and self.covers(now)

    @property
    def sentence(self) -> str:
        until = f" until {_text(self.end)}" if self.end else ""
        return f"paused by {self.by}{until}{': ' if self.reason else ''}{self.reason}"


@dataclass(frozen=True, slots=True)
class Rule:
    """The part of a schedule's policy that decides about due moments."""

    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.LATEST
    window: timedelta = timedelta(days=1)
    cap: int = 100
    pause: Pause | None = None
    skip_next: int = 0
    skip_from: datetime | None = None
    limit: int | None = None

    @classmethod
    def of(cls, policy: Any, *, one_off: bool) -> "Rule":
        """The rule in a policy's columns."""
        return cls(
            overlap=Overlap(policy.overlap),
            catch_up=CatchUp(policy.catch_up),
            window=policy.catch_up_window,
            cap=policy.catch_up_cap,
            pause=Pause.of(policy),
            skip_next=policy.skip_next,
            skip_from=policy.skip_from,
            limit=1 if one_off else policy.remaining_runs,
        )

    @property
    def is_plain(self) -> bool:
        """Whether nothing but an earlier run can keep a moment on time from running."""
        return self.pause is None and not self.skip_next and self.limit is None

    def by_hand(self, due: Sequence[datetime]) -> Sequence[datetime]:
        """The moments that an operator chose to skip: the next ones after the choice."""
        if not self.skip_next:
            return ()
        return [moment for moment in due if self.skip_from is None or moment > self.skip_from][: self.skip_next]


@dataclass(frozen=True, slots=True)
class Busy:
    """An unfinished run of the schedule: when it was due, its state and its worker."""

    due_at: datetime
    state: str
    worker: str = ""
    waiting_turn: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """How many late moments are left for later passes that may run, each up to the cap; `any`: also one on time."""

    missed: int = 0
    paused: int = 0
    any: bool = False


NONE_LATER = Later()


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one due moment, or of a stretch of skipped moments; an empty reason means it runs.

    With `waiting_turn` it runs when the runs before it have ended.
    """

    due_at: datetime
    last_due_at: datetime
    count: int = 1
    reason: str = ""
    waiting_turn: bool = False


def decide(
    rule: Rule, due: Sequence[datetime], now: datetime, *, busy: Sequence[Busy] = (), later: Later = NONE_LATER
) -> list[Decision]:
    """Decide about the due moments of one schedule, oldest first.

    `busy` lists its unfinished runs, oldest first. `later` says what is left for later passes.
    Moments after the last run of a limited schedule get no decision: nothing is due after that run.
    """
    if len(due) == 1 and not busy and rule.is_plain and now - due[0] <= MISSED_AFTER:
        return [Decision(due[0], due[0])]
    if rule.limit == 0:
        return skip(due, USED_UP)
    by_hand = set(rule.by_hand(due))
    late = {moment: reason for moment, reason in _late(rule, due, now).items() if moment not in by_hand}
    on_time = [moment for moment in due if moment not in late and moment not in by_hand]
    caught_up = _caught_up(rule, late, on_time, now, later)
    unwanted = {moment: reason for moment, reason in late.items() if moment not in caught_up}
    unwanted |= dict.fromkeys(by_hand, SKIPPED_BY_HAND)
    taken = _taken(rule, [moment for moment in due if moment not in unwanted], busy, catches_up=bool(caught_up))
    if rule.limit is not None and len(taken) == rule.limit:
        due = due[: due.index(taken[-1]) + 1]
    runs = {moment: _waits_for_turn(rule, busy, moment != taken[0]) for moment in taken}
    decisions: list[Decision] = []
    for moment in due:
        if moment in runs:
            decisions.append(Decision(moment, moment, waiting_turn=runs[moment]))
        else:
            _skip_one(decisions, moment, unwanted.get(moment) or _overlap_sentence(rule, busy, taken))
    return decisions


USED_UP = "limited: the schedule has no remaining runs"
NAMED_LATE = "late: this moment was over when the schedule was enabled or changed"
SKIPPED_BY_HAND = "by hand: an operator chose to skip the next due moments"


def _late(rule: Rule, due: Sequence[datetime], now: datetime) -> dict[datetime, str]:
    """The paused and the missed moments, in order, each with the reason."""
    missed_sentence = _missed_sentence(rule)
    reasons = {}
    for moment in due:
        if rule.pause and rule.pause.covers(moment):
            reasons[moment] = rule.pause.sentence
        elif now - moment > MISSED_AFTER:
            reasons[moment] = missed_sentence
    return reasons


def _caught_up(
    rule: Rule, late: Collection[datetime], on_time: Collection[datetime], now: datetime, later: Later
) -> set[datetime]:
    """The late moments that run anyway. The pause decides about paused moments, the policy about missed ones.

    `LATEST` runs one moment, unless a later one runs: one on time, one of the other kind, or one of the next pass.
    """
    paused = [moment for moment in late if rule.pause and rule.pause.covers(moment)]
    missed = [moment for moment in late if not (rule.pause and rule.pause.covers(moment))]
    recent = [moment for moment in missed if now - moment <= rule.window]
    after_pause = rule.pause.catch_up if rule.pause else CatchUp.NONE
    chosen: set[datetime] = set()
    latest: list[datetime] = []
    for kind, candidates, left in ((rule.catch_up, recent, later.missed), (after_pause, paused, later.paused)):
        if kind is CatchUp.ALL and left < rule.cap:
            chosen.update(candidates[-(rule.cap - left) :])
        elif kind is CatchUp.LATEST and not later.any:
            latest += candidates[-1:]
    if latest and max(latest) > max(chosen.union(on_time), default=LONG_AGO):
        chosen.add(max(latest))
    return chosen


def _taken(rule: Rule, wanted: Sequence[datetime], busy: Sequence[Busy], *, catches_up: bool) -> Sequence[datetime]:
    """The moments that run, now or one after the other; the latest where not all may run.

    While catch-up runs all late moments, `SKIP` and `QUEUE_ONE` skip nothing: the runs wait for their turns.
    """
    every_late_one = CatchUp.ALL in (rule.catch_up, rule.pause.catch_up if rule.pause else None)
    if rule.overlap is Overlap.CANCEL_PREVIOUS:
        room = 1
    elif rule.overlap is Overlap.ALLOW or (catches_up and every_late_one):
        room = len(wanted)
    elif rule.overlap is Overlap.QUEUE_ONE:
        room = all(run.waiting_turn for run in busy) + all(not run.waiting_turn for run in busy)
    else:
        room = int(not busy)
    latest = wanted[max(0, len(wanted) - room) :]
    return latest if rule.limit is None else latest[: rule.limit]


def _waits_for_turn(rule: Rule, busy: Sequence[Busy], has_elder: bool) -> bool:
    return rule.overlap is not Overlap.ALLOW and (bool(busy) or has_elder)


def _skip_one(decisions: list[Decision], moment: datetime, reason: str) -> None:
    """Add a skipped moment, or extend the last decision if it has the same reason."""
    last = decisions[-1] if decisions else None
    if last and last.reason == reason:
        decisions[-1] = Decision(last.due_at, moment, last.count + 1, reason)
    else:
        decisions.append(Decision(moment, moment, 1, reason))


def foresee(rule: Rule, upcoming: Iterable[datetime]) -> Iterator[tuple[datetime, str]]:
    """Upcoming moments up to a limited schedule's last run, each with the reason to skip it (empty: it runs)."""
    left, skipped = rule.limit, 0
    for moment in upcoming:
        if left == 0:
            return
        if skipped < rule.skip_next and (rule.skip_from is None or moment > rule.skip_from):
            skipped += 1
            yield moment, SKIPPED_BY_HAND
        elif rule.pause and rule.pause.covers(moment):
            yield moment, rule.pause.sentence
        else:
            left = left and left - 1
            yield moment, ""


def skip(due: Sequence[datetime], reason: str) -> list[Decision]:
    """Skip all these moments for one reason."""
    return [Decision(due[0], due[-1], len(due), reason)]


def _missed_sentence(rule: Rule) -> str:
    window = str(rule.window).removesuffix(", 0:00:00")  # 1 day
    limits = {
        CatchUp.NONE: "",
        CatchUp.LATEST: f", up to {window} old",
        CatchUp.ALL: f", up to {window} old, at most {rule.cap}",
    }
    allowed = f"{MISSED_AFTER.total_seconds():g} seconds"
    return f"missed: no beat claimed this within {allowed}; catch-up: {rule.catch_up}{limits[rule.catch_up]}"


def _overlap_sentence(rule: Rule, busy: Sequence[Busy], taken: Sequence[datetime]) -> str:
    policy = rule.overlap.replace("_", " ")
    if not busy:
        return f"overlap: the run due {_text(taken[-1])} came due before this one started; policy: {policy}"
    where = f" on {busy[0].worker}" if busy[0].worker else ""
    return f"overlap: the run due {_text(busy[0].due_at)} was still {busy[0].state}{where}; policy: {policy}"


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def jittered(due_at: datetime, upcoming: datetime | None, jitter: timedelta) -> datetime:
    """When a run starts: at random up to `jitter` after it is due, but before the next run is due."""
    room = upcoming - due_at - timedelta.resolution if upcoming else jitter
    return due_at + min(jitter, room) * random.random()  # noqa: S311 - only spreads load


def retry_delay(attempt: int, max_attempts: int, base: timedelta) -> timedelta | None:
    """How long to wait after failed attempt number `attempt` (from 1); None when no attempts are left.

    The delay doubles with each attempt up to a cap. Up to a tenth more or less spreads many failures over time.
    """
    if attempt >= max_attempts:
        return None
    delay = min(min(base, LONGEST_RETRY_DELAY) * _doubled(attempt), LONGEST_RETRY_DELAY)
    return delay * random.uniform(0.9, 1.1)  # noqa: S311 - only spreads load


def runs_again_after_loss(attempt: int, max_attempts: int, *, wanted: bool) -> bool:
    """Whether a run whose process died during attempt number `attempt` gets another attempt."""
    return wanted and attempt < max(max_attempts, LOST_ATTEMPTS)


def patience(sends: int) -> timedelta:
    """How long a message that was sent `sends` times (from 1) has to start its run before it is sent again."""
    return min(FIRST_PATIENCE * _doubled(sends), LONGEST_PATIENCE)


def is_past_hope(sends: int, limit: timedelta) -> bool:
    """Whether a run that was sent `sends` times, and never started, has waited for `limit` since the first time.

    The number tells the time: at least the patience of each sending passes before the next.
    """
    return waited(sends, limit) >= limit


def waited(sends: int, limit: timedelta = timedelta.max) -> timedelta:
    """For how long a run has waited at least that was sent `sends` times, and then once more; not much over `limit`."""
    total, sent = timedelta(0), 0
    while sent < sends and total < limit:
        sent += 1
        total += patience(sent)
    return total


def unanswered(sends: int, queue: str, workers: Collection[str], strangers: Collection[str]) -> str:
    """Why no worker started a run that was sent `sends` times. `strangers` consume its queue, but do not report."""
    where = f"queue `{queue}`" if queue else "its queue"
    if strangers:
        names = ", ".join(sorted(strangers))
        why = f"{names} may have taken it, which consumes {where} but does not report to the ledger: stop or upgrade it"
    elif workers:
        why = f"the consumers of {where} are busy or do not start runs"
    else:
        why = f"no worker consumes {where}"
    return f"sent {'once' if sends == 1 else f'{sends} times'}, no worker took it: {why}"


def _doubled(times: int) -> int:
    """1, 2, 4 ... for the first, second, third time; bounded, so that no timedelta overflows."""
    return 1 << min(max(times, 1) - 1, 20)
