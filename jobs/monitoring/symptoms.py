"""Which symptoms does this installation show? One function for each, which says what it found and by which figures.

Its one rule: a function reads, within a deadline, and changes nothing. It asks the ledger, the broker itself where the
broker is the question, and no worker.

Limits: a function sees the settings of its own process, and the memory of workers on its own machine. What a broker
holds besides the runs of the ledger, only the broker's own tools tell.
"""

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from celery import current_app
from celery.backends.base import DisabledBackend
from celery.utils.time import maybe_timedelta
from django.conf import settings
from django.core import checks
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask
from redis import Redis

from jobs.messages.arguments import find_task
from jobs.models import UNSTARTED, Attempt, Channel, Node, Policy, Run, State, database_now, new_run_id
from jobs.models.alerts import BAD_ENDS
from jobs.models.nodes import SILENT_AFTER
from jobs.monitoring import health, memory, system
from jobs.monitoring.asked import Asked, why
from jobs.rules import words
from jobs.rules.errors import error_of
from jobs.rules.health import Finding, Health

DEADLINE_OF_SERVERS = 1.5  # seconds: shorter than that of a whole question, which says what a server did not answer
RECENT = timedelta(days=1)
OVERDUE = timedelta(minutes=1)
MOST = 10_000  # runs that are counted
MOST_ATTEMPTS = 1_000  # the latest, among which lost ones are counted
LARGE = 1_000_000_000  # bytes of a process
NO_EVICTION = "noeviction"
SEE_NODES, LIST_FLAGGED = "manage.py check --database default", "manage.py schedules list --flagged"
PROBE = "manage.py probe ready"
PRIORITIES = {"redis", "memory"}  # transports that obey priorities as they are


class Verdict(StrEnum):
    FOUND = "found"
    FINE = "fine"
    UNKNOWN = "cannot tell"


class Said(NamedTuple):
    """Whether a symptom is there, the evidence in a line, and the command to type next."""

    verdict: Verdict
    evidence: str
    command: str = ""


found, fine, unknown = (partial(Said, verdict) for verdict in Verdict)
Sentences = list[tuple[str, str]]


class Case:
    """What several questions need to know, found out once."""

    def __init__(self) -> None:
        self._parts = Asked(lambda: system.findings(database_now()))
        self._schedules = Asked(_health)

    def parts(self, *kinds: str) -> Sentences:
        """The parts of the system of these kinds that are not well: subjects and sentences."""
        parts = self._parts.answer().items()
        return [(subject, finding.sentence) for subject, finding in parts if subject.partition(":")[0] in kinds]

    def schedules(self, kind: Health) -> Sentences:
        """The schedules of this health: names and sentences."""
        schedules = self._schedules.answer().items()
        return [(schedule.name, finding.sentence) for schedule, finding in schedules if finding.health is kind]


def _health() -> Mapping[PeriodicTask, Finding]:
    now = database_now()
    return {schedule: finding for batch in health.findings(now, now) for schedule, finding in batch.items()}


# --- the nine symptoms -----------------------------------------------------------------------------------------------


def executing(case: Case) -> Said:
    if faults := case.parts("worker", "queue", "publishing", "stranger", "node"):
        return found(_several(faults), _command(faults[0][0]))
    workers = Node.objects.live().filter(kind=Node.Kind.WORKER)
    queues = words.listed(sorted(workers.queues() - {""})) or "no queue"
    running = _count(Run.objects.filter(state=State.RUNNING), "run")
    return fine(f"{_number(workers.count(), 'live worker')} ({queues}), {running} running")


def silent(case: Case) -> Said:
    """Failures that reach no person, and successes that are suspiciously short."""
    bad = Run.objects.filter(finished_at__gt=database_now() - RECENT, state__in=BAD_ENDS)
    failed = f"{_count(bad, 'run')} failed in the last day"
    channels = Channel.objects.filter(is_enabled=True).exclude(kind=Channel.Kind.PING).count()
    if not channels and (last := bad.order_by("-finished_at").first()):
        evidence = f"{failed}, and no channel tells anyone: add one in the admin. The latest is {last}: {last.reason}"
        return found(evidence, "manage.py runs list --state failed --since '1 day'")
    if short := case.schedules(Health.SHORT):
        return found(_several(short), _doctor(short[0][0]))
    return fine(f"{failed}; {_number(channels, 'channel')} enabled")


def memory_growing(_: Case) -> Said:
    """Memory at one moment: a large process that no limit renews."""
    nodes = Node.objects.live().filter(kind=Node.Kind.WORKER)
    workers = [each for node in nodes if (each := memory.of_worker(node.name, node.pid))]
    if not workers:
        return unknown("no live worker is on this machine", "ps -o pid,rss,args -e")
    free = [each for each in workers if not each.has_limit]
    command = "manage.py worker --max-memory-per-child 200000" if free else ""
    worst = max(free or workers, key=lambda each: each.largest)
    evidence = f"the largest process of {worst.name} takes {worst.largest / 1e6:,.0f} MB"
    if free:
        evidence += ", and no limit of memory or tasks renews it"
    return (found if free and worst.largest > LARGE else fine)(evidence, command)


