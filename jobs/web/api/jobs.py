"""Which jobs are there, with which arguments, and which of them may the sender start?"""

from typing import Any

from django.http import HttpRequest
from ninja import Field, Router, Schema

from jobs.messages import described
from jobs.messages.arguments import find_task, startable
from jobs.models import rights
from jobs.models.audit import Actor
from jobs.rules.errors import Forbidden
from jobs.web.api.routes import MissingError, actor_of

READERS = ("jobs.add_run", "jobs.view_run", "django_celery_beat.view_periodictask")

router = Router(tags=["jobs"])


class JobLine(Schema):
    name: str
    summary: str = Field(description="The first line of its docstring.")
    is_restricted: bool = Field(description="Whether it needs a right of its own (RESTRICTED_JOBS).")
    may_start: bool
    why_not: str = Field(description="Why the sender may not start it; empty if it may.")


class JobOut(JobLine):
    is_typed: bool = Field(description="Whether values are checked before a run is made, and not only names.")
    arguments: dict[str, Any] = Field(description="A JSON Schema of the arguments.")


class JobList(Schema):
    items: list[JobLine]
    next: None = None


@router.get("", response=JobList)
def list_jobs(request: HttpRequest) -> Any:
    """All jobs that can be started or scheduled, by name."""
    actor = _reader(request)
    return {"items": [_line(name, actor) for name in startable()]}


@router.get("/{name}", response=JobOut)
def get_job(request: HttpRequest, name: str) -> Any:
    """One job with its arguments."""
    actor = _reader(request)
    if name not in startable():
        raise MissingError(f"No job is named {name}: GET /api/jobs lists all of them.")
    task = find_task(name)
    return {
        **_line(name, actor),
        "is_typed": described.is_typed(task),
        "arguments": described.schema_of(task),
    }


def _reader(request: HttpRequest) -> Actor:
    """The actor, if it may see what jobs there are. Raises `Forbidden`."""
    actor = actor_of(request)
    if not any(map(actor.may, READERS)):
        raise Forbidden(f"You may not list jobs: ask an administrator for one of the permissions {', '.join(READERS)}.")
    return actor


def _line(name: str, actor: Actor) -> dict[str, Any]:
    why_not = actor.why_not(name) or ("" if actor.may("jobs.add_run") else "The permission jobs.add_run is missing.")
    return {
        "name": name,
        "summary": described.summary_of(find_task(name)),
        "is_restricted": rights.entry_of(name) is not None,
        "may_start": not why_not,
        "why_not": why_not,
    }
