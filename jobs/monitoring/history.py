"""What happened to a schedule at a moment, or will happen? One sentence, as an operator would ask for it.

Its one rule: the ledger tells what happened, the timings in force then tell whether the schedule was due
(`schedules.past`), and its policy decides about future moments. It guesses nothing: where the clean-up deleted the
answer, the sentence says so.

A moment means the due moment equal to it, else the one in the same minute. Limit: a forecast tells what speaks against
a run today; an earlier run that is still unfinished, a late beat or an edit may yet change it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs.models import ACTIVE, SENDING, Act, Node, Policy, Run, State, Trigger
from jobs.monitoring.question import Question
from jobs.rules import policies, words
from jobs.rules.errors import Invalid
from jobs.rules.moments import FIRST, INSTANT, LAST, utc
from jobs.rules.occurrences import occurrences
from jobs.schedules import past

BECAME = {
    State.WAITING: "is waiting",
    State.QUEUED: "is queued",
    State.RUNNING: "is running",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "was cancelled",
    State.LOST: "was lost",
    State.EXPIRED: "expired",
}
STALE = "its timing was changed, and beat has yet to compute it"
MOST_FORESEEN = 10_000  # due moments that a forecast counts
UNREAD = "The schedule was created a moment ago, and beat has not read it yet: ask again in a few seconds."
OUT_OF_YEARS = "No schedule is due before the year 2 or after the year 9998: choose another moment."


@dataclass(frozen=True, slots=True)
class Answer:
    """What happened. `due_at` is the due moment that was meant; None: nothing was due. `run` holds its outcome.

    `before` and `after` are the nearest due moments before and after it, as far as they are known.
    """

    sentence: str
    due_at: datetime | None = None
    run: Run | None = None
    before: datetime | None = None
    after: datetime | None = None


def what_happened(schedule: PeriodicTask, moment: datetime) -> Answer:
    """What a schedule did at a moment, or will do. Raises `Invalid` for a moment without a time zone."""
    if moment.tzinfo is None:
        raise Invalid(f"The moment {moment} has no time zone: add its offset from UTC, such as +01:00.")
    try:
        moment = utc(moment)
    except Invalid:
        return Answer(OUT_OF_YEARS)
    if not FIRST <= moment < LAST:
        return Answer(OUT_OF_YEARS)
    policy = Policy.objects.select_related("schedule").filter(schedule=schedule.pk).first()
    if policy is None or past.known_since(policy) is None:
        return Answer(UNREAD)
    return _answer(Question(policy, moment))


def _answer(question: Question) -> Answer:
    due_at = question.due_at
    run, again = question.outcome(due_at or question.moment), question.repeat(due_at) if due_at else None
    if run:
        sentence = _told(question, run)
    elif due_at is None:
        sentence = _not_due(question)
    else:
        sentence = _foreseen(question, due_at) if due_at > question.now else _missing(question, due_at)
    if again:
        sentence = f"{sentence}; {_repeated(again)}"
    return Answer(_ended(sentence), due_at, run or again, question.before, question.after)


# --- a moment with an outcome ---------------------------------------------------------------------------------------


def _told(question: Question, run: Run) -> str:
    due = f"It was due on {_text(question.due_at or question.moment)}"
    if run.state != State.SKIPPED:
        return f"{due}{_life(question, run)}"
    if run.count == 1:
        return f"{due} and was skipped: {_plain(run.reason)}"
    row = f"{run.count:,} due moments from {_short(run.due_at)} to {_short(run.last_due_at)}"
    if question.due_at is None:
        return f"Its timings of {_text(question.moment)} are not kept; {row} were skipped: {_plain(run.reason)}"
    return f"{due}, one of {row} that were skipped: {_plain(run.reason)}"


def _life(question: Question, run: Run) -> str:
    """How late it started, how long it took and how it ended, or what it waits for."""
    why = f": {_plain(run.reason)}" if run.reason else ""
    became, started = BECAME[State(run.state)], run.started_at
    if started is None:
        before_start = "" if run.state in ACTIVE else " before it started"
        return f" and {became}{before_start}{_waits(question, run)}{why}"
    late = f"started {words.length(started - run.due_at)} late"
    if run.attempt > 1:
        late = f"started its attempt {run.attempt} on {words.day_and_time(started, _zone(), ' at ')}"
    if run.state == State.RUNNING:
        where = f" on {run.worker}" if run.worker else ""
        return f", {late} and has been running for {words.length(question.now - started)}{where}"
    return f", {late}, took {words.length(run.duration or timedelta(0))} and {became}{why}"


def _waits(question: Question, run: Run) -> str:
    if run.state == State.QUEUED:
        return ", but no worker has started it"
    if run.state != State.WAITING:
        return ""
    if run.not_before is None:
        return " for the runs before it to end"
    return f" until {_short(run.not_before)}" if run.not_before > question.now + SENDING else " to be sent"


def _repeated(run: Run) -> str:
    how = "retried it" if run.trigger == Trigger.RETRY else "ran it in a backfill"
    return f"{run.actor or 'Punctual'} {how}, and that run {BECAME[State(run.state)]}"


# --- a moment without an outcome ------------------------------------------------------------------------------------


def _missing(question: Question, due_at: datetime) -> str:
    due, policy = f"It was due on {_text(due_at)}", question.policy
    undecided = policy.owed_from or policy.next_due_at
    if undecided and due_at >= undecided:
        return f"{due}, but beat has not decided about it yet: {_undecided(question)}"
    if policy.forgotten_until and due_at <= policy.forgotten_until:
        until = _short(policy.forgotten_until)
        return f"{due}, but the clean-up has deleted what came of it: it has deleted runs due up to {until}"
    if due_at <= question.known_since:
        return _unknown(question)
    return f"{due} by its timing, but the ledger has no outcome: the row was deleted, or a clock or a zone was wrong"


def _undecided(question: Question) -> str:
    policy = question.policy
    if policy.pause and policy.owed_from and policy.pause.covers(question.now):
        return f"it is held back, {policy.pause.sentence}"
    if policy.invalid_reason:
        return _plain(policy.invalid_reason)
    if policy.stale_since:
        return STALE
    if not Node.objects.live().filter(kind=Node.Kind.BEAT).exists():
        return "no beat is running"
    return "it will in a few seconds"


def _not_due(question: Question) -> str:
    if question.moment <= question.known_since:
        return _unknown(question)
    policy, is_past = question.policy, question.moment <= question.now
    not_due = f"It {'was not' if is_past else 'will not be'} due on {_text(question.moment)}"
    if policy.stale_since and question.moment >= policy.stale_since:
        return f"Whether it is due on {_text(question.moment)} is not known yet: {STALE}"
    since = policy.timing_since
    if policy.invalid_reason and not policy.timing and since and question.moment >= since:
        return f"{not_due}, because it cannot be computed: {_plain(policy.invalid_reason)}"
    return f"{not_due}{_disabled(question)}{_neighbours(question)}"


def _unknown(question: Question) -> str:
    """The sentence of a moment before the timings are known."""
    moment, added = _text(question.moment), question.added()
    if added and added.at > question.moment:
        return f"It did not exist on {moment}: {added.actor} added it on {_short(added.at)}"
    since = _short(question.known_since)
    return f"It did not exist on {moment}, or its timings of that time are not kept: they are known since {since}"


def _disabled(question: Question) -> str:
    """By whom it was disabled, if nothing was due since then and until the moment."""
    policy, since = question.policy, question.policy.timing_since
    is_past, act = question.moment <= question.now, question.switched()
    is_disabled_now = not policy.schedule.enabled and (since is None or question.moment >= since)
    if act and act.after and act.after["enabled"] is False and (is_disabled_now or is_past):
        was_due_since = question.before is not None and question.before > act.at
        did = "added it disabled" if act.act == Act.ADD else "disabled it"
        return "" if was_due_since else f", because {act.actor} {did} on {_short(act.at)}"
    if not is_disabled_now:
        return ""
    is_over = policy.schedule.one_off or policy.remaining_runs == 0
    return f", because {'its last run has disabled it' if is_over else 'it is disabled'}"


def _neighbours(question: Question) -> str:
    before, after = (moment and _short(moment) for moment in (question.before, question.after))
    if before and after:
        return f"; the nearest due moments are {before} and {after}"
    return f"; the last due moment was {before}" if before else f"; the next one is {after}" if after else ""


# --- a future moment ------------------------------------------------------------------------------------------------


def _foreseen(question: Question, due_at: datetime) -> str:
    will, policy = f"It will be due on {_text(due_at)}", question.policy
    if policy.invalid_reason:
        return f"{will}, but cannot run: {_plain(policy.invalid_reason)}"
    rule = policies.Rule.of(policy, one_off=policy.schedule.one_off)
    moments = _coming(question, due_at) if rule.skip_next or rule.limit is not None else [due_at]
    if len(moments) > MOST_FORESEEN:
        return f"{will}, after more than {MOST_FORESEEN:,} other moments: ask again later what speaks against it"
    foreseen = dict(policies.foresee(rule, moments))
    if due_at not in foreseen:
        runs = [_short(moment) for moment, reason in foreseen.items() if not reason]
        left = f"{len(runs) or 'no'} run{'' if len(runs) == 1 else 's'}"
        last = f", the last of them due on {runs[-1]}" if runs else ""
        return f"It will not run on {_text(due_at)}: it has {left} left{last}"
    if not (reason := foreseen[due_at]):
        return f"{will}, and nothing speaks against its run"
    if rule.pause and reason == rule.pause.sentence and rule.pause.catch_up is not policies.CatchUp.NONE:
        return f"{will}, but is held back until the pause ends: {reason}; catch-up after it: {rule.pause.catch_up}"
    return f"{will}, but will be skipped: {_plain(reason)}"


def _coming(question: Question, due_at: datetime) -> list[datetime]:
    """The undecided moments up to one, and at most one more than a forecast counts."""
    first = question.policy.owed_from or question.policy.next_due_at or due_at
    spec = question.spec
    return list(islice(occurrences(spec, first - INSTANT, due_at), MOST_FORESEEN + 1)) if spec else [due_at]


# --- sentences ------------------------------------------------------------------------------------------------------


def _plain(reason: str) -> str:
    """A reason of the ledger within a sentence."""
    return " ".join(reason.split()).removeprefix("cancelled: ").removesuffix(".")


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(("?", "!")) else f"{sentence}."


def _text(moment: datetime) -> str:
    return f"{words.day_and_time(moment, _zone(), ' at ')} ({_zone()})"


def _short(moment: datetime) -> str:
    return words.day_and_time(moment, _zone())


def _zone() -> str:
    return timezone.get_default_timezone_name()
