"""What comes back from a task? Its result, where it keeps one; else a sentence that says how to keep it.

Its one rule: nobody waits for what never comes, and nobody takes "kept nothing" for "returned None". Celery's own
`AsyncResult` does both: it returns None where it knows that nothing is kept, and waits for ever where it does not.
"""

from typing import Any
from uuid import UUID

from celery import states
from celery.result import AsyncResult
from django_celery_results.backends import DatabaseBackend

from jobs.messages.arguments import find_task
from jobs.models import Run
from jobs.secrets import mask


class NoResultError(LookupError):
    """The task keeps no result. The message says how to keep it."""


class Result(AsyncResult[Any]):
    """The `AsyncResult` of every task of the app, plain or of a run."""

    def get(self, *args: Any, **options: Any) -> Any:
        """As Celery's. Raises `NoResultError` at once where nothing is kept."""
        if self.ignored or _is_of_silent_run(str(self.id)):
            raise NoResultError(
                "This task keeps no result. Declare it with @shared_task(ignore_result=False), or choose"
                " “keep result” in its schedule's policy; what became of a run stands in the ledger."
            )
        return super().get(*args, **options)


class Backend(DatabaseBackend):  # type: ignore[misc] # django-celery-results has no type hints
    """django-celery-results' own; what a task failed with is kept with its secrets masked, as in the ledger."""

    def _store_result(self, task_id: str, result: Any, status: str, traceback: Any = None, **rest: Any) -> Any:
        if status in states.EXCEPTION_STATES:
            traceback = traceback and mask(str(traceback))
            if isinstance(result, dict) and "exc_message" in result:
                result = {**result, "exc_message": _masked(result["exc_message"])}
        return super()._store_result(task_id, result, status, traceback, **rest)


def _masked(message: Any) -> Any:
    """The arguments of an exception, as Celery hands them on."""
    if isinstance(message, (list, tuple)):
        return [_masked(part) for part in message]
    return mask(message) if isinstance(message, str) else message


def _is_of_silent_run(task_id: str) -> bool:
    """Whether that is the id of a run which is not to keep its result."""
    try:
        run = Run.objects.filter(id=UUID(task_id)).only("task", "options").first()
    except ValueError:
        return False
    task = find_task(run.task) if run else None
    return bool(run and run.options.get("ignore_result", task.ignore_result if task else True))
