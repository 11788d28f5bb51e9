"""How does a worker record an item of the broker that it cannot read? With a line of log and a row.

Its one rule: the worker never waits; a thread writes the rows. While the database is unavailable, or more than
`MOST_WAITING` items wait for the thread, items have only a line of log.
"""

import json
import logging
import threading
from contextlib import closing, suppress
from functools import partial
from hashlib import sha256
from queue import Empty, Full, Queue
from typing import Any

from django.db import connection

from jobs.models import LONGEST_NAME, LONGEST_REASON
from jobs.models.set_aside import LONGEST_EXCERPT, SetAside
from jobs.rules.errors import logged
from jobs.secrets import head, storable

log = logging.getLogger(__name__)

MOST_WAITING = 100  # items
LONGEST_READ = 100_000  # bytes of an item that are masked for its excerpt

node = ""  # the worker of this process


class _Writer:
    """The thread that writes the rows. It starts with the first row."""

    waiting: "Queue[partial[None]]" = Queue(MOST_WAITING)
    lock = threading.Lock()
    thread: threading.Thread | None = None


def note(queue: object, item: Any, why: str) -> None:
    """Log that an item was set aside, and give it to the thread, which adds a row. Never waits, never raises."""
    with logged(log, "An item was set aside, but could not be recorded."):
        content = _as_bytes(item)
        why, where = head(why, LONGEST_REASON), head(str(queue), LONGEST_NAME)
        digest = sha256(content).hexdigest()
        log.warning("An item of %s is set aside: %s (%s).", where, why, digest[:8], extra={"action": "set aside"})
        columns = {"node": storable(node)[:LONGEST_NAME], "queue": where, "why": why, "size": len(content)}
        try:
            _Writer.waiting.put_nowait(partial(_save, digest, content[:LONGEST_READ], columns))
        except Full:
            return
        _start()


def note_message(message: Any, why: str) -> None:
    """`note` for a message of any broker: its headers, and its body as text."""
    try:
        headers = json.dumps(message.headers, default=repr)
    except (ValueError, TypeError, RecursionError):
        headers = "{}"
    delivery = message.delivery_info if isinstance(message.delivery_info, dict) else {}
    note(delivery.get("routing_key", ""), headers.encode() + b"\n" + _as_bytes(message.body), why)


def _as_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode("utf-8", "backslashreplace")


def _start() -> None:
    with _Writer.lock:
        if _Writer.thread is None or not _Writer.thread.is_alive():
            _Writer.thread = threading.Thread(target=_write, name="set aside", daemon=True)
            _Writer.thread.start()


def _write() -> None:
    while True:
        first = _Writer.waiting.get()
        with closing(connection):
            first()
            with suppress(Empty):
                while True:
                    _Writer.waiting.get_nowait()()


def _save(digest: str, content: bytes, columns: dict[str, Any]) -> None:
    with logged(log, "An item that was set aside has no row.", level=logging.INFO):
        excerpt = head(content.decode("utf-8", "backslashreplace"), LONGEST_EXCERPT)
        SetAside.note(digest, excerpt=excerpt, **columns)
