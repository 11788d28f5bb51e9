"""Which beats and workers are there? Each sends a heartbeat every few seconds. At its end it is marked as stopped.

Its one rule: heartbeats inform people; leases decide about runs. Only when a run waits in vain for a day, heartbeats
tell whether a worker consumes its queue (`ledger.undelivered`). A node that cannot reach the database appears silent.
"""

import atexit
import logging
import os
import socket
import threading
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

from celery import signals
from django.conf import settings
from django.db import Error, connection
from django.db.models.functions import Now

from jobs import zones
from jobs.models import Node, installation
from jobs.models.nodes import LONGEST_PROBLEM, LONGEST_QUEUES

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between heartbeats
DELETED_AFTER = timedelta(days=1)  # without a heartbeat
_worker_over = threading.Event()
_registered: set[tuple[str, int]] = set()  # the nodes of this process that have a row


def beat_name() -> str:
    """The name of this beat. Two beats on one machine differ by their process id."""
    return f"beat@{socket.gethostname()} ({os.getpid()})"[:200]


def heartbeat(name: str, **facts: Any) -> None:
    """Record that this node lives, and these facts. Raises `django.db.Error`."""
    facts |= {"problem": installation.refusal()[:LONGEST_PROBLEM], "tzdata": zones.version()}
    known = Node.objects.filter(name=name, pid=os.getpid(), stopped_at=None)
    if (name, os.getpid()) in _registered and known.update(seen_at=Now(), **facts):
        return
    _registered.add((name, os.getpid()))
    Node.objects.filter(seen_at__lt=Now() - DELETED_AFTER).delete()
    facts |= {"version": settings.CODE_VERSION, "pid": os.getpid()}
    facts |= {"started_at": Now(), "seen_at": Now(), "stopped_at": None}
    node = Node(name=name, **facts)
    Node.objects.bulk_create([node], update_conflicts=True, unique_fields=["name"], update_fields=list(facts))


def mark_stopped(name: str) -> None:
    """Record that this node stops. If the database is unavailable, the node becomes silent instead."""
    with suppress(Error), closing(connection):
        connection.close()  # the signal may have interrupted its last query
        Node.objects.filter(name=name, pid=os.getpid()).update(stopped_at=Now())


def at_exit(name: str) -> None:
    """Mark the node as stopped when this process exits in order. A signal handler could interrupt a query."""
    atexit.register(_mark_stopped_by, os.getpid(), name)


def _mark_stopped_by(pid: int, name: str) -> None:
    if os.getpid() == pid:  # else a forked child exits, and its parent lives on
        mark_stopped(name)


def _on_worker_ready(sender: Any, **_: Any) -> None:
    _worker_over.clear()
    at_exit(sender.hostname)
    threading.Thread(target=_keep_beating, args=(sender,), name="node", daemon=True).start()


def _keep_beating(consumer: Any) -> None:
    while True:
        try:
            with closing(connection):
                heartbeat(consumer.hostname, **_facts(consumer))
        except Error:
            log.info("%s could not send a heartbeat to the database.", consumer.hostname, exc_info=True)
        if _worker_over.wait(EVERY):
            return


def _facts(consumer: Any) -> dict[str, Any]:
    """What this worker is; remote control may change its queues."""
    controller = consumer.controller
    return {
        "kind": Node.Kind.WORKER,
        "queues": ", ".join(sorted(consumer.app.amqp.queues.consume_from))[:LONGEST_QUEUES],
        "concurrency": f"{controller.pool_cls.__module__.rpartition('.')[2]} {controller.concurrency}",
    }


def stop_beating(**_: Any) -> None:
    """End the heartbeats of this process's worker."""
    _worker_over.set()


def connect() -> None:
    signals.worker_ready.connect(_on_worker_ready, dispatch_uid="jobs.monitoring.nodes.ready")
    signals.worker_shutdown.connect(stop_beating, dispatch_uid="jobs.monitoring.nodes.shutdown")
