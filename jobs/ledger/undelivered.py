"""Why did no worker start a run that was sent, and when is it given up?

Its one rule: it gives up a run only after `UNDELIVERABLE_AFTER`, and only if a worker refused its last message, or if
no worker that consumes its queue has executed anything since then. So no run fails because its queue is long.

Limits: a worker that executes only plain tasks for all that time looks like one that starts nothing. What a node
consumes is known from its last heartbeat.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.conf import settings

from jobs.ledger import outcomes
from jobs.messages import dispatch, keys
from jobs.models import LONGEST_REASON, Node, Run, State, Step
from jobs.rules import policies

log = logging.getLogger(__name__)

UNDELIVERABLE_AFTER = 86_400.0  # seconds, unless the setting of this name says otherwise
WORKER, STRANGER = Node.Kind.WORKER, Node.Kind.STRANGER


def deliverable(runs: Sequence[Run]) -> list[Run]:
    """Those of the taken `runs` that shall be sent; gives up the others.

    Each still has its state from before it was taken. A queued one was sent without a word from any worker, and gets
    the reason for that. One that was sent but has no `queued_at` was given back, and has its reason. Any other that was
    sent belonged to a sender that died, or found no broker.
    """
    silent = [run for run in runs if run.state == State.QUEUED]
    refused = [run for run in runs if run.state == State.WAITING and run.queued_at is None]
    hopeless = [run for run in refused if _is_past_hope(run)] + _unanswered(silent)
    for run in hopeless:
        _give_up(run)
    given_up = {run.id for run in hopeless}
    return [run for run in runs if run.id not in given_up]


def _unanswered(silent: Sequence[Run]) -> list[Run]:
    """Note why no worker started these runs; returns those without hope."""
    if not silent:
        return []
    nodes, queues = list(Node.objects.consumers()), {run.id: dispatch.queue_of(run) for run in silent}
    hopeless = []
    for queue in sorted(set(queues.values())):
        runs = [run for run in silent if queues[run.id] == queue]
        consumers = [node for node in nodes if node.consumes(queue)]
        _explain(runs, queue, consumers)
        late = [run for run in runs if _is_past_hope(run)]
        if late and not _worked(queue, since=min(run.queued_at or run.due_at for run in late)):
            hopeless += late
    return hopeless


def _explain(runs: Sequence[Run], queue: str, consumers: Sequence[Node]) -> None:
    workers, strangers = ([node.name for node in consumers if node.kind == kind] for kind in (WORKER, STRANGER))
    for sends in sorted({run.sends for run in runs}):
        reason = policies.unanswered(sends, queue, workers, strangers)[:LONGEST_REASON]
        same = [run for run in runs if run.sends == sends]
        Run.objects.filter(id__in=[run.id for run in same], state=State.WAITING, sends=sends).update(reason=reason)
        for run in same:
            run.reason = reason


def _is_past_hope(run: Run) -> bool:
    limit = getattr(settings, "UNDELIVERABLE_AFTER", UNDELIVERABLE_AFTER)
    return policies.is_past_hope(run.sends, timedelta(seconds=limit))


def _worked(queue: str, since: datetime) -> bool:
    """Whether a worker that has consumed this queue since then executes a run or a step, or has ended a run.

    Workers that are restarted, or could not reach the database for a while, count as well.
    """
    names = [node.name for node in Node.objects.filter(kind=WORKER, seen_at__gte=since) if node.consumes(queue)]
    runs = Run.objects.filter(node__in=names)
    steps = Step.objects.filter(node__in=names, state=Step.State.RUNNING)
    return runs.filter(state=State.RUNNING).exists() or steps.exists() or runs.filter(finished_at__gte=since).exists()


def _give_up(run: Run) -> None:
    reason = f"undeliverable: {run.reason}"[:LONGEST_REASON]
    log.warning("Run %s: %s", run.id, reason, extra={**keys.of_run(run), "action": "dispatch"})
    this = Run.objects.filter(id=run.id, attempt=run.attempt)
    outcomes.end(this, {State.WAITING}, State.FAILED, reason=reason)
