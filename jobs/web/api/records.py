"""What has a run left: its log, its steps, its progress, its result?

Its one rule: a long text is read piece by piece. `after` marks the place up to which a client has read a log.
"""

import json
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.apps import apps
from django.core import signing
from django.http import HttpRequest
from ninja import Field, Query, Router, Schema
from pydantic import WithJsonSchema

from jobs.messages.message import Decoder
from jobs.models import ACTIVE, Run, RunLog, Step
from jobs.monitoring.progress import progress_of, reason_of
from jobs.rules.errors import Conflict, Invalid
from jobs.web.api import shapes
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import MissingError, actor_of, needs
from jobs.web.api.runs import run_of
from jobs.worker.results import SILENT

MARK = 100  # characters of a log that mark a place in it
SALT = "jobs.web.api.records"
Attempt = Annotated[int | None, Query(ge=1, le=32_767, description="An attempt of the run; by default the latest.")]

router = Router(tags=["runs"])


class LogOut(Schema):
    attempt: int
    text: str = Field(description="The lines since `after`, or all that are kept.")
    after: str = Field(description="Send it with the next request for this log.")
    is_over: bool = Field(description="Whether the run has ended.")


class StepOut(Schema):
    id: str
    task: str
    attempt: int
    state: Annotated[str, WithJsonSchema({"type": "string", "enum": Step.State.values})]
    worker: str
    started_at: datetime | None
    finished_at: datetime | None
    error_class: str
    error_text: str


class ProgressOfRun(shapes.ProgressOut):
    state: str
    reason: str
    is_over: bool


class ResultOut(Schema):
    status: str = Field(description="Celery's: SUCCESS, FAILURE or another.")
    result: Any
    finished_at: datetime


@router.get("/{run}/log", response=LogOut)
@needs("jobs.view_run")
def get_log(
    request: HttpRequest,
    run: UUID,
    attempt: Attempt = None,
    after: Annotated[str | None, Query(max_length=2000, description="From an earlier answer.")] = None,
) -> Any:
    """The log of an attempt. With `after`, only what was added since that answer."""
    found = run_of(actor_of(request), run)
    number = attempt or found.attempt
    text = found.logs.filter(attempt=number).values_list("text", flat=True).first() or ""
    new = text if after is None else _since(_read(after), text)
    return {"attempt": number, "text": new, "after": _mark(text), "is_over": found.state not in ACTIVE}


@router.get("/{run}/steps", response=Page[StepOut])
@needs("jobs.view_run")
def list_steps(request: HttpRequest, run: UUID, paging: Query[Paging], attempt: Attempt = None) -> Any:
    """The steps of an attempt, by id."""
    found = run_of(actor_of(request), run)
    return page(request, found.steps.filter(attempt=attempt or found.attempt), paging, ["id"], _step)


@router.get("/{run}/progress", response=ProgressOfRun)
@needs("jobs.view_run")
def get_progress(request: HttpRequest, run: UUID) -> Any:
    """How far the run is: cheap enough to ask every second."""
    found = run_of(actor_of(request), run)
    figures = shapes.progress(progress_of(found))
    return {**figures, "state": found.state, "reason": reason_of(found), "is_over": found.state not in ACTIVE}


@router.get("/{run}/result", response=ResultOut)
@needs("django_celery_results.view_taskresult")
def get_result(request: HttpRequest, run: UUID) -> Any:
    """What the job returned. 409 until the run has ended, 404 if no result is kept."""
    actor = actor_of(request)
    actor.check("jobs.view_run")
    found = run_of(actor, run)
    if found.state in ACTIVE:
        raise Conflict(f"This run is still {found.state}: ask again when it has ended.")
    return _result_of(found)


def _result_of(run: Run) -> dict[str, Any]:
    row = None
    if apps.is_installed("django_celery_results"):
        row = apps.get_model("django_celery_results", "TaskResult").objects.filter(task_id=str(run.id)).first()
    if row is None:
        raise MissingError(f"This run has ended as {run.state}, but its result is not kept, or has expired. {SILENT}")
    return {"status": row.status, "result": _value(row.result), "finished_at": row.date_done}


def _value(text: str | None) -> Any:
    try:
        return None if text is None else Decoder().decode(text)
    except json.JSONDecodeError:  # another serializer wrote it
        return text


def _step(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in StepOut.model_fields}


def _mark(text: str) -> str:
    """The end of the text, and where it lies: `_since` finds it again in a longer text, also if that was trimmed."""
    return signing.dumps([len(text), text[-MARK:]], salt=SALT, compress=True)


def _read(after: str) -> tuple[int, str]:
    try:
        length, end = signing.loads(after, salt=SALT)
    except signing.BadSignature:
        raise Invalid("This mark is not one of a log: take “after” from an earlier answer.") from None
    return length, end


def _since(mark: tuple[int, str], text: str) -> str:
    """The text after the mark; all of it if nothing that was read is left."""
    length, end = mark
    return text[length:] if text[max(0, length - len(end)) : length] == end else RunLog.since(end, text)
