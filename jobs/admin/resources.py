"""Resources: the current version of each, and how much of it the workers hold.

Read-only. Users who may change resources can invalidate them.
"""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from jobs.admin.display import NOTHING, counted, moment, percentage
from jobs.admin.guard import GuardedAdmin, ReadOnlyAdmin, actor_of
from jobs.models import Holding, ResourceVersion
from jobs.monitoring.holdings import with_sums
from jobs.worker import resources


@admin.action(description="Invalidate", permissions=["operate"])
def invalidate(_: admin.ModelAdmin[ResourceVersion], request: HttpRequest, queryset: QuerySet[ResourceVersion]) -> None:
    chosen = ResourceVersion.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
    resources.invalidate(*(row.name for row in chosen), actor=actor_of(request))
    number = counted(len(chosen), "resource is", "resources are")
    messages.success(request, f"{number} invalidated: every worker drops the values within seconds.")


class HoldingInline(ReadOnlyAdmin, admin.TabularInline[Holding, ResourceVersion]):
    model = Holding
    verbose_name_plural = "held by"
    fields = readonly_fields = ("node", "pid", "entries", "size", "hits", "misses", "hit_rate")
    ordering = ("node", "pid")
    extra = 0

    def has_view_permission(self, request: HttpRequest, _: Any = None) -> bool:
        """The holdings are part of the resource's page, and need the same permission."""
        return any(request.user.has_perm(f"jobs.{may}_resourceversion") for may in ("view", "change"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Holding]:
        return super().get_queryset(request).filter(pk__in=Holding.objects.live())

    @admin.display(description="size")
    def size(self, holding: Holding) -> str:
        return filesizeformat(holding.bytes)

    @admin.display(description="hit rate")
    def hit_rate(self, holding: Holding) -> str:
        return percentage(holding.hits, holding.hits + holding.misses)


@admin.register(ResourceVersion)
class ResourceAdmin(ReadOnlyAdmin, GuardedAdmin):
    inlines = (HoldingInline,)
    actions = (invalidate,)
    list_display = (
        *("name", "processes", "entries", "size", "hits", "misses", "hit_rate"),
        *("version", "invalidated", "by"),
    )
    fields = list_display
    search_fields = ("name",)
    ordering = ("name",)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may invalidate resources."""
        return request.user.has_perm("jobs.change_resourceversion")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ResourceVersion]:
        return with_sums(super().get_queryset(request))

    @admin.display(description="processes")
    def processes(self, resource: Any) -> int:
        return resource.processes_now or 0

    @admin.display(description="entries")
    def entries(self, resource: Any) -> int:
        return resource.sum_of_entries or 0

    @admin.display(description="size")
    def size(self, resource: Any) -> str:
        return filesizeformat(resource.sum_of_bytes or 0)

    @admin.display(description="hits")
    def hits(self, resource: Any) -> int:
        return resource.sum_of_hits or 0

    @admin.display(description="misses")
    def misses(self, resource: Any) -> int:
        return resource.sum_of_misses or 0

    @admin.display(description="hit rate")
    def hit_rate(self, resource: Any) -> str:
        return percentage(self.hits(resource), self.hits(resource) + self.misses(resource))

    @admin.display(description="version", ordering="number")
    def version(self, resource: ResourceVersion) -> int:
        return resource.number

    @admin.display(description="invalidated", ordering="invalidated_at")
    def invalidated(self, resource: ResourceVersion) -> str:
        return moment(resource.invalidated_at)

    @admin.display(description="invalidated by")
    def by(self, resource: ResourceVersion) -> str:
        return resource.invalidated_by or NOTHING
