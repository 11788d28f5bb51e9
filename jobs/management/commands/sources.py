"""`manage.py sources list|show|add|change|delete`: which programs outside may start a job by a webhook."""

from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import QuerySet

from jobs.ledger import webhooks
from jobs.management import reading
from jobs.management.terminal import MissingError, ShellCommand, add_yes, counted
from jobs.models import Actor, WebhookSource
from jobs.web.api import sources
from jobs.web.api.sources import NewSource, SourceForm

COLUMNS = ("name", "enabled", "signs", "keys", "job", "last refused")


class Command(ShellCommand):
    help = "Lists, shows, adds, changes and deletes sources of webhooks. It needs the variables WEBHOOK_KEYS_NAME."

    def add_arguments(self, parser: CommandParser) -> None:
        self._acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        self.act(self._acts, "list", self.list, "List all sources.")
        self._named("show", self.show, "Show a source, and when and why it last refused a request.")
        add = self.act(self._acts, "add", self.add, "Add a source.")
        change = self._named("change", self.change, "Change the given columns of a source; the others stay.")
        for each in (add, change):
            each.add_argument("file", help="the source in JSON, as the API takes it; -: read stdin")
        delete = self.act(self._acts, "delete", self.delete, "Delete sources; what they have sent stays with its runs.")
        delete.add_argument("names", nargs="+", metavar="name", help="the name of a source")
        add_yes(delete)

    def _named(self, name: str, handle: Callable[..., None], does: str) -> CommandParser:
        parser = self.act(self._acts, name, handle, does)
        parser.add_argument("name", help="the name of a source")
        return parser

    def list(self) -> None:
        found = list(WebhookSource.objects.order_by("name"))
        if self.terminal.as_json:
            self.terminal.json([sources.shown(each) for each in found])
        elif found:
            self.terminal.table(COLUMNS, map(line, found))
        else:
            self.terminal.note("There is no source of webhooks.")

    def show(self, *, name: str) -> None:
        source = sources_of([name]).get()
        if self.terminal.as_json:
            self.terminal.json(sources.shown(source))
            return
        self.terminal.record(properties(source))

    def add(self, *, file: str) -> None:
        source = WebhookSource(**reading.form_of(file, NewSource).dict())
        webhooks.save(source, Actor.of_shell())
        self._show_saved(source.pk, "Added")

    def change(self, *, name: str, file: str) -> None:
        form, key = reading.form_of(file, SourceForm), sources_of([name]).get().pk  # the form may rename it
        chosen = WebhookSource.objects.filter(pk=key)
        if not webhooks.change(chosen, form.dict(exclude_unset=True), Actor.of_shell()):
            raise MissingError(f"The source {name!r} was deleted meanwhile.")
        self._show_saved(key, "Changed")

    def _show_saved(self, key: int, did: str) -> None:
        source = WebhookSource.objects.get(pk=key)
        if self.terminal.as_json:
            self.terminal.json(sources.shown(source))
        self.terminal.say(f"{did} source {source.name}.")

    def delete(self, *, names: Sequence[str], yes: bool) -> None:
        chosen = sources_of(names)
        question = f"Delete {counted(len(chosen), 'source')}: {', '.join(each.name for each in chosen)}?"
        self.confirm(question, yes=yes)
        number = webhooks.delete(chosen, Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"deleted": number})
        self.terminal.say(f"Deleted {counted(number, 'source')}.")


def sources_of(names: Sequence[str]) -> QuerySet[WebhookSource]:
    """The sources of these names. Raises `MissingError` if one does not exist."""
    found = WebhookSource.objects.filter(name__in=names).order_by("name")
    if unknown := sorted(set(names) - set(found.values_list("name", flat=True))):
        raise MissingError(f"There is no source {unknown[0]!r}: `manage.py sources list` shows all.")
    return found


def line(source: WebhookSource) -> list[Any]:
    return [source.name, source.is_enabled, source.form, source.keys, source.job, source.refused_at]


def properties(source: WebhookSource) -> dict[str, Any]:
    """What a person wants to know about a source, in order."""
    return {
        "name": source.name,
        "address": f"/hooks/{source.name}",
        "enabled": source.is_enabled,
        "signs": source.get_form_display(),
        "keys": f"WEBHOOK_KEYS_{source.keys}",
        "job": source.job,
        "arguments": source.arguments,
        "created": source.created_at,
        "last refused": source.refused_at,
        "because": source.refused_reason,
    }
