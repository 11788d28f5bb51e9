"""Which run does this code belong to? The `Execution` of the innermost task of this thread that belongs to one.

Its one rule: outside a run there is none, and asking costs one look at Celery's stack of tasks.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery._state import _task_stack  # type: ignore[attr-defined] # no public way shows what called what
from django.db import DataError, Error, IntegrityError

from jobs.models import LONGEST_NAME, Run, RunLog, State

REFUSED = (DataError, IntegrityError)  # what a database will never take; other errors pass: read-only, locked, away
FARTHEST_AHEAD = 1_000_000  # characters of log that wait for the database; of more, the oldest are dropped
ATTRIBUTE = "punctual_execution"  # of a task's request

news = threading.Event()  # an execution of this process has logged, or told how far it is


@dataclass(slots=True, eq=False)
class Execution:
    """An attempt of a run, or a step of one, that this process executes.

    Its task's thread and the pulse's thread use it at the same time; each line of log and each state of progress is
    written down by one of them.
    """

    task_id: str
    run_id: UUID
    attempt: int
    is_step: bool = False

    has_steps: bool = False
    sent_again: bool = False  # whether this step was published again, by a retry or with another task in its place
    replaces_itself: bool = False  # whether the task has called `self.replace()`
    unpublished: set[str] = field(default_factory=set)  # ids of steps that wait for the end of a transaction
    retry: Callable[[], Any] | None = None  # carries out what the task asked for by `self.retry()`, once it is over

    thread: int = field(default_factory=threading.get_ident)
    started_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=time.monotonic)
    interrupted_at: float | None = None
    progress: dict[str, Any] = field(default_factory=dict)  # columns that are not written down yet
    _lines: deque[str] = field(default_factory=deque)

    def log(self, line: str) -> None:
        """Keep a line of log, to be written down soon."""
        self._lines.append(line)
        news.set()

    def tell_progress(self, **columns: Any) -> None:
        """Note how far the task is, to be written down soon."""
        self.progress = columns
        news.set()

    def add_step(self, task_id: str) -> None:
        """A step is written down, and about to be published."""
        self.has_steps = True
        self.sent_again |= task_id == self.task_id

    def is_published_by_itself(self, task_id: str) -> bool:
        """Whether the task publishes itself: a step that is retried or replaced keeps its id."""
        return self.is_step and task_id == self.task_id

    def write_log(self) -> None:
        """Write down new lines of log; a database that is unavailable is given them again."""
        text = self._take_lines()
        try:
            if text:
                RunLog.append(self.run_id, self.attempt, text)
        except Error as error:
            if not isinstance(error, REFUSED):
                self._lines.appendleft(text)
            raise

    def write_news(self) -> None:
        """Write down new lines of log, and how far the task is. Progress that cannot be written is kept."""
        self.write_log()
        if told := self.progress:
            running = Run.objects.filter(id=self.run_id, attempt=self.attempt, state=State.RUNNING)
            running.update(**told)
            if self.progress is told:  # else it told more meanwhile
                self.progress = {}

    def _take_lines(self) -> str:
        taken = []
        with suppress(IndexError):  # one by one: the task may log another, or the other thread take them
            while True:
                taken.append(self._lines.popleft())
        return "".join(taken)[-FARTHEST_AHEAD:]


def of(request: Any) -> Execution | None:
    """The execution behind a task's request; None for a task that belongs to no run."""
    return getattr(request, ATTRIBUTE, None)


def enter(request: Any, execution: Execution) -> None:
    """Let the task of this request belong to a run from now on."""
    setattr(request, ATTRIBUTE, execution)


def node_of(hostname: object) -> str:
    """The name of a worker as rows hold it."""
    return str(hostname)[:LONGEST_NAME]


def current() -> Execution | None:
    """The execution that the calling code belongs to; None outside a run."""
    task = current_task()
    return of(task.request) if task else None


def current_task() -> Any:
    """The innermost task of this thread that belongs to a run, whichever tasks it calls in its own process."""
    return next((task for task in reversed(_task_stack.stack) if of(task.request)), None)


def reset_after_fork() -> None:
    """In a forked child: no lock of the parent's other threads."""
    global news  # noqa: PLW0603 - one for all executions of a process
    news = threading.Event()
