"""How does a command report the runs that it has requested, and wait for their ends?

Its one rule: the runs are committed before it reports them, so they go on whatever happens to the command.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from django.core.management.base import CommandError

from jobs.ledger import sending
from jobs.ledger.requests import Requested
from jobs.management import following, reading
from jobs.management.terminal import FAILED, INTERRUPTED, Terminal, counted
from jobs.models import Run, State, database_now
from jobs.web.api import shapes

SENDING = 5.0  # seconds to hand new runs to the broker; after that, beat sends them


def add_wait(parser: ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="return when it has ended; status 1 unless it succeeded")
    add_timeout(parser)


def add_timeout(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=reading.seconds,
        metavar="DURATION",
        help="wait no longer; the run goes on, and the status is 4",
    )


def show_requested(
    terminal: Terminal, requested: Requested | Run, *, wait: bool = False, timeout: float | None = None
) -> None:
    """Report new runs and refusals, and wait for the ends of the runs if `wait`. One run is one object in JSON."""
    one = isinstance(requested, Run)
    runs, refused = ([requested], []) if isinstance(requested, Run) else (requested.runs, requested.refused)
    for of, why in refused:
        terminal.note(f"Not started: {of}: {why}.")
    try:
        for run in runs:
            terminal.say(f"Run {run.id} of {run.schedule_name or run.task}.")
        terminal.flush()
        runs = _sent(terminal, runs)
        if wait:
            runs = _over(terminal, runs, timeout)
    except KeyboardInterrupt:
        terminal.note("Not waiting any longer; the run goes on.")
        sys.exit(INTERRUPTED)
    finally:  # also if the wait ends first: a script needs the id
        if terminal.as_json:
            shown = [shapes.whole(run) for run in runs]
            terminal.json(shown[0] if one else shown)
    if refused:
        raise CommandError(f"{counted(len(refused), 'request')} refused (see above).", returncode=FAILED)
    if wait and (status := following.status_of(runs)):
        sys.exit(status)


def _sent(terminal: Terminal, runs: Sequence[Run]) -> list[Run]:
    """The runs after their messages were sent, if the broker takes them."""
    sending.wait(SENDING)
    fresh = list(Run.objects.filter(id__in=[run.id for run in runs]).order_by("id"))
    now = database_now()
    if any(run.state == State.WAITING and not run.sends and run.due_at <= now for run in fresh):
        terminal.note("The broker has not taken it yet; beat sends it.")
    return fresh


def _over(terminal: Terminal, runs: Sequence[Run], timeout: float | None) -> list[Run]:
    over = following.wait([run.id for run in runs], terminal.note, timeout)
    for run in over:
        terminal.say(following.ended(run))
    return over
