"""Who did what, and through which door? The audit entries, which acts write. Read-only.

Its one rule: an entry shows what it recorded, masked, also if its row is gone. *History* on the page of a row leads to
the entries of that row (`GuardedAdmin`).
"""

import json
from contextlib import suppress
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import DurationField, Q
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from jobs.admin.display import NOTHING, moment
from jobs.admin.guard import AUDITED, CappedPaginator, ChosenFilter, GuardedAdmin, KnownChoices, ReadOnlyAdmin, entries
from jobs.models import Act, AuditEntry, Policy
from jobs.rules import durations
from jobs.rules.errors import Invalid
from jobs.secrets import masked

# Columns of a policy that entries hold in seconds.
DURATIONS = {"soft_time_limit", "time_limit"} | {
    column.name for column in Policy._meta.concrete_fields if isinstance(column, DurationField)
}
LATEST = 1_000  # entries whose actors the filter offers
HEAD = mark_safe("<thead><tr><th>column</th><th>before</th><th>after</th></tr></thead>")
ROW = "<tr><th>{}</th><td><pre>{}</pre></td><td><pre>{}</pre></td></tr>"


class ActorFilter(ChosenFilter):
    """Offers the actors of the latest entries; the names in the list lead to all others."""

    title = "actor"
    parameter_name = "actor"

    def conditions(self) -> dict[str, Q]:
        latest = AuditEntry.objects.order_by("-id").values_list("actor", flat=True)[:LATEST]
        return {name: Q(actor=name) for name in sorted({*latest, self.value() or ""} - {""})}


@admin.register(AuditEntry)
class AuditAdmin(ReadOnlyAdmin, GuardedAdmin):
    change_form_template = "admin/jobs/entry_page.html"
    linked_by = ("key__exact",)
    list_display = ("when", "who", "door", "token", "act", "row", "what")
    list_display_links = ("when",)
    list_filter = (("door", KnownChoices), ("act", KnownChoices), ("kind", KnownChoices), ActorFilter)
    fields = ("when", "who", "door", "token", "act", "row", "what", "changes")
    search_fields = ("^name", "=key")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    @admin.display(description="when", ordering="id")
    def when(self, entry: AuditEntry) -> str:
        return moment(entry.at)

    @admin.display(description="actor")
    def who(self, entry: AuditEntry) -> SafeString:
        return format_html('<a href="{}">{}</a>', entries(actor=entry.actor), entry.actor)

    @admin.display(description="row")
    def row(self, entry: AuditEntry) -> str:
        """The kind and name of the row, as a link unless the entry deleted it."""
        text = f"{entry.get_kind_display()} “{entry.name}”"
        address = "" if entry.act == Act.DELETE else _page_of(entry)
        return format_html('<a href="{}">{}</a>', address, text) if address else text

    @admin.display(description="summary")
    def what(self, entry: AuditEntry) -> str:
        """The sentence of the act; without one, the columns that it changed."""
        changed = ", ".join(entry.after) if entry.before and entry.after else ""
        return entry.summary or (f"Changed: {changed}." if changed else NOTHING)

    @admin.display(description="changed columns")
    def changes(self, entry: AuditEntry) -> str:
        before, after = entry.before or {}, entry.after or {}
        names = [*before, *(name for name in after if name not in before)]
        rows = ((name, _shown(before, name), _shown(after, name)) for name in names)
        table = format_html('<table class="changes">{}{}</table>', HEAD, format_html_join("", ROW, rows))
        return table if names else NOTHING


def _shown(columns: dict[str, Any], name: str) -> str:
    """The value of a column, masked again: a secret may be newer than the entry."""
    if columns.get(name) is None:
        return NOTHING
    value = masked({name: columns[name]})[name]
    if name in DURATIONS and isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(Invalid):  # of a number that is no duration
            return durations.text(durations.read(value))
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _page_of(entry: AuditEntry) -> str:
    """The address of the page of the row; empty if this site has none."""
    for page, (kind, prefix) in AUDITED.items():
        if kind == entry.kind and entry.key.startswith(prefix):
            with suppress(NoReverseMatch):
                return reverse(f"admin:{page}_change", args=[quote(entry.key.removeprefix(prefix))])
    return ""
