"""Which commands of remote control does a worker obey? They come over the broker, from `celery inspect` or Flower.

Its one rule: with REMOTE_CONTROL=inspect, a worker obeys only commands that read. It logs the others, and answers with
a sentence that names the setting. Celery's `Panel` says which commands read. Of these, the worker refuses three that
examine its whole memory, and lets `hello` revoke no tasks. It sets aside a command that Celery cannot read.
Limit: beat answers only `ping`, in every mode.
"""

import logging
from functools import partial
from typing import Any

from celery import signals
from celery.worker.control import Panel
from django.conf import settings
from kombu import matcher, pidbox

from jobs.messages import form, signing
from jobs.worker import set_aside

log = logging.getLogger(__name__)

FULL = "full"
COSTLY = frozenset(["memdump", "memsample", "objgraph"])
BACKTRACKING = "pcre"  # a pattern of this kind can keep a process busy for hours


class Node(pidbox.Node):
    """Receives commands, and sets unreadable ones aside."""

    def handle_message(self, body: Any, message: Any = None) -> Any:
        headers = getattr(message, "headers", None) or {}
        if why := form.fault_of_command(body, headers, set(matcher.registry._matchers)):
            set_aside.note("remote control", repr(body), why)
            return None
        return super().handle_message(body, message)


def is_full() -> bool:
    """Whether this process obeys all commands."""
    return getattr(settings, "REMOTE_CONTROL", FULL) == FULL


def limit(app: Any) -> None:
    """Let this process obey what REMOTE_CONTROL allows. A second call changes nothing."""
    app.control.mailbox.node_cls = Node
    if is_full():
        if signing.keys():  # the winner of an election executes a task that came unsigned
            Panel.data["election"] = partial(_refuse, "election")
        return
    if BACKTRACKING in matcher.registry._matchers:
        matcher.unregister(BACKTRACKING)
    for name, about in Panel.meta.items():
        if about.type != "inspect" or name in COSTLY:
            Panel.data.update(dict.fromkeys(filter(None, (name, about.alias)), partial(_refuse, name)))
    Panel.data["hello"] = partial(_hello, Panel.data["hello"])


def _refuse(name: str, state: Any, **_: Any) -> dict[str, str]:
    if is_full():
        why, advice = "its task is not signed", ""
    else:
        why = f"REMOTE_CONTROL={settings.REMOTE_CONTROL} allows only commands that read"
        advice = " Set REMOTE_CONTROL=full for this worker to allow it."
    log.warning(
        "Remote control of %s: %s is refused: %s.", state.hostname, name, why, extra={"action": "remote control"}
    )
    return {"error": f"{name} is refused: {why}.{advice}"}


def _hello(hello: Any, state: Any, from_node: Any, **_: Any) -> Any:
    """Answer a starting worker without its list of revoked tasks."""
    return hello(state, from_node)


def _on_init(sender: Any, **_: Any) -> None:
    limit(sender.app)


def connect() -> None:
    for signal in (signals.worker_init, signals.beat_init):
        signal.connect(_on_init, dispatch_uid="jobs.worker.control")
