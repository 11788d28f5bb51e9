"""What an admin page refuses before the database is asked: filters that nobody offered, rows that cannot be."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect


class GuardedAdmin(admin.ModelAdmin[Any]):
    """A list that filters by what it offers (`list_filter`) or pages link to (`linked_by`), and by nothing else."""

    linked_by: tuple[str, ...] = ()

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:  # noqa: ARG002 - Django's names
        """Others end as 400: a bad pattern or year would reach the database and end as 500."""
        return lookup in {*self.linked_by, *map(_parameter, self.list_filter)}

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:  # type: ignore[override] # None, too
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.opts.pk.run_validators(self.opts.pk.to_python(key))
        except ValidationError:
            messages.error(request, "Some of these rows cannot exist: choose them from the list.")
            return HttpResponseRedirect(request.get_full_path())
        return super().response_action(request, queryset)


def _parameter(offered: Any) -> str:
    """What a filter is called in an address."""
    if isinstance(offered, type):
        return str(getattr(offered, "parameter_name", ""))
    return f"{offered if isinstance(offered, str) else offered[0]}__exact"
