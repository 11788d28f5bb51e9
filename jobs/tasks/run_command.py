"""Can a management command be scheduled? Runs one that RUN_COMMANDS allows, in the worker's own process.

Use it for commands that a project already has: `clearsessions`, an import, a nightly sum. The output becomes the log of
the run, line by line. A CommandError or an exit other than 0 fails the run.

Limits: the allow-list is the only protection, and allows a command with all its arguments. There is no terminal for
commands that ask questions.
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
        raise ValueError(f"{name!r} is not allowed. Allowed: {allowed}; the setting RUN_COMMANDS lists them")
    return name


class Lines(io.TextIOBase):
    """A stream that logs each line as soon as it is complete."""

    def __init__(self, level: int) -> None:
        self._level, self._rest = level, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            logger.log(self._level, "%s", line)
        return len(text)

    def finish(self) -> None:
        """Log the text after the last line break."""
        self.write("\n")


@shared_task(name="jobs.run_command")
@validate_call
def run_command(
    command: Annotated[
        str, Field(description="A management command that RUN_COMMANDS allows."), AfterValidator(_allowed)
    ],
    arguments: Annotated[list[str], Field(description="Such as --database=default.")] = [],  # noqa: B006 - read only
) -> None:
    """Run a management command. Raises CommandError if the command reports a failure."""
    printed, complaints = Lines(logging.INFO), Lines(logging.WARNING)
    try:
        call_command(command, *arguments, stdout=printed, stderr=complaints, no_color=True)
    except SystemExit as end:  # which would end the worker
        if end.code:
            raise CommandError(f"{command} exited with {end.code}: the log of this run says why.") from end
    finally:
        printed.finish()
        complaints.finish()
