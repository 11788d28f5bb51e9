"""Runs with their attempts and steps, backfills, and nodes.

All of them are read-only. Users who may change runs and have the right for the job can cancel or retry them. A retry
creates a new run.
"""

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db.models import Count, Exists, OuterRef, QuerySet, Sum
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from jobs.admin.actions import show_requested
from jobs.admin.display import NOTHING, between, counted, moment, state
from jobs.admin.guard import CappedPaginator, GuardedAdmin, KnownChoices, ReadOnlyAdmin, RightsAdmin, actor_of
from jobs.ledger import requests
from jobs.models import Attempt, Backfill, Holding, Node, Run, Step
from jobs.monitoring.progress import progress_of, reason_of, with_counts

SHOWN = 100  # steps of a run, and runs of a node


class AttemptInline(ReadOnlyAdmin, admin.TabularInline[Attempt, Run]):
    model = Attempt
    verbose_name_plural = "earlier attempts"
    fields = readonly_fields = (
        *("number", "outcome", "reason", "started_at", "ended_at", "worker"),
        *("error_class", "error_text"),
    )
    extra = 0


@admin.action(description="Retry", permissions=["operate"])
def retry(_: admin.ModelAdmin[Run], request: HttpRequest, queryset: QuerySet[Run]) -> None:
    requested = requests.retry(queryset, actor_of(request))
    for run, why in requested.refused:
        messages.error(request, f"“{run}” was not retried: {why}.")
    show_requested(request, requested.runs)


