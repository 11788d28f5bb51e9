"""`manage.py schedules list|show|add|change|run|pause|...`: what is due when, and what an operator may do about it."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django_celery_beat.models import PeriodicTask

from jobs.ledger import backfills, requests
from jobs.management import reading, schedules
from jobs.management.requested import add_wait, show_requested
from jobs.management.terminal import FAILED, ShellCommand, UsageError, add_yes, counted, shown
from jobs.models import Actor, Backfill, Run, database_now
from jobs.monitoring import history
from jobs.rules.policies import CatchUp
from jobs.schedules import acts, preview, timings
from jobs.web.api import schedule_form as forms
from jobs.web.api.schedule_form import NewSchedule, ScheduleForm

MOST_LISTED = 10_000  # schedules
NAMED = 10  # due moments that a preview of a backfill lists
SCHEDULE = "the name or the id of a schedule"


class Command(ShellCommand):
    help = "Lists, shows, runs and changes schedules. `manage.py schedules pause --help` explains one act."

    def add_arguments(self, parser: CommandParser) -> None:
        self._acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        self._add_list(self.act(self._acts, "list", self.list, "List schedules by name."))
        self._named("show", self.show, "Show a schedule with its next due moments and its last runs.")
        add = self.act(self._acts, "add", self.add, "Add a schedule.")
        change = self._named("change", self.change, "Change the given columns of a schedule; the others stay.")
        for each in (add, change):
            each.add_argument("file", help="the schedule in JSON, as `show --json` prints it; -: read stdin")
        self._add_run(self._named("run", self.run_now, "Run schedules once, now.", several=True))
        self._add_pause(self._named("pause", self.pause, "Run no due moment until an end or `resume`.", several=True))
        self._named("resume", self.resume, "End a pause.", several=True)
        skip = self._named("skip", self.skip, "Skip the next due moments, instead of an earlier choice.")
        skip.add_argument("moments", type=reading.between(0, acts.MOST_SKIPPED), metavar="N", help="0: skip none")
        self._named("enable", self.enable, "Enable schedules; nothing runs for moments that are over.", several=True)
        self._named("disable", self.disable, "Disable schedules; unfinished runs continue.", several=True)
        self._add_preview(self.act(self._acts, "preview", self.preview, "Say when a timing is due; save nothing."))
        self._add_backfill(self._named("backfill", self.backfill, "Run the due moments of a range in the past."))
        delete = self._named("delete", self.delete, "Delete schedules; their runs stay in the ledger.", several=True)
        add_yes(delete)
        at = self._named("at", self.at, "Say what became of a moment: which run it got, or why none.")
        at.add_argument(
            "moment", type=reading.past, metavar="MOMENT", help="such as 2026-11-30T04:00 or '2 hours' (ago)"
        )

    def _named(self, name: str, handle: Callable[..., None], does: str, *, several: bool = False) -> CommandParser:
        parser = self.act(self._acts, name, handle, does)
        if several:
            parser.add_argument("names", nargs="+", metavar="name", help=SCHEDULE)
        else:
            parser.add_argument("name", help=SCHEDULE)
        return parser

    def _add_list(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", metavar="TEXT", help="a part of the name, in upper or lower case")
        parser.add_argument("--job", help="the name of a job")
        parser.add_argument("--queue", help="the queue of its messages")
        state = parser.add_mutually_exclusive_group()
        for name in schedules.CONDITIONS:
            state.add_argument(
                f"--{name}", action="append_const", dest="conditions", const=name, help=f"only {name} ones"
            )
        parser.add_argument("--limit", type=reading.between(1, MOST_LISTED), default=100, metavar="N")

    def _add_run(self, parser: ArgumentParser) -> None:
        parser.add_argument("--key", help="only the first request with this key makes runs")
        add_wait(parser)

    def _add_pause(self, parser: ArgumentParser) -> None:
        parser.add_argument("--reason", default="", help="recorded with every due moment that the pause skips")
        parser.add_argument(
            "--until", type=reading.coming, metavar="MOMENT", help="such as 2026-12-24T18:00 or '2 hours'"
        )
        parser.add_argument(
            "--catch-up",
            choices=[each.value for each in CatchUp],
            default=CatchUp.NONE.value,
            help="what runs afterwards",
        )

    def _add_preview(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", help=f"{SCHEDULE}, instead of a timing")
        timing = parser.add_mutually_exclusive_group()
        timing.add_argument("--crontab", metavar="LINE", help="such as '30 7 * * 1-5'")
        timing.add_argument("--every", metavar="DURATION", help="such as '15 minutes'")
        timing.add_argument("--once", type=reading.coming, metavar="MOMENT", help="such as 2026-12-24T18:00")
        timing.add_argument("--solar", metavar="EVENT", help="such as sunset, with --latitude and --longitude")
        parser.add_argument("--zone", help="of the crontab, such as Europe/Berlin; default: TIME_ZONE")
        for name in ("--latitude", "--longitude"):
            parser.add_argument(name, type=float, metavar="DEGREES")
        parser.add_argument("--number", type=reading.between(1, preview.MOST), default=5, metavar="N")

    def _add_backfill(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", dest="start", type=reading.past, required=True, metavar="MOMENT")
        parser.add_argument(
            "--until", dest="end", type=reading.past, required=True, metavar="MOMENT", help="not included"
        )
        parser.add_argument("--which", choices=Backfill.Which.values, default=Backfill.Which.MISSING.value)
        parser.add_argument("--at-once", type=reading.between(1, 1000), default=1, metavar="N", help="runs at a time")
        parser.add_argument("--preview", action="store_true", help="only say what it would run")
        add_yes(parser)

    # --- reading ----------------------------------------------------------------------------------------------------

    def list(self, *, limit: int, conditions: Sequence[str] | None, **texts: str | None) -> None:
        columns = {"name": "name__icontains", "job": "task", "queue": "queue"}
        wanted = {columns[name]: text for name, text in texts.items() if text is not None}
        rows = schedules.rows().filter(*(schedules.CONDITIONS[name] for name in conditions or ()), **wanted)
        found = list(rows.order_by("name")[:limit])
        if self.terminal.as_json:
            self.terminal.json(schedules.as_json(found))
        elif found:
            self.terminal.table(schedules.COLUMNS, schedules.lines(found))
        else:
            self.terminal.note("No schedule matches.")

    def show(self, *, name: str) -> None:
        schedule = schedules.rows().get(pk=reading.schedule_of(name).pk)
        if self.terminal.as_json:
            self.terminal.json(schedules.as_json([schedule], whole=True)[0])
            return
        self.terminal.record(schedules.properties(schedule))
        runs = list(Run.objects.of_schedule(schedule.pk)[:5])
        if runs:
            self.terminal.say("")
            self.terminal.table(("last runs", "state", "due", "took", "reason"), map(schedules.run_line, runs))

    def at(self, *, name: str, moment: datetime) -> None:
        answer = history.what_happened(reading.schedule_of(name), moment)
        run = answer.run and answer.run.id
        if self.terminal.as_json:
            names = ("sentence", "due_at", "before", "after")
            self.terminal.json({**{name: getattr(answer, name) for name in names}, "run": run})
            return
        self.terminal.say(answer.sentence)
        if run:
            self.terminal.say(f"Run {run}.")

    def preview(self, *, name: str | None, number: int, **timing: Any) -> None:
        row, schedule = self._previewed(name, timing)
        seen = preview.preview(row, schedule, now=database_now(), number=number)
        if self.terminal.as_json:
            self.terminal.json({"words": seen.words, "due": seen.due, "warnings": seen.warnings})
            return
        self.terminal.say(seen.words)
        for moment in seen.due:
            self.terminal.say(f"  {shown(moment)}")
        for warning in seen.warnings:
            self.terminal.note(f"Warning: {warning}")

    def _previewed(self, name: str | None, timing: dict[str, Any]) -> tuple[Any, PeriodicTask | None]:
        """The row of a timing, and the schedule if one is named."""
        given = {key: value for key, value in timing.items() if value is not None}
        if (name is None) == (not given):
            raise UsageError("Give the name of a schedule, or a timing such as --crontab '30 7 * * 1-5'.")
        if name is None:
            return timings.parse(given), None
        schedule = reading.schedule_of(name)
        if (row := timings.of(schedule)) is None:
            raise CommandError(f"The schedule {schedule.name!r} has no timing.", returncode=FAILED)
        return row, schedule

    # --- acts -------------------------------------------------------------------------------------------------------

    def add(self, *, file: str) -> None:
        schedule = PeriodicTask()
        forms.save(schedule, reading.form_of(file, NewSchedule), Actor.of_shell(), whole=True)
        self._show_saved(schedule, "Added")

    def change(self, *, name: str, file: str) -> None:
        form, chosen = reading.form_of(file, ScheduleForm), reading.schedules_of([name])
        with transaction.atomic():
            chosen.select_for_update(no_key=True).first()  # before it is read: two may change it at once
            schedule = reading.schedule_of(name)
            forms.save(schedule, form, Actor.of_shell(), whole=False)
        self._show_saved(schedule, "Changed")

    def _show_saved(self, schedule: PeriodicTask, did: str) -> None:
        if self.terminal.as_json:
            self.terminal.json(schedules.as_json([schedules.rows().get(pk=schedule.pk)], whole=True)[0])
        self.terminal.say(f"{did} schedule {schedule.name}.")

    def run_now(self, *, names: Sequence[str], key: str | None, wait: bool, timeout: float | None) -> None:
        found = list(reading.schedules_of(names))
        requested = requests.run_now(found, Actor.of_shell(), key=key)
        show_requested(self.terminal, requested, wait=wait, timeout=timeout)

    def pause(self, *, names: Sequence[str], reason: str, until: datetime | None, catch_up: str) -> None:
        chosen = reading.schedules_of(names)
        self._done(names, "Paused", acts.pause(chosen, Actor.of_shell(), reason, until, catch_up))

    def resume(self, *, names: Sequence[str]) -> None:
        if not (number := acts.resume(reading.schedules_of(names), Actor.of_shell())):
            self.terminal.note("None of these schedules was paused.")
        self._done(names, "Resumed", number)

    def skip(self, *, name: str, moments: int) -> None:
        acts.skip_next(reading.schedules_of([name]), Actor.of_shell(), moments)
        skipped = f"the next {counted(moments, 'due moment')}" if moments else "no due moment"
        self._show_acted([name], f"{name} skips {skipped}.")

    def enable(self, *, names: Sequence[str]) -> None:
        self._done(names, "Enabled", acts.enable(reading.schedules_of(names), Actor.of_shell()))

    def disable(self, *, names: Sequence[str]) -> None:
        self._done(names, "Disabled", acts.disable(reading.schedules_of(names), Actor.of_shell()))

    def delete(self, *, names: Sequence[str], yes: bool) -> None:
        chosen = reading.schedules_of(names)
        self.confirm(f"Delete {counted(len(chosen), 'schedule')}: {', '.join(each.name for each in chosen)}?", yes=yes)
        number = acts.delete(chosen, Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"deleted": number})
        self.terminal.say(f"Deleted {counted(number, 'schedule')}.")

    def _done(self, names: Sequence[str], did: str, number: int) -> None:
        self._show_acted(names, f"{did} {counted(number, 'schedule')}." if number else "")

    def _show_acted(self, names: Sequence[str], sentence: str) -> None:
        """Say what was done, or show the schedules after it in JSON."""
        if self.terminal.as_json:
            found = schedules.rows().filter(pk__in=reading.schedules_of(names).values("pk")).order_by("name")
            self.terminal.json(schedules.as_json(found))
        elif sentence:
            self.terminal.say(sentence)

    def backfill(self, *, name: str, preview: bool, yes: bool, **request: Any) -> None:
        asked = Backfill(id=uuid4(), schedule=reading.schedule_of(name), **request)
        seen = backfills.preview(asked)
        only_shows = preview or not seen.moments
        if not self.terminal.as_json:
            self._show(seen)
        elif only_shows:
            self.terminal.json(schedules.backfill_as_json(seen))
        if only_shows:
            return
        self.confirm(f"Create {counted(len(seen.moments), 'run')}?", yes=yes)
        number = backfills.backfill(asked, Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"id": asked.id, "number": number})
        self.terminal.say(f"Created {counted(number, 'run')}: `manage.py runs list --backfill {asked.id}` shows them.")

    def _show(self, seen: backfills.Preview) -> None:
        self.terminal.say(f"{counted(len(seen.moments), 'due moment')} to run, {seen.left_alone:,} left alone.")
        if seen.assumed:
            self.terminal.say(f"{seen.assumed:,} of them lie before the timings of this schedule are known.")
        for moment in seen.moments[:NAMED]:
            self.terminal.say(f"  {shown(moment)}")
        if len(seen.moments) > NAMED:
            self.terminal.say(f"  … {shown(seen.moments[-1])}")
