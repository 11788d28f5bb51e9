"""How do all processes of a machine share one large table? As a file that one process builds and every process maps.

    atlas = MappedResource("atlas", write_atlas, settings.VAR_DIR / "resources")
    atlas.get()[offset : offset + 8]                           # a read-only memoryview

Its one rule: every mapped file is complete. One process at a time builds, under another name. Once complete and on
disk, the file gets its final name. A killed builder leaves no lock and no file that a process would map. A process that
uses an older file keeps it: the system frees the file after its last user.

Limits: needs `flock` and a folder on a local disk. The file outlives restarts: rename the resource when `build` changes
the format. Each machine builds its own file.
"""

import fcntl
import math
import mmap
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.cache.resources import Entry, Resource


class MappedResource(Resource[memoryview]):
    """A table that `build` writes to the path it receives. Each version of the table is a file in `folder`.

    `ttl` is in seconds and counts from the start of the build, also when another process built the file. It takes no
    `close`: a mapping ends with its last reference.
    """

    def __init__(
        self, name: str, build: Callable[[Path], object], folder: Path, *, ttl: float = math.inf, preload: bool = False
    ) -> None:
        super().__init__(name, build, ttl=ttl, preload=preload)  # type: ignore[arg-type] # only `_build` calls it
        self._folder = Path(folder) / name

    def _make(self, key: tuple[Hashable, ...]) -> Entry[memoryview]:
        if key:
            raise TypeError(f"{self.name} is one table and has no keys: call get() and look up {key!r} in the result.")
        with self._alone():
            path = self._folder / (self._newest() if self.version is None else str(self.version))
            if not path.exists() or _age(path) >= self.ttl:
                self._build(path)
            with path.open("rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return Entry(view, view.nbytes, self.clock() + self.ttl - _age(path))

    def _build(self, path: Path) -> None:
        unfinished, began = self._folder / "unfinished", time.time()
        unfinished.unlink(missing_ok=True)  # left by a killed builder
        try:
            self.load(unfinished)
            if unfinished.exists():
                with unfinished.open("rb") as file:
                    os.fsync(file.fileno())
            if not unfinished.exists() or not unfinished.stat().st_size:
                raise ValueError(f"{self.name}: build wrote nothing to the file, and an empty file cannot be mapped.")
            os.utime(unfinished, (began, began))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        for other in self._folder.iterdir() if self.version is not None else ():
            if other != path and other.is_file():
                other.unlink()

    def _newest(self) -> str:
        """The file for a process that reads no versions: the newest one that the workers have built, if any."""
        versions = (int(file.name) for file in self._folder.iterdir() if file.name.isdecimal())
        return str(max(versions, default=0))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the folder against the other processes of this machine. The lock ends with its process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a child forked meanwhile holds it, too
            os.close(descriptor)


def _age(path: Path) -> float:
    """Seconds since the build of this file began; at least 0, even after the clock was set back."""
    return max(0.0, time.time() - path.stat().st_mtime)
