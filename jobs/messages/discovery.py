"""Which modules define jobs, and which of them are broken? Imports the `tasks` module of each app, each by itself.

Its one rule: a module that cannot be imported hides no other. Workers and beats go on with the jobs of the others and
log an error, the pages of schedules show it, and so does `manage.py check`. Each names the file and the line.
Limit: what a module defines before the line that fails stays registered.
"""

import logging
from collections.abc import Iterable
from sysconfig import get_path
from traceback import walk_tb
from typing import Any

from celery import current_app, signals
from celery.loaders.app import AppLoader

from jobs.secrets import in_one_line

log = logging.getLogger(__name__)

LONGEST_ERROR = 300  # characters
# The beginnings of the paths of files in which a user has nothing to mend.
FOREIGN = ("<frozen ", *{get_path(kind) for kind in ("stdlib", "purelib", "platlib")})


class Loader(AppLoader):
    """Celery's `app.loader`."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.broken: dict[str, str] = {}  # a sentence for each module that cannot be imported
        self._is_importing = False

    def import_default_modules(self) -> Any:
        if self._is_importing:  # Celery's support for Django runs `checks` meanwhile, which asks for the modules
            return []
        self._is_importing = True
        self.broken.clear()
        try:
            return super().import_default_modules()
        finally:
            self._is_importing = False

    def autodiscover_tasks(self, packages: Iterable[str], related_name: str = "tasks") -> None:
        for package in packages or ():
            self._try(f"{package}.{related_name}", super().autodiscover_tasks, [package], related_name)

    def import_task_module(self, module: str) -> Any:
        """Called for the setting `imports` and the option `--include`."""
        return self._try(module, super().import_task_module, module)

    def _try(self, module: str, do: Any, *arguments: Any) -> Any:
        try:
            return do(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever the code of an app raises
            place = "{}, line {}".format(*_place(error))
            self.broken[module] = (
                f"The module {module} cannot be imported ({place}): {in_one_line(error, LONGEST_ERROR)}"
            )


def load(app: Any = current_app) -> list[str]:
    """Import the modules of every app, which a web process has not done yet; returns a sentence for each broken one."""
    app.loader.import_default_modules()
    return broken(app)


def broken(app: Any = current_app) -> list[str]:
    """A sentence for each module that could not be imported."""
    return list(getattr(app.loader, "broken", {}).values())


def connect() -> None:
    """Tell of broken modules as soon as a worker or beat has set up its log."""
    for signal in (signals.worker_ready, signals.beat_init):
        signal.connect(_tell, dispatch_uid="jobs.messages.discovery")


def _tell(**_: Any) -> None:
    for sentence in broken():
        log.error("%s. Its jobs are unknown here.", sentence)


def _place(error: Exception) -> tuple[str, int]:
    """The file and the line of an error: of the text that is no Python, or of the user's innermost line."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 0
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)][1:]
    own = [place for place in frames if not place[0].startswith(FOREIGN)]
    return (own or frames)[-1]
