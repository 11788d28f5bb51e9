"""Results of tasks as Celery stored them, with secrets masked. Users with the right may view or delete them."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django_celery_results import admin as stock
from django_celery_results.models import GroupResult, TaskResult

from jobs.admin.guard import CappedPaginator, GuardedAdmin, KnownChoices, ReadOnlyAdmin


class ResultAdmin(ReadOnlyAdmin, GuardedAdmin):
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)


admin.site.unregister([TaskResult, GroupResult])


@admin.register(TaskResult)
class TaskResultAdmin(ResultAdmin):
    list_display = ("task_id", "task_name", "periodic_task_name", "date_done", "status", "worker")
    list_filter = (("status", KnownChoices),)
    search_fields = ("=task_id", "^task_name")
    fieldsets = stock.TaskResultAdmin.fieldsets


@admin.register(GroupResult)
class GroupResultAdmin(ResultAdmin):
    list_display = ("group_id", "date_done")
    search_fields = ("=group_id",)
