"""`manage.py up`: runs web, worker, beat and, unless REDIS_URL is set, a Valkey server on this machine until Ctrl-C."""

import os
import sys
from argparse import ArgumentParser
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand
from django.utils.timezone import localtime

from jobs.local import up
from jobs.local.embedded import ServerError
from jobs.local.supervisor import SupervisorError
from jobs.models import Run


class Command(BaseCommand):
    help = "Runs web, worker and beat, and prints each finished run. Keeps logs and state in VAR_DIR."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="the port of the web process (default: 8000)")
        parser.add_argument(
            "--demo", action="store_true", help="create an admin user and demonstration schedules first"
        )
        parser.add_argument("--until", type=int, metavar="N", help="end once N scheduled runs have succeeded")
        parser.add_argument(
            "--deadline", type=float, default=60, metavar="SECONDS", help="fail if --until takes longer (default: 60)"
        )

    def handle(self, *, port: int, demo: bool, until: int | None, deadline: float, **_options: Any) -> None:
        if not 1 <= port <= 65535:
            sys.exit(f"--port {port} is not a port: choose a number from 1 to 65535.")
        if until is not None and until < 1:
            sys.exit(f"--until {until} is too small: choose 1 or more.")
        if not deadline > 0:
            sys.exit(f"--deadline {deadline} is too short: choose a number of seconds above 0.")
        try:
            up.run(up.Options(port, demo, until, deadline), self.report, describe)
        except (SupervisorError, ServerError) as error:
            sys.exit(str(error))

    def report(self, line: str) -> None:
        """Print a line at once. Raises OSError when the reader is gone; later output is discarded."""
        try:
            self.stdout.write(printable(line))
            self.stdout.flush()
        except OSError:
            with Path(os.devnull).open("w") as nowhere:  # otherwise Python prints an error at exit
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise


def describe(run: Run) -> str:
    """A finished run in one line: local time, state, schedule, how late it started and how long it took."""
    finished_at = f"{localtime(run.finished_at):%H:%M:%S}" if run.finished_at else "--:--:--"
    late = f"{length(run.lateness)} late" if run.lateness is not None else ""
    took = f"took {length(run.duration)}" if run.duration is not None else ""
    parts = [finished_at, f"{run.state:9}", f"{run.schedule_name or run.task:30}", late, took, run.reason]
    return "  ".join(part for part in parts if part).rstrip()


def length(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def printable(text: str) -> str:
    """Replace control characters, which a terminal would obey, and characters that it cannot show."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    encoding = sys.stdout.encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
