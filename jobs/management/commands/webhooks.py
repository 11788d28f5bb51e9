"""`manage.py webhooks list|show`: what the sources of webhooks have sent."""

from typing import Any

from django.core.management.base import CommandParser

from jobs.ledger.webhooks import body_of
from jobs.management import reading
from jobs.management.terminal import ShellCommand
from jobs.web.api import sources

MOST_LISTED = 10_000  # webhooks
COLUMNS = ("id", "source", "event", "received", "bytes", "run")


class Command(ShellCommand):
    help = "Lists and shows received webhooks. They are deleted together with their runs."

    def add_arguments(self, parser: CommandParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        listing = self.act(acts, "list", self.list, "List webhooks without their bodies, the latest first.")
        listing.add_argument("--source", metavar="NAME", help="the name of the source when it sent them")
        listing.add_argument("--limit", type=reading.between(1, MOST_LISTED), default=20, metavar="N")
        show = self.act(acts, "show", self.show, "Show a webhook with its headers and the beginning of its body.")
        show.add_argument("webhook", help="the id of a webhook, or its beginning or end")

    def list(self, *, source: str | None, limit: int) -> None:
        rows = sources.with_size().defer("body").order_by("-id")
        found = list((rows if source is None else rows.filter(source_name=source))[:limit])
        if self.terminal.as_json:
            self.terminal.json([sources.line(each) for each in found])
        elif found:
            self.terminal.table(COLUMNS, map(line, found))
        else:
            self.terminal.note("No webhook matches.")

    def show(self, *, webhook: str) -> None:
        found = reading.row_of(webhook, sources.with_size(), "webhook")
        if self.terminal.as_json:
            self.terminal.json(sources.whole(found))
            return
        self.terminal.record(properties(found))
        for text in body_of(found).splitlines():
            self.terminal.say(text)


def line(webhook: Any) -> list[Any]:
    run = str(webhook.run_id)[-12:]
    return [str(webhook.id)[-12:], webhook.source_name, webhook.event, webhook.received_at, f"{webhook.size:,}", run]


def properties(webhook: Any) -> dict[str, Any]:
    """What a person wants to know about a webhook, in order."""
    same = ("id", "event", "content_type", "headers")
    values = {name.replace("_", " "): getattr(webhook, name) for name in same}
    return {"source": webhook.source_name, **values, "received": webhook.received_at, "run": webhook.run_id}
