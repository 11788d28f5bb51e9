"""How full are the queues, and which workers take from each? By the ledger and the heartbeats, without the broker.

Its one rule: a queue counts the runs that would go to it or have gone. Messages of plain tasks and of other programs
are the broker's to count.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from celery import current_app
from django.db.models import Count, Min

from jobs.messages import dispatch, queues
from jobs.messages.arguments import find_task
from jobs.models import UNSTARTED, Node, Run, State
from jobs.rules import policies

MOST = 1_000  # queues


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    consumers: list[str]  # live workers
    waiting: int  # runs that are due later, wait for another run, or were not sent yet
    queued: int  # runs that were sent, and that no worker has started
    sent_at: datetime | None  # when the one of these was first sent that has waited for longest, by its patience


def all_queues() -> list[Queue]:
    """The queues of the settings, of live workers, and of unstarted runs, by name."""
    find_task("")  # imports the tasks, whose options name queues
    nodes = list(Node.objects.consumers())
    runs, sent_at = _unstarted()
    names = {*queues.defined(current_app), *Node.objects.consumers().queues(), *(name for name, _ in runs)} - {""}
    return [
        Queue(
            name,
            [node.name for node in nodes if node.consumes(name)],
            runs[name, State.WAITING.value],
            runs[name, State.QUEUED.value],
            sent_at.get(name),
        )
        for name in sorted(names)[:MOST]
    ]


def _unstarted() -> tuple[Counter[tuple[str, str]], dict[str, datetime]]:
    """The number of unstarted runs of each queue and state, and its oldest message (index run_active)."""
    rows = Run.objects.active().filter(state__in=UNSTARTED).order_by().values_list("task", "queue", "state", "sends")
    found: Counter[tuple[str, str]] = Counter()
    oldest: dict[str, datetime] = {}
    for task, queue, state, sends, number, queued_at in rows.annotate(Count("pk"), Min("queued_at")):
        name = dispatch.queue_of(Run(task=task, queue=queue))
        found[name, state] += number
        if state == State.QUEUED and queued_at:
            first = queued_at - policies.waited(sends - 1)
            oldest[name] = min(first, oldest.get(name, first))
    return found, oldest
