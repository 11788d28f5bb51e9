"""Is all well? The nodes, the queues and the statistics, read from the ledger without the broker."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from django.db.models import Exists, OuterRef
from django.http import HttpRequest
from ninja import Field, Query, Router, Schema
from pydantic import WithJsonSchema

from jobs.models import Node
from jobs.monitoring import queues, statistics
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import needs

router = Router(tags=["health"])


class NodeOut(Schema):
    name: str
    kind: Annotated[str, WithJsonSchema({"type": "string", "enum": Node.Kind.values})]
    status: str = Field(description="live, silent or stopped")
    problem: str = Field(description="Its fault, and how to mend it; empty without one.")
    queues: list[str]
    concurrency: str
    version: str
    tzdata: str
    started_at: datetime
    seen_at: datetime
    stopped_at: datetime | None


class QueueOut(Schema):
    name: str
    consumers: list[str] = Field(description="The live workers that take from it.")
    waiting: int = Field(description="Runs that are due later, wait for another run, or were not sent yet.")
    queued: int = Field(description="Runs that were sent, and that no worker has started.")


class QueueList(Schema):
    items: list[QueueOut]
    next: None = None


@router.get("/nodes", response=Page[NodeOut])
@needs("jobs.view_node")
def list_nodes(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Beats, workers and strangers, by name."""
    live = Exists(Node.objects.live().filter(pk=OuterRef("pk")))
    return page(request, Node.objects.annotate(is_live=live), paging, ["name"], _node)


@router.get("/queues", response=QueueList)
@needs("jobs.view_node")
def list_queues(request: HttpRequest) -> Any:  # noqa: ARG001 - ninja passes it
    """The queues with their live consumers and their unstarted runs, by name."""
    return {"items": [asdict(queue) for queue in queues.all_queues()]}


@router.get("/statistics", response=dict[str, Any])
@needs("jobs.view_run")
def get_statistics(request: HttpRequest) -> Any:  # noqa: ARG001 - as above
    """Runs by state, schedules by condition, and how late runs started; at most 30 seconds old."""
    return statistics.figures()


def _node(node: Any) -> dict[str, Any]:
    same = ("name", "kind", "problem", "concurrency", "version", "tzdata", "started_at", "seen_at", "stopped_at")
    return {
        **{name: getattr(node, name) for name in same},
        "status": "stopped" if node.stopped_at else "live" if node.is_live else "silent",
        "queues": node.queues.split(", ") if node.queues else [],
    }
