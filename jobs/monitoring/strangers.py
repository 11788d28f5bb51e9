"""Who acts on our queues or our schedules without reporting to the ledger? Beat and the workers find out.

A worker without the start guard executes a run again with each message. A beat with django-celery-beat's own scheduler
runs each job a second time. Its one rule: it only reports, as a node of the kind *stranger*, with what to do. Beat asks
all workers of the broker, in a thread, so a broker that does not answer delays no run, and compares the writes.

Limits: a worker without remote control, or on a broker that cannot broadcast, does not answer. One with the name of a
live worker of ours is taken for that. One of ours that cannot reach the database for a minute looks like a stranger.
"""

import logging
import threading
import time
from contextlib import closing
from typing import Any

from celery import signals
from django.db import connection
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from jobs.models import LONGEST_NAME, Node
from jobs.models.nodes import LONGEST_PROBLEM, LONGEST_QUEUES, SILENT_AFTER
from jobs.rules.errors import logged

log = logging.getLogger(__name__)

EVERY = 20.0  # seconds; a stranger that is not seen for `SILENT_AFTER` counts as gone
TIMEOUT = 2.0  # seconds that workers have to answer
UNNAMED = "another beat"  # known only by its writes
COMPARED = 1000  # schedules, those that ran last: another scheduler runs all of them
MOST = 20  # strangers of one answer: any program can write replies
GRACE = 5.0  # seconds that a worker may need from its first answer to its first heartbeat


def look(app: Any) -> None:
    """Record every stranger that answers. Raises errors of the broker and `django.db.Error`."""
    answers = app.control.inspect(timeout=TIMEOUT).active_queues() or {}
    queues = {node[:LONGEST_NAME]: [queue["name"] for queue in found] for node, found in answers.items()}
    if not queues.keys() - _reporting():
        return
    time.sleep(GRACE)
    for node in sorted(queues.keys() - _reporting())[:MOST]:
        if any(queue in app.amqp.queues for queue in queues[node]):
            consumed = ", ".join(sorted(queues[node]))[:LONGEST_QUEUES]
            what = f"{node} consumes queue {consumed}, but does not report to the ledger: stop it, or upgrade it."
            _record(node, what, consumed)


def _reporting() -> set[str]:
    """Nodes that reported lately. One that has stopped since may have answered before."""
    recent = Node.objects.filter(seen_at__gt=Now() - SILENT_AFTER).exclude(kind=Node.Kind.STRANGER)
    return set(recent.values_list("name", flat=True))


def notice(name: str, origin: str) -> None:
    """Record the beat that sent a message for the schedule of this name past the ledger, if the schedule is ours."""
    if PeriodicTask.objects.filter(name=name).exists():
        _record_beat(f"beat at {origin}")


Written = dict[int, tuple[Any, Any]]


def compare(before: Written) -> Written:
    """Record a beat that wrote down runs which no beat of ours has claimed; returns the present columns.

    A claim moves both `last_run_at` and `next_due_at`, in one transaction. Saved forms move `last_run_at` back, if at
    all. So one that moves forward alone was written by another scheduler.
    """
    rows = PeriodicTask.objects.filter(last_run_at__isnull=False, policy__isnull=False)
    latest = rows.order_by("-last_run_at").values_list("pk", "last_run_at", "policy__next_due_at")[:COMPARED]
    now = {pk: (ran_at, due_at) for pk, ran_at, due_at in latest}
    moved = [pk for pk in now.keys() & before if now[pk][0] > before[pk][0] and before[pk][1] == now[pk][1] is not None]
    if moved and not Node.objects.live().filter(kind=Node.Kind.STRANGER, queues="").exclude(name=UNNAMED).exists():
        _record_beat(UNNAMED)
    return now


def _record_beat(name: str) -> None:
    what = "runs these schedules a second time, without a row in the ledger: stop it, or start it with Punctual's"
    _record(name[:LONGEST_NAME], f'{name} {what} scheduler, CELERY_BEAT_SCHEDULER = "jobs.beat:Scheduler".')


def _record(name: str, problem: str, queues: str = "") -> None:
    if not Node.objects.live().filter(name=name).exists():
        log.warning("%s", problem)
    facts = {"kind": Node.Kind.STRANGER, "queues": queues, "problem": problem[:LONGEST_PROBLEM], "pid": 0}
    facts |= {"concurrency": "", "version": "", "tzdata": "", "seen_at": Now(), "stopped_at": None}
    node = Node(name=name, **facts)
    Node.objects.bulk_create([node], update_conflicts=True, unique_fields=["name"], update_fields=list(facts))


def _keep_looking(app: Any) -> None:
    written: Written = {}
    while True:
        with logged(log, "Beat could not compare the writes to schedules.", level=logging.DEBUG), closing(connection):
            written = compare(written)
        with logged(log, "Beat could not ask for the queues of all workers.", level=logging.DEBUG), closing(connection):
            look(app)
        time.sleep(EVERY)


def _on_beat_init(sender: Any, **_: Any) -> None:
    threading.Thread(target=_keep_looking, args=(sender.app,), name="strangers", daemon=True).start()


def connect() -> None:
    signals.beat_init.connect(_on_beat_init, dispatch_uid="jobs.monitoring.strangers")