def slow(case: Case) -> Said:
    if schedules := case.schedules(Health.SLOW):
        return found(_several(schedules), _doctor(schedules[0][0]))
    longest = Run.objects.filter(state=State.RUNNING, started_at__isnull=False).order_by("started_at").first()
    if longest is None or longest.started_at is None:
        return fine("no run is running")
    return fine(f"the longest run, {longest}, has been running for {words.length(database_now() - longest.started_at)}")


def broker(case: Case) -> Said:
    address, begun = current_app.connection_for_write().as_uri(), time.monotonic()
    if fault := _fault(_ask_broker):
        return found(f"{address}: {fault}", PROBE)
    took = words.length(timedelta(seconds=time.monotonic() - begun))
    evicting: list[str] = []
    error_of(lambda: evicting.append(Asked(_evicts, DEADLINE_OF_SERVERS).answer()))  # not every user may ask
    if evicts := "".join(evicting):
        return found(f"{address} may delete messages, as its maxmemory-policy is {evicts}: set noeviction", PROBE)
    unsent: Sentences = []
    error_of(lambda: unsent.extend(case.parts("publishing")))  # the database may be the one that hangs
    return found(_several(unsent), PROBE) if unsent else fine(f"{address} answered in {took}")


def results(_: Case) -> Said:
    """Jobs keep results only if they opt in, where a backend keeps them, and only until they expire."""
    find_task("")  # imports the tasks
    names = [name for name, task in current_app.tasks.items() if not (name.startswith("celery.") or task.ignore_result)]
    if not names:
        return fine("no job keeps its results: one that should, says ignore_result=False")
    jobs = f"{_number(len(names), 'job')} (such as {min(names)})"
    if isinstance(current_app.backend, DisabledBackend):
        return found(f"{jobs} keep results, but the setting RESULT_BACKEND turns them off", "manage.py check")
    address = current_app.backend.as_uri() or "their backend"
    if fault := _fault(lambda: current_app.AsyncResult(str(new_run_id())).state):
        return found(f"{jobs} keep results, but {address} cannot be read: {fault}", PROBE)
    expires = current_app.conf.result_expires
    kept = f"for {words.length(maybe_timedelta(expires))}" if expires else "for good"
    return fine(f"{jobs} keep results in {address} {kept}, all others none")


def beat(case: Case) -> Said:
    if faults := case.parts("beat"):
        return found(_several(faults), _command("beat"))
    now, enabled = database_now(), PeriodicTask.objects.filter(enabled=True)
    waiting = Policy.objects.due(now - OVERDUE).filter(invalid_reason="")
    if first := waiting.select_related("schedule").first():
        evidence = f"{_count(waiting, 'due schedule')} without a run, the first is {first.schedule.name} since "
        return found(f"{evidence}{words.length(now - (first.next_due_at or now))}: read the log of beat", SEE_NODES)
    if invalid := Policy.objects.exclude(invalid_reason="").filter(schedule__enabled=True).order_by("pk")[:MOST]:
        return found(_several((each.schedule.name, each.invalid_reason) for each in invalid), LIST_FLAGGED)
    beats = Node.objects.live().filter(kind=Node.Kind.BEAT).count()
    return fine(f"{_number(beats, 'live beat')}, {_number(enabled.count(), 'enabled schedule')}, none of them overdue")


def dying(_: Case) -> Said:
    """Workers that went silent, and runs and attempts whose process died."""
    since = database_now() - RECENT
    gone = Node.objects.filter(kind=Node.Kind.WORKER, stopped_at=None, seen_at__lt=database_now() - SILENT_AFTER)
    lost = Run.objects.filter(finished_at__gt=since, state=State.LOST)
    latest = Attempt.objects.order_by("-pk").values_list("outcome", "ended_at", "reason", "run")[:MOST_ATTEMPTS]
    attempts = [(reason, run) for outcome, at, reason, run in latest if outcome == Attempt.Outcome.LOST and at > since]
    if not attempts and not gone and not lost.exists():
        return fine("no worker fell silent and no run was lost in the last day")
    silent = f"{_number(gone.count(), 'worker')} fell silent" + "".join(f" ({each.name})" for each in gone[:1])
    evidence = f"{silent}; {_count(lost, 'run')} and {_number(len(attempts), 'attempt')} lost in the last day"
    if last := lost.order_by("-finished_at").first():
        return found(f"{evidence}: {last.reason}", "manage.py runs list --state lost --since '1 day'")
    if attempts:
        return found(f"{evidence}: {attempts[0][0]}", f"manage.py runs show {attempts[0][1]}")
    return found(f"{evidence}: read its log", SEE_NODES)


def queues_growing(case: Case) -> Said:
    if faults := case.parts("backlog", "queue"):
        return found(_several(faults), _command(faults[0][0]))
    waiting = _count(Run.objects.filter(state__in=UNSTARTED), "unstarted run")
    limit = timedelta(seconds=getattr(settings, "QUEUE_AGE_ALERT", system.QUEUE_AGE_ALERT))
    return fine(f"{waiting}; none that was sent waits for longer than {words.length(limit)}")


