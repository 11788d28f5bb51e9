"""How much memory do the processes of a worker on this machine take, and does a limit renew them? From /proc.

Limits: Linux only. It sees the workers of its own machine or container. Memory that processes share counts in each.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from celery import current_app

PROC = Path("/proc")
LIMITS = (b"--max-memory-per-child", b"--max-tasks-per-child")


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes of each process of a worker, the main process first."""

    name: str
    sizes: tuple[int, ...]
    has_limit: bool

    @property
    def largest(self) -> int:
        return max(self.sizes)


def of_worker(name: str, pid: int) -> Memory | None:
    """The memory of this worker; None if it does not run on this machine."""
    with suppress(OSError):
        words = (PROC / str(pid) / "cmdline").read_bytes()
        if b"celery" in words:
            sizes = tuple(filter(None, map(_size, [pid, *_children(pid)])))
            return Memory(name, sizes, _has_limit(words)) if sizes else None
    return None


def _has_limit(words: bytes) -> bool:
    conf = current_app.conf
    return bool(conf.worker_max_memory_per_child or conf.worker_max_tasks_per_child) or any(
        word.startswith(LIMITS) for word in words.split(b"\0")
    )


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def _size(pid: int) -> int:
    """The resident memory of a process in bytes; 0 if it has ended."""
    with suppress(OSError, ValueError, StopIteration):
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024
    return 0
