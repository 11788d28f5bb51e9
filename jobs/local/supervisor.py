"""How do several processes run and end together?

Its one rule: every child ends with the supervisor, in reverse order of the start, and leaves no process behind. A child
that ends by itself is restarted. The delay before each restart grows. A child that is renewed starts again after its
work in hand.
Limits: when the supervisor itself is killed, its children end only on Linux, and the worker still finishes its running
jobs. A stop kills a job that takes longer than its worker's patience. The next start rescues its run.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from jobs.logs import sentence_of

# All in seconds.
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # between the end of a child and its restart
HEALTHY = 60.0  # after this lifetime a child's restart delay begins at FIRST_DELAY again
READY = 60.0  # how long a child may take to answer
HASTE = 1.0  # how long a child may take to end after a second signal
LOOK = 0.05  # between two checks

LARGEST_LOG = 1_000_000  # bytes; the next start of a child truncates a larger log
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# Loaded before any fork: a forked child must not take a lock that another thread may have held.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class SupervisorError(Exception):
    """The supervisor cannot start or continue. The message says why and what to do."""


@dataclass
class Child:
    """A process that is restarted when it ends. `patience`: how many seconds its stop may take."""

    name: str
    command: Sequence[str]
    folder: Path
    log: Path
    patience: float
    environment: Mapping[str, str] | None = None  # None: the environment of the supervisor
    prepare: Callable[[], object] = lambda: None
    tidy: Callable[[], object] = lambda: None
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0
    start_at: float = 0
    delay: float = 0
    is_renewed: bool = False

    def start(self) -> None:
        """Start the process in a new session, so that Ctrl-C in a terminal reaches only the supervisor."""
        self.prepare()
        truncate = self.log.exists() and self.log.stat().st_size > LARGEST_LOG
        with self.log.open("wb" if truncate else "ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - no part of a command comes from outside
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - it only calls the kernel
            )
        self.started_at = time.monotonic()

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def reap(self) -> str:
        """Kill the rest of an ended process's group and schedule the restart. Returns a sentence that reports it."""
        code = self._kill_group()
        lived = time.monotonic() - self.started_at
        self.delay_restart(FIRST_DELAY if lived >= HEALTHY or not self.delay else 2 * self.delay)
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self.name} {end}; restarting it in {self.delay:g} s. {self.last_log_line()}"

    def renew(self) -> None:
        """Ask the process to end after its work in hand, however long that takes; `restart` starts it again."""
        if self.process is not None and not self.is_renewed:  # a worker takes a second signal for haste
            self.is_renewed = True
            self.process.terminate()
        self.start_at = 0

    def has_renewed(self) -> bool:
        """Whether the process has ended because it was asked to; it may start at once then."""
        if not (self.is_renewed and self.ended):
            return False
        self._kill_group()
        self.is_renewed = False
        return True

    def delay_restart(self, delay: float) -> None:
        self.delay = min(delay, LONGEST_DELAY)
        self.start_at = time.monotonic() + self.delay

    def last_log_line(self) -> str:
        """The last line of its log, in a sentence."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")
        return f"The last line of {self.log}: {sentence_of(last)[:300]}"

    def stop(self, patience: Callable[[float], float]) -> None:
        """Terminate the process. Once it has ended, or after `patience(self.patience)` seconds, kill its group."""
        if self.process is not None:
            asked_at = time.monotonic()
            self.process.terminate()
            while not self.ended and time.monotonic() - asked_at < patience(self.patience):
                time.sleep(LOOK)
            self._kill_group()
        self.tidy()

    def _kill_group(self) -> int:
        """Kill the process and the rest of its group, such as the pool of a dead worker. Returns its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only zombies are left
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


class Supervisor:
    """Starts and restarts children, and stops them all at the end of its `with` block, also after an error.

    After SIGINT, SIGTERM or SIGHUP the next `pause` raises KeyboardInterrupt, which ends the block; likewise after a
    `report` that raises OSError because its reader is gone. A second signal shortens the stop.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.children: list[Child] = []
        self._asked = 0
        self._stopping = False

    def __enter__(self) -> Self:
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores SIGHUP; so do we
            signals.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._ask) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        if self.children:
            self.report(f"Stopping {', '.join(child.name for child in reversed(self.children))}.")
        for child in reversed(self.children):
            child.stop(lambda seconds: min(seconds, HASTE) if self._asked > 1 else seconds)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1
        if self._asked > 1 and not self._stopping:  # code that never pauses hangs, such as a migration
            raise KeyboardInterrupt

    def report(self, line: str) -> None:
        # A closed terminal may send SIGHUP only to its first process, which may be `make`.
        try:
            self._report(line)
        except OSError:
            self._asked = max(self._asked, 1)

    def pause(self, seconds: float) -> None:
        """Wait. Raises KeyboardInterrupt after a signal."""
        if not self._asked:
            time.sleep(seconds)
        if self._asked:
            raise KeyboardInterrupt

    def start(self, child: Child) -> None:
        """Start a child and supervise it from now on. Raises SupervisorError and any error of its `prepare`."""
        self.pause(0)
        self.children.append(child)
        try:
            child.start()
        except OSError as error:
            raise SupervisorError(f"{child.name} cannot be started: {error}.") from error

    def wait_for(self, child: Child, answers: Callable[[], bool]) -> None:
        """Return once the child answers. Raises SupervisorError if it ends first or takes longer than READY."""
        deadline = time.monotonic() + READY
        while not answers():
            if child.ended or time.monotonic() > deadline:
                raise SupervisorError(f"{child.name} did not start. {child.last_log_line()}")
            self.pause(LOOK)

    def restart(self) -> None:
        """Report the children that have ended, and restart those whose delay is over."""
        for child in self.children:
            if not child.has_renewed() and child.ended:
                self.report(child.reap())
            if child.process is None and time.monotonic() >= child.start_at:
                self._start_again(child)

    def _start_again(self, child: Child) -> None:
        try:
            child.start()
        except (OSError, RuntimeError) as error:  # such as a full disk or a missing folder: that may pass
            child.delay_restart(2 * child.delay)
            self.report(f"{child.name} cannot be started; trying again in {child.delay:g} s: {error}")


def _end_with_parent() -> None:
    """Between fork and exec: let Linux send SIGTERM when the parent dies, even by kill -9. No effect elsewhere."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
