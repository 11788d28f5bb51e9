"""How full are the queues, and which workers take from each? By the ledger and the heartbeats, without the broker.

Its one rule: a queue counts the runs that would go to it or have gone. Messages of plain tasks and of other programs
are the broker's to count.
"""

from collections import Counter
from dataclasses import dataclass

from celery import current_app
from django.db.models import Count

from jobs.messages import dispatch, queues
from jobs.messages.arguments import find_task
from jobs.models import UNSTARTED, Node, Run, State

MOST = 1_000  # queues


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    consumers: list[str]  # live workers
    waiting: int  # runs that are due later, wait for another run, or were not sent yet
    queued: int  # runs that were sent, and that no worker has started


def all_queues() -> list[Queue]:
    """The queues of the settings, of live workers, and of unstarted runs, by name."""
    find_task("")  # imports the tasks, whose options name queues
    nodes = list(Node.objects.consumers())
    runs = _unstarted()
    names = {*queues.defined(current_app), *Node.objects.consumers().queues(), *(name for name, _ in runs)} - {""}
    return [
        Queue(
            name,
            [node.name for node in nodes if node.consumes(name)],
            runs[name, State.WAITING.value],
            runs[name, State.QUEUED.value],
        )
        for name in sorted(names)[:MOST]
    ]


def _unstarted() -> Counter[tuple[str, str]]:
    """The number of unstarted runs of each queue and state (index run_active)."""
    rows = Run.objects.active().filter(state__in=UNSTARTED).order_by().values_list("task", "queue", "state")
    found: Counter[tuple[str, str]] = Counter()
    for task, queue, state, number in rows.annotate(Count("pk")):
        found[dispatch.queue_of(Run(task=task, queue=queue)), state] += number
    return found
