"""Stored files: users upload, download and delete them, and start jobs for them, but never edit them."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from jobs.admin.actions import show_requested
from jobs.admin.display import NOTHING, moment
from jobs.admin.guard import CappedPaginator, GuardedAdmin, KnownChoices, actor_of
from jobs.ledger import requests
from jobs.models import StoredFile
from jobs.toolkit import files, uploads

MOST_AT_ONCE = 100  # files for which one action starts runs


@admin.action(description="Process", permissions=["run"])
def process(_: admin.ModelAdmin[StoredFile], request: HttpRequest, queryset: QuerySet[StoredFile]) -> None:
    _start_runs("jobs.process_upload", request, queryset)


@admin.action(description="Make thumbnails", permissions=["run"])
def make_thumbnails(_: admin.ModelAdmin[StoredFile], request: HttpRequest, queryset: QuerySet[StoredFile]) -> None:
    _start_runs("jobs.thumbnails", request, queryset)


def _start_runs(job: str, request: HttpRequest, queryset: QuerySet[StoredFile]) -> None:
    """Start a run of the job for each file, and link to the runs."""
    if queryset.count() > MOST_AT_ONCE:
        messages.error(request, f"No run was started: select at most {MOST_AT_ONCE} files.")
        return
    names = {str(row.pk): row.name for row in queryset}
    requested = requests.start_each(job, ({"file": key} for key in names), actor_of(request))
    for arguments, why in requested.refused:
        messages.error(request, f"“{names[arguments['file']]}” has no run: {why}")
    show_requested(request, requested.runs)
    addresses = ((reverse("admin:jobs_run_change", args=[run.pk]), names[run.kwargs["file"]]) for run in requested.runs)
    links = format_html_join(", ", '<a href="{}">{}</a>', addresses)
    if links:
        messages.info(request, format_html("Runs of {}: {}", job, links))


@admin.register(StoredFile)
class StoredFileAdmin(GuardedAdmin):
    actions = (process, make_thumbnails)
    list_display = ("name", "kind", "size_", "made", "run", "address")
    fields = ("file",)
    list_filter = (("kind", KnownChoices),)
    search_fields = ("=id", "^name")
    ordering = ("-created_at",)
    paginator = CappedPaginator
    show_full_result_count = False

    @uploads.accepts_uploads("jobs.add_storedfile")
    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        return super().add_view(request, form_url, extra_context)

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: StoredFile | None = None) -> bool:
        """Only users with the right for the backup job may delete a backup."""
        is_backup = obj is not None and obj.kind == StoredFile.Kind.BACKUP
        may = super().has_delete_permission(request, obj)
        return may and not (is_backup and actor_of(request).why_not(files.BACKING_UP))

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Whether the user may start runs for files."""
        return request.user.has_perm("jobs.add_run")

    def get_fields(self, _request: HttpRequest, obj: StoredFile | None = None) -> Any:
        return ("id", *self.list_display) if obj else self.fields

    def save_model(self, request: HttpRequest, obj: StoredFile, form: Any, _change: bool) -> None:
        obj.pk = uploads.keep_upload(form.cleaned_data["file"], actor_of(request)).pk
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: StoredFile) -> None:
        files.delete(StoredFile.objects.filter(pk=obj.pk), actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[StoredFile]) -> None:
        files.delete(queryset, actor_of(request))

    @admin.display(description="size", ordering="size")
    def size_(self, row: StoredFile) -> str:
        return "incomplete" if row.size is None else filesizeformat(row.size)

    @admin.display(description="created", ordering="created_at")
    def made(self, row: StoredFile) -> str:
        return moment(row.created_at)

    @admin.display(description="created by")
    def run(self, row: StoredFile) -> str:
        if row.run_id is None:
            return "a user or code"
        return format_html('<a href="{}">run</a>', reverse("admin:jobs_run_change", args=[row.run_id]))

    @admin.display(description="download")
    def address(self, row: StoredFile) -> str:
        if row.size is None:
            return NOTHING
        if row.kind == StoredFile.Kind.BACKUP:
            return f"no link, because a backup contains secrets; copy {row.file.name} from FILES_DIR"
        return format_html('<a href="{}">{}</a>', files.link(row), row.name)
