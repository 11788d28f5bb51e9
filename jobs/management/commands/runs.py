"""`manage.py runs list|show|tail|start|retry|cancel`: what the ledger holds, and requests."""

import mimetypes
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.core.files.uploadedfile import UploadedFile
from django.core.management.base import CommandError, CommandParser

from jobs.ledger import requests
from jobs.ledger.requests import RunOptions
from jobs.management import following, reading
from jobs.management.requested import add_timeout, add_wait, show_requested
from jobs.management.terminal import FAILED, INTERRUPTED, ShellCommand, UsageError, counted
from jobs.models import UNSTARTED, Actor, Run, State, Trigger
from jobs.monitoring import search
from jobs.monitoring.progress import reason_of
from jobs.toolkit.uploads import take_upload
from jobs.web.api import shapes

MOST_LISTED = 10_000  # runs


class Command(ShellCommand):
    help = "Lists, shows, follows, starts, retries and cancels runs. `manage.py runs start --help` explains one act."

    def add_arguments(self, parser: CommandParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        self._add_list(self.act(acts, "list", self.list, "List runs, newest first."))
        show = self.act(acts, "show", self.show, "Show a run with its attempts and its error.")
        show.add_argument("run", help=RUN)
        tail = self.act(acts, "tail", self.tail, "Follow the log and the progress until the run ends.", json=False)
        tail.add_argument("run", help=RUN)
        add_timeout(tail)
        self._add_start(self.act(acts, "start", self.start, "Start a run of a job."))
        for name, handle, does in (
            ("retry", self.retry, "Repeat runs that are over, each as a new run."),
            ("cancel", self.cancel, "End unstarted runs, and ask running ones to end."),
        ):
            self.act(acts, name, handle, does).add_argument("runs", nargs="+", metavar="run", help=RUN)

    def _add_list(self, parser: ArgumentParser) -> None:
        parser.add_argument("--state", action="append", choices=State.values, help="may be given several times")
        parser.add_argument("--trigger", action="append", choices=Trigger.values, help="may be given several times")
        parser.add_argument("--schedule", metavar="NAME", help="the name or the id of a schedule")
        for option, of in OPTIONS.items():
            parser.add_argument(option, metavar=option[2:].upper(), help=of)
        parser.add_argument("--actor", dest="actor_name", metavar="NAME", help="who requested it")
        parser.add_argument("--backfill", type=UUID, metavar="ID", help="the id of a backfill")
        parser.add_argument("--parent", metavar="RUN", help="the run that it repeats")
        for option in ("--since", "--until"):
            parser.add_argument(option, type=reading.past, metavar="MOMENT", help="created; or such as '2 hours' (ago)")
        parser.add_argument("--limit", type=reading.between(1, MOST_LISTED), default=50, metavar="N")

    def _add_start(self, parser: ArgumentParser) -> None:
        parser.add_argument("job", help="the name of the job")
        parser.add_argument("pairs", nargs="*", metavar="name=value", help="an argument; JSON is read as JSON")
        parser.add_argument("--arguments", metavar="JSON", help="all arguments as a JSON object")
        parser.add_argument("--file", metavar="PATH", help="keep this file, whose id is the argument `file` of the job")
        parser.add_argument("--key", help="only the first request with this key makes a run")
        when = parser.add_mutually_exclusive_group()
        when.add_argument("--delay", type=reading.length, metavar="DURATION", help="such as '15 minutes'")
        when.add_argument("--at", type=reading.coming, metavar="MOMENT", help="such as 2026-12-24T18:00")
        parser.add_argument("--queue", default="")
        parser.add_argument("--priority", type=reading.between(0, requests.MOST_PRIORITY), metavar="N")
        add_wait(parser)

    def list(self, *, schedule: str | None, parent: str | None, limit: int, **filters: Any) -> None:
        if schedule is not None:
            filters["schedule"] = reading.schedule_of(schedule).pk
        if parent is not None:
            filters["parent"] = reading.run_of(parent).id
        filters = {name: value for name, value in filters.items() if value is not None}
        with search.patient():
            runs = list(search.find(Actor.of_shell(), **filters).defer(*shapes.UNSHOWN)[:limit])
        if self.terminal.as_json:
            self.terminal.json([shapes.line(run) for run in runs])
        elif runs:
            self.terminal.table(COLUMNS, map(line, runs))
        else:
            self.terminal.note("No run matches.")

    def show(self, *, run: str) -> None:
        found = reading.run_of(run)
        whole = shapes.whole(found)
        if self.terminal.as_json:
            self.terminal.json(whole)
            return
        self.terminal.record(properties(found, whole))
        for attempt in whole["attempts"]:
            self.terminal.say(f"Attempt {attempt['number']} {attempt['outcome']}: {attempt['reason']}")
        for text in found.error_text.splitlines():
            self.terminal.say(text)

    def tail(self, *, run: str, timeout: float | None) -> None:
        found = reading.run_of(run)
        try:
            with following.view(self.terminal) as view:
                found = following.tail(found.id, view, timeout)
        except KeyboardInterrupt:
            self.terminal.note(f"Run {found.id} goes on: `manage.py runs cancel {found.id}` would end it.")
            sys.exit(INTERRUPTED)
        self.terminal.note(following.ended(found))
        sys.exit(following.status_of([found]))

    def start(
        self,
        *,
        job: str,
        pairs: Sequence[str],
        arguments: str | None,
        file: str | None,
        wait: bool,
        timeout: float | None,
        **options: Any,
    ) -> None:
        given = reading.arguments_of(pairs, arguments)
        if file is None:
            run, is_new = requests.start(job, given, Actor.of_shell(), RunOptions(**options))
        else:
            key = options.pop("key")
            if given or any(value not in (None, "") for value in options.values()):
                raise UsageError("With --file, only --key, --wait and --timeout may be given besides the job.")
            run, is_new = sent(job, file, key)
        if not is_new:
            self.terminal.note(f"A request with this key has made run {run.id} already.")
        show_requested(self.terminal, run, wait=wait, timeout=timeout)

    def retry(self, *, runs: Sequence[str]) -> None:
        requested = requests.retry(reading.runs_of(runs), Actor.of_shell())
        show_requested(self.terminal, requested)

    def cancel(self, *, runs: Sequence[str]) -> None:
        found = reading.runs_of(runs)
        ended, asked = requests.cancel(Run.objects.filter(id__in=[run.id for run in found]), Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"ended": ended, "asked": asked})
        elif ended:
            self.terminal.say(f"Cancelled {counted(ended, 'unstarted run')}.")
        if asked:
            self.terminal.say(f"Asked {counted(asked, 'running run')} to end.")
        if not ended + asked:
            over = ", ".join(f"{run.id} {run.state}" for run in found)
            raise CommandError(f"No run was cancelled: all have ended ({over}).", returncode=FAILED)


