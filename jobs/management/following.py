"""How is a run watched until it ends: its log, its progress, its attempts?

Its one rule: it only reads, so the run goes on whatever happens to the watcher. It looks twice a second, in a query or
two, and a database that is away for a while only delays it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import connection
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from jobs.management.terminal import FAILED, LateError, MissingError, Terminal, brief, duration, safe
from jobs.models import ACTIVE, Run, RunLog, State
from jobs.monitoring.progress import progress_of, reason_of

LOOK = 0.5  # seconds between two looks
T = TypeVar("T")


class View(Protocol):
    """What shows a run while it goes on."""

    def log(self, text: str) -> None: ...
    def state(self, line: str, done: int, total: int | None) -> None: ...
    def note(self, sentence: str) -> None: ...


class Watch:
    """Looks at the ledger until a time is up; None: for ever."""

    def __init__(self, note: Callable[[str], None], seconds: float | None) -> None:
        self._note = note
        self._until = None if seconds is None else time.monotonic() + seconds
        self._is_away = False

    def looks(self, read: Callable[[], T]) -> Iterator[T]:
        """What `read` returns, look by look. Ends when the time is up."""
        while True:
            try:
                value = read()
            except DatabaseError as error:
                self._lose(error)
            else:
                self._is_away = False
                yield value
            if self._until is not None and time.monotonic() >= self._until:
                return
            time.sleep(LOOK if self._until is None else max(0, min(LOOK, self._until - time.monotonic())))

    def _lose(self, error: DatabaseError) -> None:
        connection.close()
        if not self._is_away:
            self._note(f"The database cannot be read ({brief(error)}); trying again.")
        self._is_away = True


def wait(runs: Collection[UUID], note: Callable[[str], None], seconds: float | None) -> list[Run]:
    """The runs, once all have ended. Raises `LateError`."""
    active = Run.objects.active().filter(id__in=runs)
    for is_active in Watch(note, seconds).looks(active.exists):
        if not is_active:
            return list(Run.objects.filter(id__in=runs).order_by("id"))
    raise LateError(_late(active.values_list("id", "state"), seconds))


def tail(run_id: UUID, view: View, seconds: float | None) -> Run:
    """Show the log and the progress of a run, from its first attempt on, until it has ended.

    Raises `LateError`, or `MissingError` if it was deleted.
    """
    logs, attempt = _Logs(run_id), 0
    for run in Watch(view.note, seconds).looks(lambda: logs.read(run_id)):
        if run is None:
            raise MissingError(f"The run {run_id} was deleted.")
        view.log(logs.news())
        if run.attempt > max(attempt, 1):
            view.note(f"Attempt {run.attempt}: {run.reason or run.state}.")
        attempt = run.attempt
        if run.state not in ACTIVE:
            return run
        view.state(*_state(run))
    raise LateError(_late([(run_id, "unfinished")], seconds))


class _Logs:
    """The logs of a run's attempts, and how much of them was shown."""

    def __init__(self, run_id: UUID) -> None:
        self._run_id = run_id
        self._attempt, self._shown = 0, ""
        self._news: list[str] = []

    def read(self, run_id: UUID) -> Run | None:
        """Read the run, and then its logs: a worker writes the last lines before the end."""
        run = Run.objects.defer("args", "kwargs", "options", "error_text").filter(id=run_id).first()
        rows = RunLog.objects.filter(run=run_id, attempt__gte=self._attempt).order_by("attempt")
        for attempt, text in rows.values_list("attempt", "text"):
            before = self._shown if attempt == self._attempt else ""
            self._news.append(RunLog.since(before, text))
            self._attempt, self._shown = attempt, text
        return run

    def news(self) -> str:
        news, self._news = "".join(self._news), []
        return news


def _state(run: Run) -> tuple[str, int, int | None]:
    """The state in a line, and how far the run is."""
    progress, reason = progress_of(run), reason_of(run)
    done, total = progress.done, progress.total
    parts = [f"{done:,}" + (f" of {total:,}" if total else "")] if done or total else []
    if progress.steps:
        parts.append(f"{progress.steps_done:,} of {progress.steps:,} steps")
        if total is None:
            done, total = progress.steps_done, progress.steps
    line = f"{run.state} {', '.join([*parts, *filter(None, [progress.message])])}".rstrip()
    return f"{line} ({reason})" if reason else line, done, total


def _late(active: Any, seconds: float | None) -> str:
    states = ", ".join(f"{run} ({state})" for run, state in active)
    return f"Not over within {seconds:g} s, and going on: {states or 'the runs'}."


def ended(run: Run) -> str:
    """How a run ended, in a sentence."""
    took = f", took {duration(run.duration)}" if run.duration is not None else ""
    return f"Run {run.id} {run.state}{took}{f': {run.reason}' if run.reason else ''}."


def status_of(runs: Collection[Run]) -> int:
    """The exit status for runs that are over."""
    return 0 if all(run.state == State.SUCCEEDED for run in runs) else FAILED


class Lines:
    """Writes the log to stdout, and each change of the progress to stderr."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._last = ""
        self.note = terminal.note

    def log(self, text: str) -> None:
        if text:
            self._terminal.raw(safe(text, keep="\n\t"))

    def state(self, line: str, _done: int, _total: int | None) -> None:
        if line != self._last:
            self.note(line)
        self._last = line


class Bar:
    """Writes the log to a terminal, above a line with the progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def log(self, text: str) -> None:
        if text:
            self._progress.console.print(Text(safe(text, keep="\n\t")), end="" if text.endswith("\n") else "\n")

    def note(self, sentence: str) -> None:
        self._progress.console.print(Text(safe(sentence), "bold"))

    def state(self, line: str, done: int, total: int | None) -> None:
        self._progress.update(self._task, description=safe(line), completed=done, total=total)


@contextmanager
def view(terminal: Terminal) -> Iterator[View]:
    """The view that suits a terminal, or a pipe."""
    if not terminal.is_live:
        yield Lines(terminal)
        return
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=terminal.console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with _unwound_by(signal.SIGTERM):
        try:
            with bar:
                yield Bar(bar)
        finally:  # also if a signal came while the bar was drawn for the first time
            terminal.console.show_cursor()


class _SignalledError(BaseException):
    """A signal that would have ended the process at once."""


@contextmanager
def _unwound_by(number: signal.Signals) -> Iterator[None]:
    """Let the block end properly when this signal comes; then the signal ends the process."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return

    def unwind(*_: object) -> None:
        raise _SignalledError

    former = signal.signal(number, unwind)
    try:
        yield
    except _SignalledError:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    finally:
        signal.signal(number, former)
