"""Can a management command be scheduled? Runs one of those that RUN_COMMANDS allows, in the worker's own process.

For the commands that a project has anyway: `clearsessions`, an import, a nightly sum. What it prints becomes the log of
the run, line by line, and a command that says it failed (CommandError, or an exit other than 0) makes the run fail.

Limits: the allow-list is the only fence, and allows a command with all its arguments. A command that needs a terminal
to ask questions gets none.
"""

import io
import logging
from typing import Annotated

from celery import shared_task
from django.conf import settings
from django.core.management import CommandError, call_command
from pydantic import AfterValidator, Field, validate_call

logger = logging.getLogger(__name__)


def _allowed(name: str) -> str:
    if name not in settings.RUN_COMMANDS:
        allowed = ", ".join(sorted(settings.RUN_COMMANDS)) or "none"
        raise ValueError(f"{name!r} is not allowed. Allowed: {allowed}; the setting RUN_COMMANDS says which")
    return name


class Lines(io.TextIOBase):
    """A stream that logs each line as soon as it is whole."""

    def __init__(self, level: int) -> None:
        self._level, self._rest = level, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            logger.log(self._level, "%s", line)
        return len(text)

    def finish(self) -> None:
        """Log what came after the last line's end."""
        self.write("\n")


@shared_task(name="jobs.run_command")
@validate_call
def run_command(
    command: Annotated[str, Field(description="One that RUN_COMMANDS allows."), AfterValidator(_allowed)],
    arguments: Annotated[list[str], Field(description="Such as --database=default.")] = [],  # noqa: B006 - read only
) -> None:
    """Run a management command. Raises CommandError when it says that it failed."""
    printed, complaints = Lines(logging.INFO), Lines(logging.WARNING)
    try:
        call_command(command, *arguments, stdout=printed, stderr=complaints, no_color=True)
    except SystemExit as end:  # which would end the worker
        if end.code:
            raise CommandError(f"{command} ended with {end.code}: its log says why.") from end
    finally:
        printed.finish()
        complaints.finish()
