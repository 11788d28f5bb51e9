"""Messages set aside: items that the workers removed from the broker without executing them. Read-only."""

from django.contrib import admin
from django.template.defaultfilters import filesizeformat

from jobs.admin.display import moment
from jobs.admin.guard import GuardedAdmin, ReadOnlyAdmin
from jobs.models import SetAside


@admin.register(SetAside)
class SetAsideAdmin(ReadOnlyAdmin, GuardedAdmin):
    list_display = ("last", "why", "times", "queue", "node", "length")
    fields = ("why", "first", "last", "times", "queue", "node", "length", "excerpt", "digest")
    search_fields = ("why", "queue", "node")
    ordering = ("-last_at",)

    @admin.display(description="last", ordering="last_at")
    def last(self, item: SetAside) -> str:
        return moment(item.last_at)

    @admin.display(description="first", ordering="first_at")
    def first(self, item: SetAside) -> str:
        return moment(item.first_at)

    @admin.display(description="size", ordering="size")
    def length(self, item: SetAside) -> str:
        return filesizeformat(item.size)
