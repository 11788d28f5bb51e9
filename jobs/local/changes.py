"""Which Python files have changed since the last look? For `manage.py up` in development.

Its one rule: a look never waits. It follows the folders beside manage.py, but for hidden ones and VAR_DIR.
Limits: a new folder is followed from the next change on; other files, such as templates, are not followed.
"""

from pathlib import Path
from typing import Any

from watchfiles import PythonFilter, watch

LOOK = 10  # milliseconds; watchfiles itself notices changes in a thread of its own


class Changes:
    """The changes in a project's folder; `ignored` is left out."""

    def __init__(self, folder: Path, ignored: Path) -> None:
        self._folder, self._outside = folder, {ignored, *ignored.parents}
        self._followed: dict[Path, int] = {}
        self._follow()

    def look(self) -> list[Path]:
        """The files that were changed, added or deleted."""
        found = {Path(path) for _, path in next(self._watch, set())}
        if found and self._folders() != self._followed:
            self._watch.close()
            self._follow()
        return sorted(found)

    def _follow(self) -> None:
        self._followed = self._folders()
        options: dict[str, Any] = {"yield_on_timeout": True, "raise_interrupt": False}
        self._watch = watch(*self._followed, watch_filter=PythonFilter(), rust_timeout=LOOK, step=LOOK, **options)
        next(self._watch, None)  # a generator: nothing is followed before

    def _folders(self) -> dict[Path, int]:
        """The folders with their numbers on the disk: one that was made again is another one."""
        found = [each for each in self._folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
        code = [each for each in found if each not in self._outside and not (each / "pyvenv.cfg").exists()]
        return {each: each.stat().st_ino for each in code}


def mistake(path: Path) -> str:
    """Why this file is no Python; empty if it is, or was deleted."""
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except FileNotFoundError:
        return ""
    except (OSError, SyntaxError, ValueError) as error:
        return f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
    return ""
