"""Which resources do the workers hold, and how are they made to load them again?"""

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from ninja import Field, Query, Router, Schema

from jobs.models import ResourceVersion
from jobs.monitoring.holdings import FIGURES, with_sums
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import MissingError, actor_of, needs
from jobs.worker import resources

router = Router(tags=["resources"])


class ResourceOut(Schema):
    name: str
    version: int
    invalidated_at: datetime | None
    invalidated_by: str
    processes: int = Field(description="Live processes that hold it.")
    entries: int
    bytes: int
    hits: int
    misses: int


@router.get("", response=Page[ResourceOut])
@needs("jobs.view_resourceversion")
def list_resources(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Resources with the sums of their holdings, by name."""
    return page(request, with_sums(ResourceVersion.objects.all()), paging, ["name"], _resource)


@router.post("/{name}/invalidate", response=ResourceOut)
def invalidate_resource(request: HttpRequest, name: str) -> Any:
    """Make every worker drop its values within seconds, and load them again."""
    actor = actor_of(request)
    actor.check("jobs.change_resourceversion")
    rows = with_sums(ResourceVersion.objects.filter(name=name))
    if not name.isprintable() or not rows.exists():
        raise MissingError(f"No resource is named {name}: GET /api/resources lists all of them.")
    resources.invalidate(name, actor=actor)
    return _resource(rows.get())


def _resource(row: Any) -> dict[str, Any]:
    sums = {name: getattr(row, f"sum_of_{name}") or 0 for name in FIGURES}
    return {
        "name": row.name,
        "version": row.number,
        "invalidated_at": row.invalidated_at,
        "invalidated_by": row.invalidated_by,
        "processes": row.processes_now or 0,
        **sums,
    }
