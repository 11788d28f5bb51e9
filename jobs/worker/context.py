"""Which run does this code belong to? The run of the innermost task in this thread that has an `Execution`.

Its one rule: outside a run there is no execution, and the check only reads Celery's stack of tasks.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery._state import _task_stack  # type: ignore[attr-defined] # Celery has no public name for it
from django.db import DataError, Error, IntegrityError

from jobs.models import LONGEST_NAME, Run, RunLog, State

REFUSED = (DataError, IntegrityError)  # no retry helps; other errors pass: read-only, locked, unavailable
FARTHEST_AHEAD = 1_000_000  # characters of log that may wait for the database; the oldest above that are dropped
ATTRIBUTE = "punctual_execution"  # of a task's request

news = threading.Event()  # an execution of this process has logged or reported progress


@dataclass(slots=True, eq=False)
class Execution:
    """An attempt of a run, or a step of one, that this process executes.

    The thread of its task and the pulse thread use it at the same time; only one of them saves each log line and each
    state of progress.
    """

    task_id: str
    run_id: UUID
    attempt: int
    is_step: bool = False

    has_steps: bool = False
    sent_again: bool = False  # whether this step was published again, by a retry or a replacement
    replaces_itself: bool = False  # whether the task has called `self.replace()`
    unpublished: set[str] = field(default_factory=set)  # ids of steps that are published after a commit
    is_over: bool = False  # whether the body is over; code that runs after it, such as listeners, belongs to no run
    retry: Callable[[], Any] | None = None  # carries out the task's `self.retry()` after its body is over

    thread: int = field(default_factory=threading.get_ident)
    started_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=time.monotonic)
    interrupted_at: float | None = None
    progress: dict[str, Any] = field(default_factory=dict)  # columns that are not saved yet
    _lines: deque[str] = field(default_factory=deque)

    def log(self, line: str) -> None:
        """Add a log line, to be saved soon."""
        self._lines.append(line)
        news.set()

    def mute(self) -> None:
        """Keep no further log lines: no process will save them."""
        self._lines = deque(maxlen=0)

    def tell_progress(self, **columns: Any) -> None:
        """Set the progress of the task, to be saved soon."""
        self.progress = columns
        news.set()

    def add_step(self, task_id: str) -> None:
        """Note a step that is saved and about to be published."""
        self.has_steps = True
        self.sent_again |= task_id == self.task_id

    def is_published_by_itself(self, task_id: str) -> bool:
        """Whether this id is the step's own: a step that is retried or replaced keeps its id."""
        return self.is_step and task_id == self.task_id

    def write_log(self) -> None:
        """Save the new log lines; if the database is unavailable, keep them for the next time."""
        text = self._take_lines()
        try:
            if text:
                RunLog.append(self.run_id, self.attempt, text)
        except Error as error:
            if not isinstance(error, REFUSED):
                self._lines.appendleft(text)
            raise

    def write_news(self) -> None:
        """Save the new log lines and the progress. Progress that cannot be saved is kept for the next time."""
        self.write_log()
        if told := self.progress:
            running = Run.objects.filter(id=self.run_id, attempt=self.attempt, state=State.RUNNING)
            running.update(**told)
            if self.progress is told:  # else the task has reported more in the meantime
                self.progress = {}

    def _take_lines(self) -> str:
        taken = []
        with suppress(IndexError):  # one by one: both threads may add and take lines at the same time
            while True:
                taken.append(self._lines.popleft())
        return "".join(taken)[-FARTHEST_AHEAD:]


def of(request: Any) -> Execution | None:
    """The execution behind a task's request; None for a task outside a run."""
    return getattr(request, ATTRIBUTE, None)


def enter(request: Any, execution: Execution) -> None:
    """Attach the execution to the request of its task."""
    setattr(request, ATTRIBUTE, execution)


def node_of(hostname: object) -> str:
    """The name of a worker, cut to the length of its column."""
    return str(hostname)[:LONGEST_NAME]


def current() -> Execution | None:
    """The execution that the calling code belongs to; None outside a run."""
    task = current_task()
    return of(task.request) if task else None


def current_task() -> Any:
    """The innermost task of this thread that belongs to a run, even while it calls other tasks in place."""
    return next((task for task in reversed(_task_stack.stack) if _is_executing(task.request)), None)


def _is_executing(request: Any) -> bool:
    execution = of(request)
    return execution is not None and not execution.is_over


def reset_after_fork() -> None:
    """In a forked child: replace the event, whose lock another thread of the parent may have held."""
    global news  # noqa: PLW0603 - one for all executions of a process
    news = threading.Event()
