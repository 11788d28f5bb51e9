"""What happened, and what was asked for: runs with their attempts, backfills, imported entries. All of it read-only."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs.admin.display import NOTHING, between, moment, state
from jobs.models import TERMINAL, Attempt, Backfill, FeedEntry, Run, State


class ReadOnlyAdmin:
    """What the ledger or a job wrote: people look at it, nobody edits it here."""

    def has_add_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any, **__: Any) -> bool:
        return False


class CappedPaginator(Paginator[Any]):
    """Counts no further than the pages anybody would turn: counting a million rows takes longer than reading a page."""

    CAP = 10_000

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: self.CAP].count())


class KnownChoices(admin.ChoicesFieldListFilter):
    """Filters by a value of the column, and sends away whoever asks for another."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if self.lookup_val and not set(self.lookup_val) <= {value for value, _ in self.field.flatchoices}:
            raise IncorrectLookupParameters
        return super().queryset(request, queryset)


class AttemptInline(ReadOnlyAdmin, admin.TabularInline[Attempt, Run]):
    model = Attempt
    verbose_name_plural = "earlier attempts"
    extra = 0


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin, admin.ModelAdmin[Run]):
    inlines = (AttemptInline,)
    fieldsets = (
        (None, {"fields": ("outcome", "why", "schedule", "due", "late_by", "took", "trigger", "actor", "backfill")}),
        ("What", {"fields": ("task", "args", "kwargs", "queue", "priority", "options")}),
        ("Life", {"fields": ("attempt", "sends", "queued", "started", "finished", "expires", "worker", "id")}),
        ("Error", {"fields": ("error_class", "error")}),
    )
    list_display = ("schedule_name", "outcome", "due", "late_by", "took", "attempt", "trigger", "worker", "why")
    list_filter = (("state", KnownChoices), ("trigger", KnownChoices))
    search_fields = ("=id", "^schedule_name")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    @admin.display(description="state", ordering="state")
    def outcome(self, run: Run) -> SafeString:
        return state(run.state)

    @admin.display(description="due", ordering="due_at")
    def due(self, run: Run) -> str:
        if run.count == 1:
            return moment(run.due_at)
        return format_html("{} to {} ({} times)", moment(run.due_at), moment(run.last_due_at), run.count)

    @admin.display(description="late by")
    def late_by(self, run: Run) -> str:
        return between(run.due_at, run.started_at)

    @admin.display(description="took")
    def took(self, run: Run) -> str:
        return between(run.started_at, run.finished_at)

    @admin.display(description="why")
    def why(self, run: Run) -> str:
        if run.state == State.WAITING and run.not_before is None:
            return "waits for an earlier run to end"
        if run.state == State.RUNNING and run.cancel_reason:
            return f"was asked to end; {run.cancel_reason}"
        return run.reason or NOTHING

    @admin.display(description="queued")
    def queued(self, run: Run) -> str:
        return moment(run.queued_at)

    @admin.display(description="started")
    def started(self, run: Run) -> str:
        return moment(run.started_at)

    @admin.display(description="finished")
    def finished(self, run: Run) -> str:
        return moment(run.finished_at)

    @admin.display(description="expires")
    def expires(self, run: Run) -> str:
        return moment(run.expires_at)

    @admin.display(description="error")
    def error(self, run: Run) -> str:
        return format_html("<pre>{}</pre>", run.error_text) if run.error_text else NOTHING


@admin.register(Backfill)
class BackfillAdmin(ReadOnlyAdmin, admin.ModelAdmin[Backfill]):
    list_display = ("schedule_name", "from_", "until", "which", "progress", "at_once", "actor", "asked")
    fields = ("schedule", "from_", "until", "which", "progress", "at_once", "actor", "asked")
    list_select_related = ("schedule",)
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Backfill]:
        runs = Run.objects.filter(backfill=OuterRef("pk")).order_by().values("backfill").annotate(number=Count("pk"))
        over = runs.filter(state__in=TERMINAL)
        numbers = {"total": runs, "over": over}
        counts = {name: Coalesce(Subquery(of.values("number")), 0) for name, of in numbers.items()}
        return super().get_queryset(request).annotate(**counts)

    @admin.display(description="schedule")
    def schedule_name(self, backfill: Backfill) -> str:
        return str(backfill.schedule.name)

    @admin.display(description="from", ordering="start")
    def from_(self, backfill: Backfill) -> str:
        return moment(backfill.start)

    @admin.display(description="until", ordering="end")
    def until(self, backfill: Backfill) -> str:
        return moment(backfill.end)

    @admin.display(description="asked for", ordering="created_at")
    def asked(self, backfill: Backfill) -> str:
        return moment(backfill.created_at)

    @admin.display(description="runs")
    def progress(self, backfill: Any) -> SafeString:
        address = reverse("admin:jobs_run_changelist")
        text = f"{backfill.over} of {backfill.total} over"
        return format_html('<a href="{}?backfill__id__exact={}">{}</a>', address, backfill.pk, text)


@admin.register(FeedEntry)
class FeedEntryAdmin(ReadOnlyAdmin, admin.ModelAdmin[FeedEntry]):
    list_display = ("title", "feed", "published_at", "imported_at")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False
