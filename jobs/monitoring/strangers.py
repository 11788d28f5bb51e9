"""Which workers consume our queues without reporting to the ledger? Beat asks all workers of the broker.

A worker without the start guard executes a run again with each message. Its one rule: it only reports, as a node of the
kind *stranger*. It asks in a thread of beat, so a broker that does not answer delays no run.

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

from jobs.models import LONGEST_NAME, Node
from jobs.models.nodes import LONGEST_QUEUES, SILENT_AFTER
from jobs.rules.errors import logged

log = logging.getLogger(__name__)

EVERY = 20.0  # seconds; a stranger that is not seen for `SILENT_AFTER` counts as gone
TIMEOUT = 2.0  # seconds that workers have to answer
GRACE = 5.0  # seconds that a worker may need from its first answer to its first heartbeat


def look(app: Any) -> None:
    """Record every stranger that answers. Raises errors of the broker and `django.db.Error`."""
    answers = app.control.inspect(timeout=TIMEOUT).active_queues() or {}
    queues = {node[:LONGEST_NAME]: [queue["name"] for queue in found] for node, found in answers.items()}
    if not queues.keys() - _reporting():
        return
    time.sleep(GRACE)
    for node in sorted(queues.keys() - _reporting()):
        if any(queue in app.amqp.queues for queue in queues[node]):
            _record(node, ", ".join(sorted(queues[node]))[:LONGEST_QUEUES])


def _reporting() -> set[str]:
    """Nodes that reported lately. One that has stopped since may have answered before."""
    recent = Node.objects.filter(seen_at__gt=Now() - SILENT_AFTER).exclude(kind=Node.Kind.STRANGER)
    return set(recent.values_list("name", flat=True))


def _record(name: str, queues: str) -> None:
    if not Node.objects.live().filter(name=name).exists():
        log.warning("%s consumes queue %s, but does not report to the ledger: stop it, or upgrade it.", name, queues)
    facts = {"kind": Node.Kind.STRANGER, "queues": queues, "concurrency": "", "version": "", "pid": 0}
    facts |= {"seen_at": Now(), "stopped_at": None}
    node = Node(name=name, **facts)
    Node.objects.bulk_create([node], update_conflicts=True, unique_fields=["name"], update_fields=list(facts))


def _keep_looking(app: Any) -> None:
    while True:
        with logged(log, "Beat could not ask for the queues of all workers.", level=logging.DEBUG), closing(connection):
            look(app)
        time.sleep(EVERY)


def _on_beat_init(sender: Any, **_: Any) -> None:
    threading.Thread(target=_keep_looking, args=(sender.app,), name="strangers", daemon=True).start()


def connect() -> None:
    signals.beat_init.connect(_on_beat_init, dispatch_uid="jobs.monitoring.strangers")
