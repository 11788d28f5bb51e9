"""Which rules of the world's time zones apply? The newest of this machine's and those of the package `tzdata`.

Its one rule: governments change them with days of notice, so the newest version wins. Python alone would take the
machine's, even if they are years old. A folder of unknown version counts as the oldest.

Limit: a zone that was made before keeps its rules, so `use_newest` is called before Django loads models. New files on
the machine apply when a process starts again.
"""

import re
import zoneinfo
from contextlib import suppress
from datetime import datetime
from importlib.resources import files
from pathlib import Path

VERSION_FILES = ("tzdata.zi", "+VERSION")  # of Linux; of BSD and macOS
VERSION = re.compile(r"\b\d{4}[a-z]+\b")
_versions: dict[str, str] = {}


def use_newest() -> None:
    """Let this process, and the children that it forks, look up zones in the newest folder first."""
    folders = list(dict.fromkeys([*map(str, zoneinfo.TZPATH), *_package()]))
    _versions.update({folder: _version_of(Path(folder)) for folder in folders})
    folders.sort(key=lambda folder: _versions[folder], reverse=True)
    if folders[:1] != list(map(str, zoneinfo.TZPATH[:1])):
        zoneinfo.reset_tzpath(folders)
        zoneinfo.ZoneInfo.clear_cache()


def version() -> str:
    """The version of the rules in use, such as 2026a; empty if it is unknown."""
    return next((_versions.get(str(folder), "") for folder in zoneinfo.TZPATH), "")


def is_old(of: str, now: datetime) -> bool:
    """Whether rules of this version are more than a year old; unknown ones are not called old."""
    return bool(of) and int(of[:4]) < now.year - 1


def _package() -> list[str]:
    """The folder of the package, if it is installed as files."""
    with suppress(ImportError):
        folder = files("tzdata") / "zoneinfo"
        return [str(folder)] if isinstance(folder, Path) else []
    return []


def _version_of(folder: Path) -> str:
    for name in VERSION_FILES:
        with suppress(OSError), (folder / name).open() as file:
            if found := VERSION.search(file.readline()):
                return found[0]
    return ""