# --- what the symptoms rest on ---------------------------------------------------------------------------------------


def database(_: Case) -> Said:
    if fault := _fault(_ask_database):
        return found(f"it cannot be used: {fault}", PROBE)
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        return found(
            f"{_number(len(missing), 'migration')} not applied, the first is {missing[0][0]}", "manage.py migrate"
        )
    return fine(f"{connection.vendor} answers, and all migrations are applied")


def configuration(_: Case) -> Said:
    """Django's checks with those of Punctual; in production also those of its doors."""
    messages = checks.run_checks(include_deployment_checks=not settings.DEBUG)
    serious = [each for each in messages if each.level >= checks.WARNING and not each.is_silenced()]
    command = "manage.py check" if settings.DEBUG else "manage.py check --deploy"
    if serious:
        return found(_several((str(each.id), f"{each.msg} {each.hint or ''}".strip()) for each in serious), command)
    if settings.DEBUG:
        return unknown("DEBUG is on: only with production's settings are its doors checked", "manage.py check --deploy")
    hints = len(messages)
    return fine(f"the checks warn of nothing; {_number(hints, 'hint')}", command if hints else "")


def abilities(_: Case) -> Said:
    """Which abilities of Celery the broker lacks that this installation uses."""
    broker = current_app.connection_for_write()
    name, lacks = broker.transport.driver_name, []
    kinds = broker.transport.implements.exchange_type
    if "fanout" not in kinds and getattr(settings, "REMOTE_CONTROL", "") != "off":
        lacks.append("celery inspect and Flower get no answer: set REMOTE_CONTROL=off")
    schedules = 0 if _has_priorities(broker) else PeriodicTask.objects.filter(priority__isnull=False)[:MOST].count()
    if schedules:
        lacks.append(f"it ignores the priority of {_number(schedules, 'schedule')}: set x-max-priority, or use queues")
    if lacks:
        return found(f"{name}: {'; '.join(lacks)}", "manage.py schedules list")
    return fine(f"{name} can do all that this installation uses")


def _has_priorities(broker: Any) -> bool:
    if broker.transport.driver_type in PRIORITIES or current_app.conf.task_queue_max_priority:
        return True
    return any("x-max-priority" in (queue.queue_arguments or {}) for queue in current_app.amqp.queues.values())


Question = Callable[[Case], Said]
QUESTIONS: dict[str, tuple[str, Question]] = {
    "executing": ("Jobs are not executed", executing),
    "silent": ("Jobs fail silently", silent),
    "memory": ("Memory grows", memory_growing),
    "slow": ("Jobs are slow", slow),
    "broker": ("The broker fails", broker),
    "results": ("Results are missing", results),
    "beat": ("Beat schedules nothing", beat),
    "dying": ("Workers die", dying),
    "queues": ("Queues fill up", queues_growing),
    "database": ("The database fails", database),
    "settings": ("Settings leave doors open", configuration),
    "abilities": ("The broker lacks abilities", abilities),
}

# --- servers ---------------------------------------------------------------------------------------------------------


def _fault(ask: Callable[[], object]) -> str:
    """Why a server does not answer, or answers with an error; empty if it answers well."""
    error = error_of(Asked(ask, DEADLINE_OF_SERVERS).answer)
    return why(error) if error else ""


def _ask_broker() -> None:
    with current_app.connection_for_write() as connected:
        connected.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


def _ask_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _evicts() -> str:
    """The policy by which a Redis deletes messages once it is full; empty if it deletes none, or says nothing."""
    with current_app.connection_for_write() as connected:
        client = getattr(connected.default_channel, "client", None)
        known = client.info("memory") if isinstance(client, Redis) else {}
        policy = str(known.get("maxmemory_policy", NO_EVICTION))
        return policy if known.get("maxmemory") and policy != NO_EVICTION else ""


# --- sentences -------------------------------------------------------------------------------------------------------


def _command(subject: str) -> str:
    """What to type about a part of the system."""
    kind, _, name = subject.partition(":")
    commands = {"beat": "manage.py beat", "worker": "manage.py worker", "publishing": PROBE}
    commands |= {"queue": f"manage.py worker --queues {name}", "backlog": f"manage.py worker --queues {name}"}
    return commands.get(kind, SEE_NODES)


def _doctor(schedule: str) -> str:
    return f"manage.py doctor {shlex.quote(schedule)}"


def _several(sentences: Iterable[tuple[str, str]]) -> str:
    (name, first), *more = sentences
    return f"{name}: {first}{f' And {len(more):,} more.' if more else ''}"


def _count(rows: QuerySet[Any], one: str) -> str:
    """How many rows there are, up to `MOST`."""
    number = rows[:MOST].count()
    return f"at least {_number(number, one)}" if number == MOST else _number(number, one)


def _number(number: int, one: str) -> str:
    """`no run`, `1 run` or `2 runs`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}" if number else f"no {one}"
