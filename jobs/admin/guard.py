"""What an admin page does not do: edit what is written down, filter as was not offered, count for ever."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.utils.functional import cached_property

from jobs.admin.display import NOTHING


class GuardedAdmin(admin.ModelAdmin[Any]):
    """A list that filters by what it offers (`list_filter`) or pages link to (`linked_by`), and by nothing else."""

    empty_value_display = NOTHING
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


def _parameter(offered: Any) -> str:
    """What a filter is called in an address."""
    if isinstance(offered, type):
        return str(getattr(offered, "parameter_name", ""))
    return f"{offered if isinstance(offered, str) else offered[0]}__exact"
