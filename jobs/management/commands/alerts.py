"""`manage.py alerts list|channels|test|silences|mute|unmute`: what changed, who is told, and what is muted."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.db import transaction

from jobs.alerts import acts, descriptions
from jobs.management import reading
from jobs.management.terminal import MissingError, ShellCommand, UsageError, counted
from jobs.models import Actor, Alert, Channel, Kind, Silence, database_now
from jobs.rules.health import Health

MOST_LISTED = 10_000  # alerts
ALERTS = ("when", "name", "before", "health", "since", "count", "sentence")
CHANNELS = ("name", "kind", "goes to", "told about", "enabled", "last message", "problem")
SILENCES = ("id", "about", "state", "starts", "ends", "by", "reason")


class Command(ShellCommand):
    help = "Lists changes of health, channels and silences; tests channels; mutes schedules."

    def add_arguments(self, parser: CommandParser) -> None:
        parsers = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        listing = self.act(parsers, "list", self.list, "List changes of health, the latest first.")
        listing.add_argument("--schedule", help="the name or the id of a schedule")
        listing.add_argument("--health", choices=[each.value for each in Health])
        listing.add_argument("--since", type=reading.past, metavar="MOMENT", help="such as '2 hours' (ago)")
        listing.add_argument("--limit", type=reading.between(1, MOST_LISTED), default=100, metavar="N")
        self.act(parsers, "channels", self.channels, "List who is told about what, and why a channel fails.")
        test = self.act(parsers, "test", self.test, "Send a test message through a channel, now.")
        test.add_argument("name", help="the name of a channel")
        silences = self.act(parsers, "silences", self.silences, "List what no message is sent about.")
        silences.add_argument("--all", action="store_true", help="also those that are over")
        mute = self.act(parsers, "mute", self.mute, "Send no message about schedules until an end.")
        mute.add_argument("names", nargs="*", metavar="name", help="the name or the id of a schedule")
        mute.add_argument("--pattern", action="append", metavar="PATTERN", help="such as 'billing.*'; repeatable")
        mute.add_argument("--everything", action="store_true", help="all schedules, and the system")
        until = mute.add_argument("--until", type=reading.coming, required=True, metavar="MOMENT")
        until.help = "such as 2026-12-24T18:00 or '2 hours'"
        mute.add_argument("--reason", default="", help="for those who wonder why nothing is told")
        unmute = self.act(parsers, "unmute", self.unmute, "End silences now.")
        unmute.add_argument("ids", nargs="+", type=reading.between(1, reading.LARGEST_ID), metavar="id")

    def list(self, *, schedule: str | None, health: str | None, since: datetime | None, limit: int) -> None:
        key = reading.schedule_of(schedule).pk if schedule is not None else None
        wanted = {"schedule": key, "health": health, "at__gte": since}
        chosen = {name: value for name, value in wanted.items() if value is not None}
        rows = Alert.objects.filter(**chosen).order_by("-id")[:limit]
        names = ("id", "at", "name", "job", "before", "health", "since", "count", "sentence", "expected", "run")
        found = [{**{name: getattr(row, name) for name in names}, "schedule": row.schedule_id} for row in rows]
        columns = ("at", "name", "before", "health", "since", "count", "sentence")
        self._show(found, ALERTS, [[row[name] for name in columns] for row in found], "No alert matches.")

    def channels(self) -> None:
        rows = list(Channel.objects.order_by("name"))
        names = (*acts.COLUMNS[Kind.CHANNEL], "id", "sent_at", "problem", "problem_since")
        found = [{name: getattr(row, name) for name in names} for row in rows]
        lines = [
            [
                *(row.name, row.kind, descriptions.target(row), descriptions.about(row)),
                *(row.is_enabled, row.sent_at, row.problem),
            ]
            for row in rows
        ]
        self._show(found, CHANNELS, lines, "There is no channel: add one in the admin or by the API.")

    def test(self, *, name: str) -> None:
        channel = Channel.objects.filter(name=name).first()
        if channel is None:
            raise MissingError(f"There is no channel {name!r}: `manage.py alerts channels` shows all.")
        acts.test_channel(channel, Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"sent": True})
        self.terminal.say(f"Sent a test message through {name}.")

    def silences(self, *, all: bool) -> None:  # noqa: A002 - the name of the option
        rows = Silence.objects.select_related("schedule").order_by("-id")
        if not all:
            rows = rows.filter(ends_at__gt=database_now())
        self._show_silences(list(rows), "Nothing is muted.")

    def mute(
        self,
        *,
        names: Sequence[str],
        pattern: Sequence[str] | None,
        everything: bool,
        until: datetime,
        reason: str,
    ) -> None:
        if sum(map(bool, (names, pattern, everything))) != 1:
            raise UsageError("Give the names of schedules, or --pattern, or --everything.")
        chosen: list[dict[str, Any]] = [{"schedule": each} for each in reading.schedules_of(names)]
        made = [Silence(**each, ends_at=until, reason=reason) for each in chosen or [{"patterns": pattern or []}]]
        with transaction.atomic():
            for silence in made:
                acts.save_silence(silence, Actor.of_shell())
        if self.terminal.as_json:
            self._show_silences(made, "")
        for silence in made:
            self.terminal.say(f"Muted {descriptions.about(silence)}: `manage.py alerts unmute {silence.pk}` ends it.")

    def unmute(self, *, ids: Sequence[int]) -> None:
        found = Silence.objects.filter(pk__in=ids)
        if unknown := sorted(set(ids) - set(found.values_list("pk", flat=True))):
            raise MissingError(f"There is no silence {unknown[0]}: `manage.py alerts silences` shows all.")
        number = acts.end_silences(found, Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"ended": number})
        self.terminal.say(f"Ended {counted(number, 'silence')}.")

    def _show_silences(self, rows: Sequence[Silence], nothing: str) -> None:
        now = database_now()
        names = ("id", "patterns", "starts_at", "ends_at", "reason", "created_by")
        found = [
            {**{name: getattr(row, name) for name in names}, "schedule": row.schedule_id, "phase": _phase(row, now)}
            for row in rows
        ]
        lines = [
            [
                *(row.pk, descriptions.about(row), _phase(row, now)),
                *(row.starts_at, row.ends_at, row.created_by, row.reason),
            ]
            for row in rows
        ]
        self._show(found, SILENCES, lines, nothing)

    def _show(self, found: Any, columns: Sequence[str], lines: Sequence[Sequence[Any]], nothing: str) -> None:
        if self.terminal.as_json:
            self.terminal.json(found)
        elif lines:
            self.terminal.table(columns, lines)
        else:
            self.terminal.note(nothing)


def _phase(silence: Silence, now: datetime) -> str:
    return descriptions.phase(silence, now).value
