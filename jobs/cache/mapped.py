"""How do all processes of a machine share one large table? As a file, which one of them builds and each one maps.

    atlas = MappedResource("atlas", write_atlas, settings.VAR_DIR / "resources")
    atlas.get()[offset : offset + 8]                           # a read-only memoryview

Its one rule: what is mapped is whole. One process at a time builds, under another name; the file takes its place when
it is complete and on disk. A builder that is killed leaves no lock, and nothing that anybody would map. Whoever uses a
former file goes on with it: the system frees it when the last of them is done.

Limits: systems with `flock`, a folder on a local disk. The file outlives restarts: give the resource another name when
`build` changes its format. Each machine builds its own.
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
    """A table that `build` writes into the file whose path it is given; each version of it is a file in `folder`.

    `ttl` is in seconds and counts from the beginning of the build, in whichever process. `close` is none of its needs:
    a mapping ends with the last reference to it.
    """

    def __init__(
        self, name: str, build: Callable[[Path], object], folder: Path, *, ttl: float = math.inf, preload: bool = False
    ) -> None:
        super().__init__(name, build, ttl=ttl, preload=preload)  # type: ignore[arg-type] # for `_build` below, no other
        self._folder = Path(folder) / name

    def _make(self, key: tuple[Hashable, ...]) -> Entry[memoryview]:
        if key:
            raise TypeError(f"{self.name} is one table and has no keys: look up {key!r} in what get() returns.")
        with self._alone():
            path = self._folder / (self._newest() if self.version is None else str(self.version))
            if not path.exists() or _age(path) >= self.ttl:
                self._build(path)
            with path.open("rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return Entry(view, view.nbytes, self.clock() + self.ttl - _age(path))

    def _build(self, path: Path) -> None:
        unfinished, began = self._folder / "unfinished", time.time()
        unfinished.unlink(missing_ok=True)  # of a builder that was killed
        try:
            self.load(unfinished)
            if unfinished.exists():
                with unfinished.open("rb") as file:
                    os.fsync(file.fileno())
            if not unfinished.exists() or not unfinished.stat().st_size:
                raise ValueError(f"{self.name}: nothing was written into the file, and nothing cannot be mapped.")
            os.utime(unfinished, (began, began))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        for other in self._folder.iterdir() if self.version is not None else ():
            if other != path and other.is_file():
                other.unlink()

    def _newest(self) -> str:
        """Which file a process maps that does not look for versions: the workers' own, where there is one."""
        versions = (int(file.name) for file in self._folder.iterdir() if file.name.isdecimal())
        return str(max(versions, default=0))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of this machine is in here: the system ends the lock with its holder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # to close it is not enough: a child forked meanwhile has it, too
            os.close(descriptor)


def _age(path: Path) -> float:
    """Seconds since the build of this file began; never below 0, though clocks are set back."""
    return max(0.0, time.time() - path.stat().st_mtime)
