"""Which run does this code belong to? The run whose `Execution` is in its context (`contextvars`).

Its one rule: outside a run there is no execution, and the check only reads a context variable. Coroutines and
`sync_to_async` pass the context on; `ThreadPoolExecutor` and `threading.Thread` do not.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery._state import _task_stack  # type: ignore[attr-defined] # Celery has no public name for it
from django.db import DataError, Error, IntegrityError

from jobs import logs
from jobs.messages import keys, request_ids
from jobs.messages.envelope import SCHEDULE_HEADER
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
    step: str | None = None  # the key of its row; None for the body of the run

    has_steps: bool = False
    sent_again: bool = False  # whether this step was published again, by a retry or a replacement
    replaces_itself: bool = False  # whether the task has called `self.replace()`
    unpublished: set[str] = field(default_factory=set)  # keys of steps that are published after a commit
    is_over: bool = False  # whether the body is over; code that runs after it, such as listeners, belongs to no run
    retry: Callable[[], Any] | None = None  # carries out the task's `self.retry()` after its body is over
    interrupt: Callable[[], Any] | None = None  # interrupts an `async def` job, from any thread

    request: Any = None  # of its task
    span: Any = None  # of OpenTelemetry, if tracing is on
    scope: ExitStack = field(default_factory=ExitStack)  # closed when its task is over
    outer: "Execution | None" = None  # the execution inside which this one takes place, in eager mode
    outer_request_id: str = ""  # of the web request inside which it takes place, in eager mode
    thread: int = field(default_factory=threading.get_ident)
    started_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=time.monotonic)
    interrupted_at: float | None = None
    progress: dict[str, Any] = field(default_factory=dict)  # columns that are not saved yet
    _lines: deque[str] = field(default_factory=deque)

    @property
    def is_step(self) -> bool:
        return self.step is not None

    @property
    def schedule(self) -> Any:
        """The id and the name of the schedule of its run, if there is one, as its message says."""
        named = header(self.request, SCHEDULE_HEADER)
        return named if keys.of_schedule(named) else None

    @property
    def request_id(self) -> str:
        """The id of the web request that started its run, if there is one, as its message says."""
        return request_ids.checked(header(self.request, request_ids.HEADER))

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of log lines about it."""
        step = {"step": self.step} if self.is_step else {}
        task = {"task": name} if (name := getattr(self.request, "task", None)) else {}
        of_run = {"run": str(self.run_id), **keys.of_schedule(self.schedule), "attempt": self.attempt}
        return request_ids.keys_of(self.request_id) | of_run | task | step

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
        if threading.get_ident() == self.thread:
            with suppress(OSError, ValueError):  # the stream is closed, or its disk is full
                sys.stdout.flush()  # also passes on an unfinished line
                sys.stderr.flush()
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


_current: ContextVar[Execution | None] = ContextVar("punctual_execution", default=None)
_under_way: set[Execution] = set()  # in this process


def of(request: Any) -> Execution | None:
    """The execution behind a task's request; None for a task outside a run."""
    return getattr(request, ATTRIBUTE, None)


def header(request: Any, name: str) -> Any:
    """A header of a message. With CELERY_TASK_ALWAYS_EAGER, Celery has no message and keeps the headers apart."""
    if request is None:
        return None
    return (request.headers or {}).get(name) if request.is_eager else request.get(name)


def enter(request: Any, execution: Execution) -> None:
    """Attach the execution to the request of its task, and to all code that the task calls."""
    setattr(request, ATTRIBUTE, execution)
    execution.request, execution.outer, execution.outer_request_id = request, current(), request_ids.current()
    _current.set(execution)
    request_ids.enter(execution.request_id)
    if not request.is_eager:
        _under_way.add(execution)


def leave(execution: Execution) -> None:
    """Its task is over."""
    execution.scope.close()
    _under_way.discard(execution)
    if _current.get() is execution:
        _current.set(execution.outer)
        request_ids.enter(execution.outer_request_id)


def node_of(hostname: object) -> str:
    """The name of a worker, cut to the length of its column."""
    return str(hostname)[:LONGEST_NAME]


def current() -> Execution | None:
    """The execution that the calling code belongs to; None outside a run."""
    execution = _current.get()
    while execution is not None and execution.is_over:
        execution = execution.outer
    return execution


def of_caller() -> Execution | None:
    """Like `current`, for what jobs call. Raises RuntimeError in a thread that a job started without its context."""
    execution = current()
    if execution is None and _under_way and not _task_stack.stack:
        raise RuntimeError(
            "This thread does not know which run it belongs to. Give it the context of the job: instead of"
            " `executor.submit(function)`, write `executor.submit(contextvars.copy_context().run, function)`."
        )
    return execution


def _keys() -> dict[str, Any]:
    """For log lines. Those that end an execution belong to it, too."""
    return execution.keys if (execution := _current.get()) else {}


logs.register(_keys)


def reset_after_fork() -> None:
    """In a forked child: the executions are its parent's, and another thread may have held the lock of the event."""
    global news  # noqa: PLW0603 - one for all executions of a process
    news = threading.Event()
    _under_way.clear()
    _current.set(None)
