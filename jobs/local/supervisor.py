"""Do the processes that belong together live, and do they end together?

Its one rule: whatever it starts ends with it, in the reverse of the order in which it was started, and nothing that a
child started is left. A child that ends by itself is started again, ever more slowly.
Limits: only Linux ends the children when the supervisor itself is killed; a worker then still finishes the jobs in
hand. A job that outlasts the patience of a stop is killed: its run is rescued at the next start.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

# All in seconds.
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # between the end of a child and its next start
HEALTHY = 60.0  # a child that lived this long begins again with the first delay
READY = 60.0  # until a child must answer
HASTE = 1.0  # what a child gets to end once the stop is hastened
LOOK = 0.05  # between two looks at what is waited for

LARGEST_LOG = 1_000_000  # bytes; a larger log is begun anew at the next start
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# Looked up before any fork: a forked child must take no lock that somebody else may have held.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class SupervisorError(Exception):
    """Starting or going on is not possible; the message says why, and what to do."""


@dataclass
class Child:
    """A process that is started again whenever it ends. `patience` is how many seconds its stop may take."""

    name: str
    command: Sequence[str]
    folder: Path
    log: Path
    patience: float
    prepare: Callable[[], object] = lambda: None
    tidy: Callable[[], object] = lambda: None
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0
    start_at: float = 0
    delay: float = 0

    def start(self) -> None:
        """Start the process in a session of its own, so that a terminal's Ctrl-C reaches the supervisor only."""
        self.prepare()
        begun_anew = self.log.exists() and self.log.stat().st_size > LARGEST_LOG
        with self.log.open("wb" if begun_anew else "ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - no part of a command comes from outside
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - it calls nothing but the kernel
            )
        self.started_at = time.monotonic()

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def reap(self) -> str:
        """Clear away what an ended process left, decide when to start the next one, and say so."""
        code = self._kill_group()
        lived = time.monotonic() - self.started_at
        self.delay_restart(FIRST_DELAY if lived >= HEALTHY or not self.delay else 2 * self.delay)
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self.name} {end}; starting it again in {self.delay:g} s. {self.last_log_line()}"

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
        return f"The last line of {self.log}: {last[:300]}"

    def stop(self, patience: Callable[[float], float]) -> None:
        """Ask the process to end; after `patience` of its seconds, kill it and all that it started."""
        if self.process is not None:
            asked_at = time.monotonic()
            self.process.terminate()
            while not self.ended and time.monotonic() - asked_at < patience(self.patience):
                time.sleep(LOOK)
            self._kill_group()
        self.tidy()

    def _kill_group(self) -> int:
        """Kill what is left of the process and its group, such as the pool of a dead worker. Returns its status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only zombies are left
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


class Supervisor:
    """Starts children, keeps them alive, and stops all of them when its `with` block is left, however it is left.

    SIGINT, SIGTERM, SIGHUP, and a `report` that raises OSError because nobody reads any more, leave the block by
    KeyboardInterrupt at the next `pause`. A second signal hastens.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.children: list[Child] = []
        self._asked = 0
        self._stopping = False

    def __enter__(self) -> Self:
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
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
        if self._asked > 1 and not self._stopping:  # something that never pauses hangs, such as a migration
            raise KeyboardInterrupt

    def report(self, line: str) -> None:
        # A closed terminal does not always send SIGHUP to more than the first process in it, which may be `make`.
        try:
            self._report(line)
        except OSError:
            self._asked = max(self._asked, 1)

    def pause(self, seconds: float) -> None:
        """Wait. Raises KeyboardInterrupt once a signal has asked for the end."""
        if not self._asked:
            time.sleep(seconds)
        if self._asked:
            raise KeyboardInterrupt

    def start(self, child: Child) -> None:
        """Start a child and care for it from now on. Raises SupervisorError, and what its `prepare` raises."""
        self.pause(0)
        self.children.append(child)
        try:
            child.start()
        except OSError as error:
            raise SupervisorError(f"{child.name} cannot be started: {error}.") from error

    def wait_for(self, child: Child, answers: Callable[[], bool]) -> None:
        """Return once the child answers. Raises SupervisorError when it ends before that, or takes too long."""
        deadline = time.monotonic() + READY
        while not answers():
            if child.ended or time.monotonic() > deadline:
                raise SupervisorError(f"{child.name} did not start. {child.last_log_line()}")
            self.pause(LOOK)

    def restart(self) -> None:
        """Tell which children have ended, and start again those whose time has come."""
        for child in self.children:
            if child.ended:
                self.report(child.reap())
            if child.process is None and time.monotonic() >= child.start_at:
                self._start_again(child)

    def _start_again(self, child: Child) -> None:
        try:
            child.start()
        except (OSError, RuntimeError) as error:  # the disk is full, a folder is gone: it may come back
            child.delay_restart(2 * child.delay)
            self.report(f"{child.name} cannot be started, trying again in {child.delay:g} s: {error}")


def _end_with_parent() -> None:
    """Between fork and exec: have Linux send SIGTERM when the parent dies, even by kill -9. Elsewhere: nothing."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
