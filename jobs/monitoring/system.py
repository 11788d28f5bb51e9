"""Which parts of the system are not well: beat, the workers, queues, the broker, the clean-up, channels?

Its one rule: it asks the ledger only, never the broker, so it answers while the broker hangs. Each query is bounded
and has an index. One cause gives one finding: without a worker, no queue is reported besides.

Limits: it knows processes by their heartbeats, and the age of a message by how often its run was sent. Runs that wait
for a turn or a rate limit, or that were retried, do not show that the broker takes no messages.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from celery import current_app
from django.conf import settings
from django.db.models import Count, F, Max, Min, Q
from django_celery_beat.models import PeriodicTask

from jobs.messages import dispatch
from jobs.models import LONGEST_NAME, SENDING, UNSTARTED, Channel, Node, Run, RunQuerySet, State, Trigger
from jobs.models.nodes import SILENT_AFTER
from jobs.rules import policies, words
from jobs.rules.health import Finding, Health
from jobs.schedules import status

Findings = dict[str, Finding]

GRACE = timedelta(minutes=1)  # for restarts, and for a message to be taken
CLEANED_EVERY = timedelta(days=3)
CHANNEL_GRACE = timedelta(minutes=5)
QUEUE_AGE_ALERT = 600.0  # seconds, unless the setting of this name says otherwise
CLEANUP = "jobs.cleanup"
MOST_NODES, MOST_CHANNELS, MOST_SCHEDULES = 1_000, 1_000, 100
MOST_SENT = 10_000  # runs that were sent, whose ages are compared: those that are sent again next
MOST_UNSENT = 1_000
LATEST = 253_402_300_799  # seconds of a timestamp: the end of the year 9999
# A run whose message no worker has answered. A worker that keeps it for a rate limit gives another reason.
SILENT = Q(reason="") | Q(reason__startswith="sent ")
TITLES = {"beat": "Beat", "worker": "Workers", "publishing": "Sending to the broker", "retention": "The clean-up"}
KINDS = {
    "queue": "Queue {}",
    "backlog": "The backlog of queue {}",
    "stranger": "The stranger {}",
    "node": "{}",
    "channel": "Channel {}",
}


def findings(now: datetime) -> Findings:
    """The parts that are down, by subject."""
    nodes = list(Node.objects.order_by("-seen_at")[:MOST_NODES])
    live = [node for node in nodes if node.stopped_at is None and node.seen_at > now - SILENT_AFTER]
    is_wanted = PeriodicTask.objects.filter(enabled=True).exists()
    found: Findings = {}
    if is_wanted or any(node.kind == Node.Kind.BEAT for node in nodes):
        found |= _absent(Node.Kind.BEAT.value, "no due moment gets a run", nodes, live, now)
    if is_wanted or Run.objects.filter(state__in=UNSTARTED).exists():
        found |= _absent(Node.Kind.WORKER.value, "no run starts", nodes, live, now)
    if "worker" not in found:
        found |= _queues(live, now)
    if any(node.kind == Node.Kind.BEAT for node in live):
        found |= _publishing(now)
    return {**found, **_retention(now), **_faults(live), **_channels(now)}


def title(subject: str) -> str:
    """The name of a part for people."""
    kind, _, name = subject.partition(":")
    return KINDS[kind].format(name) if name and kind in KINDS else TITLES.get(subject, subject)


def _down(
    sentence: str, expected: str, since: datetime | None = None, count: int = 1, run: UUID | None = None
) -> Finding:
    return Finding(Health.DOWN, sentence, expected, since, count=count, run=run)


def _subject(kind: str, name: str) -> str:
    return f"{kind}:{name}"[:LONGEST_NAME]


# --- processes -------------------------------------------------------------------------------------------------------


def _absent(kind: str, does: str, nodes: Sequence[Node], live: Sequence[Node], now: datetime) -> Findings:
    """The finding that no node of this kind lives, unless one may just be starting.

    If none was ever there, the other processes tell: it is not there since they have started.
    """
    own = [node for node in nodes if node.kind == kind]
    ends = [node.stopped_at or node.seen_at for node in own]
    since = max(ends, default=None) or min((node.started_at for node in live), default=None)
    if set(own) & set(live) or (since and since > now - GRACE):
        return {}
    absent = f"No {kind} has reported for {words.length(now - since)}" if since else f"No {kind} has ever reported"
    return {kind: _down(f"{absent}: {does}. Start one: manage.py {kind}", f"A {kind} is running.", since)}


def _faults(live: Iterable[Node]) -> Findings:
    return {
        _subject("stranger" if node.kind == Node.Kind.STRANGER else "node", node.name): _down(
            node.problem, "It reports no fault.", node.started_at
        )
        for node in live
        if node.problem
    }


# --- queues ----------------------------------------------------------------------------------------------------------


def _queues(live: Sequence[Node], now: datetime) -> Findings:
    """The queues that no worker consumes, and those whose workers do not keep up."""
    limit = timedelta(seconds=getattr(settings, "QUEUE_AGE_ALERT", QUEUE_AGE_ALERT))
    found = {}
    unanswered = _unanswered(now)
    are_all = sum(number for number, _ in unanswered.values()) < MOST_SENT
    for queue, (number, since) in sorted(unanswered.items()):
        age, runs = now - since, f"{'' if are_all else 'at least '}{number:,} run{'' if number == 1 else 's'}"
        consumers = [node.name for node in live if node.kind != Node.Kind.BEAT and node.queues and node.consumes(queue)]
        if not consumers and age > GRACE:
            sentence = f"No worker consumes queue {queue}, where {runs} wait{'s' if number == 1 else ''}, "
            sentence += f"the oldest for {words.length(age)}. Start one: manage.py worker --queues {queue}"
            found[_subject("queue", queue)] = _down(sentence, "A worker consumes it.", since, number)
        elif consumers and age > limit:
            sentence = f"The oldest of {runs} in queue {queue} has waited for {words.length(age)}. Its workers: "
            sentence += f"{words.listed(sorted(consumers))}. Start more, or see what they execute: manage.py doctor"
            expected = f"A run is started within {words.length(limit)} after it was sent."
            found[_subject("backlog", queue)] = _down(sentence, expected, since, number)
    return found


def _unanswered(now: datetime) -> dict[str, tuple[int, datetime]]:
    """How many runs of each queue no worker has answered, and when the oldest was first sent (index run_to_send).

    A sender has a run to itself while it sends it again: it is waiting then.
    """
    again = Q(state=State.WAITING, sends__gt=0, queued_at__isnull=False, not_before__lte=now + SENDING)
    sent = Run.objects.filter(SILENT, Q(state=State.QUEUED) | again, state__in=UNSTARTED, not_before__isnull=False)
    next_ones = sent.order_by("not_before").values("pk")[:MOST_SENT]
    groups = Run.objects.filter(pk__in=next_ones).order_by().values_list("task", "queue", "options", "sends")
    found: dict[str, tuple[int, datetime]] = {}
    for task, queue, options, sends, number, queued_at in groups.annotate(Count("pk"), Min("queued_at")):
        name = dispatch.queue_of(Run(task=task, queue=queue, options=options))
        if name and queued_at:
            before, oldest = found.get(name, (0, now))
            found[name] = before + number, min(oldest, queued_at - policies.waited(sends - 1))
    return found


# --- the broker ------------------------------------------------------------------------------------------------------


def _publishing(now: datetime) -> Findings:
    """Runs that beat has tried to send for a while. It takes each for `SENDING`, again and again."""
    unsent = _unsent(now)
    if not unsent:
        return {}
    number = f"{len(unsent):,}{' or more' if len(unsent) == MOST_UNSENT else ''} run{'' if len(unsent) == 1 else 's'}"
    since = min(unsent)
    sentence = f"The broker {current_app.connection_for_write().as_uri()} has taken no message of {number} for "
    sentence += f"{words.length(now - since)}. Check that it runs, and read the log of beat: manage.py doctor"
    return {"publishing": _down(sentence, "Due runs are sent within seconds.", since, len(unsent))}


def _unsent(now: datetime) -> list[datetime]:
    """Since when each run that was never sent should have been (index run_to_send).

    A run that waited for another one, or for its next attempt, is left out: its row does not say when that was over.
    """
    due = Run.objects.filter(state__in=UNSTARTED, not_before__lte=now + SENDING, due_at__lt=now - GRACE)
    first = due.filter(state=State.WAITING, sends=0, attempt=1).exclude(trigger=Trigger.BACKFILL)
    turns = Q(schedule__policy__overlap__in=[policies.Overlap.QUEUE_ONE.value, policies.Overlap.CANCEL_PREVIOUS.value])
    rows = first.exclude(turns).order_by("not_before").values_list("pk", "due_at", "schedule__policy__jitter")
    sendable = [max(_made_at(pk), due_at + (jitter or timedelta(0))) for pk, due_at, jitter in rows[:MOST_UNSENT]]
    return [since for since in sendable if since < now - GRACE]


def _made_at(run: UUID) -> datetime:
    """When a run was made: the beginning of its id says it. A run whose id is of another version was always there."""
    milliseconds = run.int >> 80 if run.version == 7 else 0
    return datetime.fromtimestamp(min(milliseconds / 1000, LATEST), UTC)


# --- the clean-up ----------------------------------------------------------------------------------------------------


def _retention(now: datetime) -> Findings:
    """Whether the ledger grows, because nothing deletes old rows."""
    since = now - CLEANED_EVERY
    schedules = list(PeriodicTask.objects.filter(task=CLEANUP).select_related("policy").order_by("pk")[:MOST_SCHEDULES])
    cleaned = Run.objects.filter(schedule__in=schedules, state=State.SUCCEEDED)
    if cleaned.filter(finished_at__gt=since).exists() or not Run.objects.filter(finished_at__lt=since).exists():
        return {}
    last = cleaned.aggregate(at=Max("finished_at"))["at"]
    ago = f"for {words.length(now - last)}" if last else "yet"
    sentence = f"Nothing has deleted old runs {ago}: {_why_not_cleaned(schedules, now)}"
    return {"retention": _down(sentence, f"{CLEANUP} succeeds each day.", last)}


def _why_not_cleaned(schedules: Sequence[PeriodicTask], now: datetime) -> str:
    if not schedules:
        return f"no schedule of {CLEANUP} exists. Add one, daily."
    enabled = [schedule for schedule in schedules if schedule.enabled]
    if not enabled:
        return (
            f"its schedule {schedules[0].name} is disabled. Enable it: manage.py schedules enable {schedules[0].name!r}"
        )
    schedule = enabled[0]
    run = _latest(Run.objects.of_schedule(schedule.pk))
    if run and run.state in {State.FAILED, State.LOST, State.EXPIRED}:
        return f"the last run of {schedule.name} ended as {run.state}: {run.reason}. See manage.py runs show {run.pk}"
    return f"its schedule {schedule.name}: {status.sentence(schedule, now)}. See manage.py doctor {schedule.name!r}"


def _latest(runs: RunQuerySet) -> Run | None:
    return runs.filter(state__in=[State.SUCCEEDED, State.FAILED, State.LOST, State.EXPIRED]).first()


# --- who is told -----------------------------------------------------------------------------------------------------


def _channels(now: datetime) -> Findings:
    failing = Channel.objects.filter(is_enabled=True, problem__gt="", problem_since__lt=now - CHANNEL_GRACE)
    return {
        _subject("channel", channel.name): _down(
            f"Nothing could be sent through it for {words.length(now - channel.problem_since)}: {channel.problem}",
            "Its messages arrive.",
            channel.problem_since,
        )
        for channel in failing.order_by(F("problem_since").asc())[:MOST_CHANNELS]
        if channel.problem_since
    }
