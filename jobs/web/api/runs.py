"""Which runs are there, and what may a program do with them? The same as a user of the admin.

Its one rule: an operation parses, calls one function of the ledger and renders.
"""

from uuid import UUID

from django.http import HttpRequest
from ninja import Router

from jobs.models import Run
from jobs.web.api.routes import MissingError, actor_of, needs

router = Router(tags=["runs"])


@router.get("/{run}")
@needs("jobs.view_run")
def get_run(request: HttpRequest, run: UUID) -> dict[str, str]:
    """One run."""
    found = actor_of(request).limit(Run.objects.all()).filter(id=run).first()
    if found is None:
        raise MissingError(f"There is no run {run}: it was deleted, or never existed.")
    return {"id": str(found.id)}