@admin.action(description="Cancel", permissions=["operate"])
def cancel(_: admin.ModelAdmin[Run], request: HttpRequest, queryset: QuerySet[Run]) -> None:
    chosen = Run.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
    cancelled = requests.cancel(chosen, actor_of(request))
    if cancelled.asked:
        messages.warning(
            request,
            f"{counted(cancelled.asked, 'running run was', 'running runs were')} asked to end. A job has"
            f" {settings.CANCEL_GRACE_SECONDS:g} s to clean up; then a prefork worker kills its process. Other workers"
            " cannot stop the job: the ledger gives the run up, and later changes by the job do not count.",
        )
    if cancelled.ended:
        messages.success(request, f"{counted(cancelled.ended, 'unstarted run was', 'unstarted runs were')} cancelled.")
    if not any(cancelled):
        messages.info(request, "No run was cancelled: all selected runs have ended.")


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin, RightsAdmin):
    linked_by = ("schedule__id__exact", "backfill__id__exact")
    inlines = (AttemptInline,)
    actions = (retry, cancel)
    fieldsets = (
        (None, {"fields": ("outcome", "why", "schedule", "due", "late_by", "took", "progress")}),
        ("Request", {"fields": ("trigger", "actor", "parent", "backfill")}),
        ("Message", {"fields": ("task", "args", "kwargs", "queue", "priority", "options")}),
        ("Timeline", {"fields": ("attempt", "sends", "queued", "started", "finished", "expires", "worker", "id")}),
        ("Error", {"fields": ("error_class", "error")}),
        ("Steps and log", {"fields": ("steps", "log")}),
    )
    list_display = ("schedule_name", "outcome", "why", "due", "late_by", "took", "attempt", "trigger", "worker")
    list_filter = (("state", KnownChoices), ("trigger", KnownChoices))
    search_fields = ("=id", "^schedule_name")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may retry and cancel runs."""
        return request.user.has_perm("jobs.change_run")

    @admin.display(description="progress")
    def progress(self, run: Run) -> str:
        """How many of its steps ended, and the progress that the task reports."""
        parts = []
        figures = progress_of(run)
        if figures.steps:
            parts.append(f"{figures.steps_done} of {counted(figures.steps, 'step', 'steps')}")
        if run.progress_total or run.progress_done:
            parts.append(f"{run.progress_done:,}" + (f" of {run.progress_total:,}" if run.progress_total else ""))
        return ", ".join([*parts, *([run.progress_message] if run.progress_message else [])]) or NOTHING

    @admin.display(description="steps")
    def steps(self, run: Run) -> str:
        """The first steps of the latest attempt: a run may have thousands."""
        steps = run.steps.filter(attempt=run.attempt).order_by("started_at")[:SHOWN]
        lines = (
            (state(step.state), step.task, between(step.started_at, step.finished_at), step.worker) for step in steps
        )
        return format_html_join(mark_safe("<br>"), "{} {} {} {}", lines) or NOTHING

    @admin.display(description="log")
    def log(self, run: Run) -> str:
        logs = run.logs.order_by("attempt").values_list("attempt", "text")
        return format_html_join("", "<p>attempt {}</p><pre>{}</pre>", logs) or NOTHING

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

    @admin.display(description="reason")
    def why(self, run: Run) -> str:
        return reason_of(run) or NOTHING

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
class BackfillAdmin(ReadOnlyAdmin, GuardedAdmin):
    list_display = ("schedule_name", "from_", "until", "which", "progress", "at_once", "actor", "requested")
    fields = ("schedule", "from_", "until", "which", "progress", "at_once", "actor", "requested")
    list_select_related = ("schedule",)
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Backfill]:
        return with_counts(super().get_queryset(request))

    @admin.display(description="schedule")
    def schedule_name(self, backfill: Backfill) -> str:
        return str(backfill.schedule.name)

    @admin.display(description="from", ordering="start")
    def from_(self, backfill: Backfill) -> str:
        return moment(backfill.start)

    @admin.display(description="until", ordering="end")
    def until(self, backfill: Backfill) -> str:
        return moment(backfill.end)

    @admin.display(description="requested", ordering="created_at")
    def requested(self, backfill: Backfill) -> str:
        return moment(backfill.created_at)

    @admin.display(description="runs")
    def progress(self, backfill: Any) -> SafeString:
        address = reverse("admin:jobs_run_changelist")
        text = f"{backfill.over} of {backfill.total} ended"
        return format_html('<a href="{}?backfill__id__exact={}">{}</a>', address, backfill.pk, text)


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin, GuardedAdmin):
    list_display = (
        *("name", "kind", "status", "seen", "runs"),
        *("queues", "concurrency", "resources", "version", "tzdata", "started"),
    )
    fields = list_display
    list_filter = (("kind", KnownChoices),)
    ordering = ("kind", "name")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Node]:
        live = Exists(Node.objects.live().filter(pk=OuterRef("pk")))
        nodes: QuerySet[Node] = super().get_queryset(request).annotate(is_live=live)
        return nodes

    @admin.display(description="status")
    def status(self, node: Any) -> SafeString:
        if node.stopped_at:
            return format_html("{} at {}", state("skipped", "stopped"), moment(node.stopped_at))
        if node.is_live and node.problem:
            return format_html("{} {}", state("failed", "live"), node.problem)
        return state("succeeded", "live") if node.is_live else state("lost", "silent")

    @admin.display(description="last seen", ordering="seen_at")
    def seen(self, node: Node) -> str:
        return moment(node.seen_at)

    @admin.display(description="started", ordering="started_at")
    def started(self, node: Node) -> str:
        return moment(node.started_at)

    @admin.display(description="running now")
    def runs(self, node: Node) -> str:
        """The runs and steps that the node executes, according to the ledger."""
        mine = {"state": "running", "node": node.name}
        runs = list(Run.objects.active().filter(lease_until__isnull=False, **mine)[:SHOWN])
        steps = [step.task for step in Step.objects.filter(**mine)[:SHOWN]]
        return ", ".join([*(run.schedule_name or run.task for run in runs), *steps]) or NOTHING

    @admin.display(description="resources")
    def resources(self, node: Node) -> str:
        """The resources that its processes hold, with the sum of their sizes."""
        held = Holding.objects.live().filter(node=node.name).values("resource").order_by("resource")
        sums = held.annotate(total=Sum("bytes"), processes=Count("pid"))
        texts = (
            f"{each['resource']}: {filesizeformat(each['total'])} in"
            f" {counted(each['processes'], 'process', 'processes')}"
            for each in sums
        )
        return ", ".join(texts) or NOTHING
