"""How does a caller get the result of a task? From its `AsyncResult`, or an error that says how to keep the result.

Its one rule: no caller waits for a result that never comes, or mistakes a missing one for None. Celery's own
`AsyncResult` does both: it returns None if it knows that no result is kept, and waits for ever if it does not know.
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
    """The `AsyncResult` of every task of the app, inside and outside runs."""

    def get(self, *args: Any, **options: Any) -> Any:
        """Like Celery's. Raises `NoResultError` at once if no result is kept."""
        if self.ignored or _is_of_silent_run(str(self.id)):
            raise NoResultError(
                "This task keeps no result. Declare it with @shared_task(ignore_result=False), or choose"
                " “keep result” in its schedule's policy. The ledger shows how a run ended."
            )
        return super().get(*args, **options)


class Backend(DatabaseBackend):  # type: ignore[misc] # django-celery-results has no type hints
    """The backend of django-celery-results, but with secrets masked in errors, as in the ledger."""

    def _store_result(self, task_id: str, result: Any, status: str, traceback: Any = None, **rest: Any) -> Any:
        if status in states.EXCEPTION_STATES:
            traceback = traceback and mask(str(traceback))
            if isinstance(result, dict) and "exc_message" in result:
                result = {**result, "exc_message": _masked(result["exc_message"])}
        return super()._store_result(task_id, result, status, traceback, **rest)


def _masked(message: Any) -> Any:
    """The arguments of an exception, as Celery passes them, with secrets masked."""
    if isinstance(message, (list, tuple)):
        return [_masked(part) for part in message]
    return mask(message) if isinstance(message, str) else message


def _is_of_silent_run(task_id: str) -> bool:
    """Whether this is the id of a run that keeps no result."""
    try:
        run = Run.objects.filter(id=UUID(task_id)).only("task", "options").first()
    except ValueError:
        return False
    task = find_task(run.task) if run else None
    return bool(run and run.options.get("ignore_result", task.ignore_result if task else True))