def sent(job: str, word: str, key: str | None) -> tuple[Run, bool]:
    """The run of a job for a file, as an upload makes it, and whether it is new."""
    path = reading.file_of(word)
    kind = mimetypes.guess_type(path.name)[0] or ""
    try:
        with path.open("rb") as file:
            upload = UploadedFile(file, path.name, kind, path.stat().st_size)
            return take_upload(upload, Actor.of_shell(), key, job)
    except OSError as error:
        raise CommandError(f"The file {word!r} could not be kept: {error.strerror}.", returncode=FAILED) from error


RUN = "the id of a run, or its beginning or end, such as the 12 characters that `runs list` shows"
OPTIONS = {
    "--job": "the name of a job",
    "--queue": "the queue of its message",
    "--node": "the worker",
    "--error": "the class of its error, such as ValueError",
}
COLUMNS = ("id", "state", "schedule or job", "due", "late", "took", "reason")


def line(run: Run) -> list[Any]:
    name = run.schedule_name or run.task
    due = f"{run.count:,} moments" if run.count > 1 else run.due_at
    return [short(run.id), run.state, name, due, run.lateness, run.duration, reason_of(run)]


def short(run_id: UUID) -> str:
    """The random end of an id, which is enough to name the run."""
    return str(run_id)[-12:]


def properties(run: Run, whole: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know about a run, in order."""
    waits = ("not_before", "expires_at") if run.state in UNSTARTED else ()
    moments = ("due_at", *waits, "queued_at", "started_at", "finished_at")
    names = {name: name.removesuffix("_at").replace("_", " ") for name in moments}
    progress, same = whole["progress"], ("trigger", "actor", "queue", "priority", "worker", "key", "parent", "backfill")
    return {
        "id": run.id,
        "state": run.state,
        "reason": reason_of(run),
        "job": run.task,
        "schedule": run.schedule_name if run.schedule_name != run.task else "",
        "arguments": run.args or run.kwargs if not (run.args and run.kwargs) else [run.args, run.kwargs],
        **{name: whole[name] for name in same},
        **{names[name]: getattr(run, name) for name in moments},
        "late by": run.lateness,
        "took": run.duration,
        "attempt": run.attempt if run.attempt > 1 else "",
        "progress": " ".join(
            [
                *([f"{progress['done']:,} of {progress['total'] or '?'}"] if progress["done"] else []),
                *([f"{progress['steps_done']:,} of {progress['steps']:,} steps"] if progress["steps"] else []),
                progress["message"],
            ]
        ).strip(),
    }
