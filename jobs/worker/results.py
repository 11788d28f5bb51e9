"""How does a caller get the result of a task? From its `AsyncResult`, or an error that says how to keep the result.

Its one rule: no caller waits for a result that never comes, or mistakes a missing one for None. Celery's own
`AsyncResult` does both: it returns None if it knows that no result is kept, and waits for ever if it does not know.
Here every wait looks at the ledger, for runs and steps, and at the latest plain tasks that this process has sent.

Limit: a plain task that another process has sent and whose result is not kept is known nowhere. A wait for it needs a
`timeout`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from functools import wraps
from typing import Any
from uuid import UUID

from celery import states
from celery.result import AsyncResult
from django.db import Error as DatabaseError
from django.db.models import Q

from jobs.messages.arguments import find_task
from jobs.models import ACTIVE, Run, Step
from jobs.models.steps import OVER
from jobs.secrets import mask, masked, masking
from jobs.worker.chords import ChordBackend, leaves
from jobs.worker.loops import outside_loop

MAPS = {"celery.map", "celery.starmap"}  # Celery's tasks that call another task many times, and return its results
REMEMBERED = 10_000  # plain tasks without a result, the latest of this process
SILENT = (
    "This task keeps no result. Declare it with @shared_task(ignore_result=False), or choose “keep result” in its"
    " schedule's policy. The ledger shows how a run ended."
)
ENDED = "This {} ended as {} and left no result, or its result has expired (RESULT_EXPIRES). {}"

_silent: OrderedDict[str, None] = OrderedDict()  # ids, the oldest first


class NoResultError(LookupError):
    """The result will never come. The message says why, or how to keep it."""


class Result(AsyncResult[Any]):
    """The `AsyncResult` of every task of the app, inside and outside runs."""

    def get(self, *args: Any, **options: Any) -> Any:
        """Like Celery's. Raises `NoResultError` at once if no result is kept."""
        if self.ignored:
            raise NoResultError(SILENT)
        return super().get(*args, **options)

    @property
    def ignored(self) -> bool:
        """Whether the sender knows that no result is kept."""
        return bool(self._ignored)

    @ignored.setter
    def ignored(self, value: bool | None) -> None:
        """Celery sets it when it has sent the task."""
        self._ignored = bool(value)
        _silent.pop(self.id, None)
        if value:
            _silent[self.id] = None
        if len(_silent) > REMEMBERED:
            _silent.popitem(last=False)


def mended(backend: Any) -> Any:
    """The backend, with two changes: its waits raise `NoResultError`, and it masks stored errors and arguments."""
    for name in ("wait_for_pending", "iter_native"):
        setattr(backend, name, _watching(backend, getattr(backend, name)))
    # With pickle as the serializer it returns an exception, which `masked` leaves as it is.
    backend.prepare_exception = masking(backend.prepare_exception)
    backend.store_result = _storing(backend.store_result)
    return backend


def _storing(store: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(store)
    def store_result(
        task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        shown = copy(request)
        for name in {"args", "kwargs", "argsrepr", "kwargsrepr"} & vars(shown).keys() if request else ():
            setattr(shown, name, masked(getattr(request, name)))
        return store(task_id, result, state, traceback and mask(str(traceback)), request=shown, **options)

    return store_result


def _watching(backend: Any, wait: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(wait)
    def watching(result: Any, *args: Any, on_interval: Callable[[], object] | None = None, **options: Any) -> Any:
        def look() -> None:
            with outside_loop(), suppress(DatabaseError):  # without the ledger, Celery waits as it does
                _demand({str(each.id) for each in leaves(result) if not each._cache}, backend)
            if on_interval:
                on_interval()

        if backend.is_async:  # it first calls `on_interval` after a second
            look()
        return wait(result, *args, on_interval=look, **options)

    return watching


def _demand(ids: set[str], backend: Any) -> None:
    """Raises `NoResultError` if the result of one of these tasks will never come."""
    if any(task_id in _silent for task_id in ids):
        raise NoResultError(SILENT)
    runs = Run.objects.filter(id__in=_uuids(ids)).only("task", "options", "state", "reason")
    for run in runs:
        if _is_silent(run):
            raise NoResultError(SILENT)
        if run.state not in ACTIVE:
            _demand_left(backend, str(run.id), ENDED.format("run", run.state, run.reason))
    ended = Q(state__in=OVER) | ~Q(run__state__in=ACTIVE)
    for step in Step.objects.filter(ended, id__in=ids).only("state", "error_text"):
        why = step.error_text.strip().rpartition("\n")[2]
        _demand_left(backend, step.id, ENDED.format("step", step.state, why))


def _demand_left(backend: Any, task_id: str, why: str) -> None:
    """The end of a run or step is recorded after its result is kept. So this asks for the result once more."""
    if backend.get_task_meta(task_id, cache=False)["status"] not in states.READY_STATES:
        raise NoResultError(why.strip())


def _uuids(ids: set[str]) -> Iterator[UUID]:
    for task_id in ids:
        with suppress(ValueError):
            yield UUID(task_id)


def _is_silent(run: Run) -> bool:
    """Whether a run keeps no result."""
    task = find_task(run.task)
    return bool(run.options.get("ignore_result", task.ignore_result if task else True))


def of_map(options: dict[str, Any], kwargs: Any) -> None:
    """Let a task of `MAPS` keep its result if the task does that it calls, and the caller does not say otherwise."""
    called = (kwargs or {}).get("task") or {}
    if task := find_task(called.get("task", "")):
        options.setdefault("ignore_result", task.ignore_result)


class Backend(ChordBackend):
    """The backend of django-celery-results. It also works inside the event loop of an `async def` job."""

    @outside_loop()
    def _get_task_meta_for(self, task_id: str) -> Any:
        return super()._get_task_meta_for(task_id)

    @outside_loop()
    def _store_result(self, *args: Any, **options: Any) -> Any:
        return super()._store_result(*args, **options)
