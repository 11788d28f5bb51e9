"""Which beats and workers are there? Each tells of itself every few seconds, and says goodbye when it stops.

Its one rule: a heartbeat is news and nothing else. No decision about a run depends on it (leases decide), so a node
that cannot reach the database loses nothing but its place in a list.
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

from jobs.models import Node

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds
FORGOTTEN_AFTER = timedelta(days=1)
_worker_over = threading.Event()
_told: set[tuple[str, int]] = set()  # nodes of this process whose facts are written


def beat_name() -> str:
    """What a beat is called: two on one machine differ by their process."""
    return f"beat@{socket.gethostname()} ({os.getpid()})"[:200]


def tell(name: str, **facts: Any) -> None:
    """Say that this node lives. Raises `django.db.Error` when the ledger cannot be reached."""
    known = Node.objects.filter(name=name, pid=os.getpid(), stopped_at=None)
    if (name, os.getpid()) in _told and known.update(seen_at=Now()):
        return
    _told.add((name, os.getpid()))
    Node.objects.filter(seen_at__lt=Now() - FORGOTTEN_AFTER).delete()
    facts |= {"version": settings.CODE_VERSION, "pid": os.getpid()}
    facts |= {"started_at": Now(), "seen_at": Now(), "stopped_at": None}
    node = Node(name=name, **facts)
    Node.objects.bulk_create([node], update_conflicts=True, unique_fields=["name"], update_fields=list(facts))


def goodbye(name: str) -> None:
    """Say that this node stops; where the ledger cannot be reached, it will fade instead."""
    with suppress(Error), closing(connection):
        Node.objects.filter(name=name, pid=os.getpid()).update(stopped_at=Now())


def at_exit(name: str) -> None:
    """Say goodbye when this process ends, if it does in order. Not in a signal handler: that may interrupt a query."""
    atexit.register(_goodbye_of, os.getpid(), name)


def _goodbye_of(pid: int, name: str) -> None:
    if os.getpid() == pid:  # a forked child ends without its parent
        goodbye(name)


def _on_worker_ready(sender: Any, **_: Any) -> None:
    controller = sender.controller
    facts = {
        "kind": Node.Kind.WORKER,
        "queues": ", ".join(sorted(sender.app.amqp.queues.consume_from))[:500],
        "concurrency": f"{controller.pool_cls.__module__.rpartition('.')[2]} {controller.concurrency}",
    }
    _worker_over.clear()
    at_exit(sender.hostname)
    threading.Thread(target=_keep_telling, args=(sender.hostname, facts), name="node", daemon=True).start()


def _keep_telling(name: str, facts: dict[str, Any]) -> None:
    while True:
        try:
            with closing(connection):
                tell(name, **facts)
        except Error:
            log.info("%s cannot tell that it lives.", name, exc_info=True)
        if _worker_over.wait(EVERY):
            return


def _on_worker_shutdown(**_: Any) -> None:
    _worker_over.set()


def connect() -> None:
    signals.worker_ready.connect(_on_worker_ready, dispatch_uid="jobs.monitoring.nodes.ready")
    signals.worker_shutdown.connect(_on_worker_shutdown, dispatch_uid="jobs.monitoring.nodes.shutdown")
