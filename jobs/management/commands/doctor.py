"""`manage.py doctor [SCHEDULE [--at MOMENT]]`: what is wrong, and which command to type next."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django_celery_beat.models import PeriodicTask

from jobs.management import reading
from jobs.management.terminal import FAILED, MissingError, ShellCommand, UsageError, counted, shown
from jobs.monitoring import doctor, history
from jobs.monitoring.asked import in_time
from jobs.monitoring.symptoms import Verdict
from jobs.rules.health import TITLES, Health

NAMED = 10  # schedules that a refusal names


class Command(ShellCommand):
    help = (
        "Looks for known symptoms, and says for each whether it is found, with the evidence and the command to type"
        " next. The exit status is 1 if one is found. With a schedule: how it is, or what became of a moment."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.set_defaults(handle=self.examine)
        parser.add_argument("schedule", nargs="?", help="its name, a part of the name, or its id")
        at = "such as 2026-11-30T04:00, in the site's time zone or with an offset, or '2 hours' (ago)"
        parser.add_argument("--at", type=reading.past, metavar="MOMENT", help=at)
        parser.add_argument("--json", action="store_true", help="print JSON")

    def examine(self, *, schedule: str | None, at: datetime | None) -> None:
        if schedule is not None:
            self._show_moment(schedule, at) if at else self._show_schedule(schedule)
            return
        if at:
            raise UsageError("Name the schedule that --at asks about: manage.py doctor NAME --at MOMENT.")
        answers = doctor.examine()
        found = [each for each in answers if each.verdict is Verdict.FOUND]
        if self.terminal.as_json:
            columns = ("question", "symptom", "verdict", "evidence", "command")
            self.terminal.json({"answers": [{name: getattr(each, name) for name in columns} for each in answers]})
        else:
            rows = [[each.verdict, each.symptom, each.evidence, each.command] for each in answers]
            self.terminal.table(("answer", "symptom", "evidence", "command"), rows)
            self.terminal.note(f"{counted(len(found), 'symptom')} found.")
        if found:
            raise SystemExit(FAILED)

    def _show_schedule(self, word: str) -> None:
        seen = in_time(lambda: doctor.look_at(_schedule_of(word)))
        finding = seen.finding
        health = finding.health if finding else None
        if self.terminal.as_json:
            due = [{"due_at": at, "skipped": why or None} for at, why in seen.due]
            known = {"id": seen.schedule.pk, "name": seen.schedule.name, "status": seen.status, "health": health}
            known |= {name: getattr(finding, name, None) for name in ("sentence", "expected", "since", "run")}
            self.terminal.json(known | {"due": due})
        else:
            self.terminal.record(_properties(seen))
        if health not in {None, Health.OK}:
            raise SystemExit(FAILED)

    def _show_moment(self, word: str, at: datetime) -> None:
        answer = in_time(lambda: history.what_happened(_schedule_of(word), at))
        if self.terminal.as_json:
            run = answer.run and answer.run.id
            moments = {name: getattr(answer, name) for name in ("due_at", "before", "after")}
            self.terminal.json({"sentence": answer.sentence, "run": run, **moments})
        else:
            self.terminal.say(answer.sentence)


def _properties(seen: doctor.Schedule) -> dict[str, Any]:
    finding = seen.finding
    due = [shown(at) + (f", skipped: {why}" if why else "") for at, why in seen.due]
    return {
        "id": seen.schedule.pk,
        "name": seen.schedule.name,
        "status": seen.status,
        "health": TITLES[finding.health] if finding else "",
        "because": finding.sentence if finding else "",
        "expected": finding.expected if finding else "",
        "since": finding.since if finding else None,
        "run": finding.run if finding else None,
        **{f"due {number}": moment for number, moment in enumerate(due, 1)},
    }


def _schedule_of(word: str) -> PeriodicTask:
    """The schedule of this name or id, otherwise the only one whose name contains the word.

    Raises `MissingError` and `UsageError`.
    """
    try:
        return reading.schedule_of(word)
    except MissingError:
        names = PeriodicTask.objects.filter(name__icontains=word).order_by("name").values_list("name", flat=True)
        found = list(names[: NAMED + 1])
    if not found:
        raise MissingError(f"There is no schedule {word!r}: `manage.py schedules list` shows all.")
    if len(found) > 1:
        more = " and others" if len(found) > NAMED else ""
        raise UsageError(f"Several schedules have {word!r} in their names: {', '.join(found[:NAMED])}{more}. Name one.")
    return reading.schedule_of(found[0])
