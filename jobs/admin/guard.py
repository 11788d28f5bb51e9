"""Which requests do the admin pages refuse? Edits of read-only rows, and filters and rows that no page offers."""

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
from jobs.models import Backfill, installation


class GuardedAdmin(admin.ModelAdmin[Any]):
    """Filters a list only by its own filters (`list_filter`) and by those that pages link to (`linked_by`)."""

    empty_value_display = NOTHING
    linked_by: tuple[str, ...] = ()

    def changelist_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        page = super().changelist_view(request, *args, **options)
        if request.method == "GET" and (why := installation.refusal()):
            messages.error(request, why)
        return page

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:  # noqa: ARG002 - Django's names
        """Refuse any other filter with 400: a bad pattern or year would fail in the database, with 500."""
        return lookup in {*self.linked_by, *map(_parameter, self.list_filter)}

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:  # type: ignore[override] # None, too
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.opts.pk.run_validators(self.opts.pk.to_python(key))
        except ValidationError:
            messages.error(request, "Some of the selected rows do not exist: select rows in the list.")
            return HttpResponseRedirect(request.get_full_path())
        return super().response_action(request, queryset)


class ReadOnlyAdmin:
    """Rows that the ledger or a job writes. Users cannot add, edit or delete them here."""

    def has_add_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any, **__: Any) -> bool:
        return False


class CappedPaginator(Paginator[Any]):
    """Counts at most `CAP` rows. Counting a million rows takes longer than reading a page."""

    CAP = 10_000

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: self.CAP].count())


class KnownChoices(admin.ChoicesFieldListFilter):
    """Filters by the choices of the column, and refuses other values."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if self.lookup_val and not set(self.lookup_val) <= {value for value, _ in self.field.flatchoices}:
            raise IncorrectLookupParameters
        return super().queryset(request, queryset)


def _parameter(filter_: Any) -> str:
    """The name of a filter in an address."""
    if isinstance(filter_, type):
        return str(getattr(filter_, "parameter_name", ""))
    return f"{filter_ if isinstance(filter_, str) else filter_[0]}__exact"


def without_backfills(found: tuple[Any, Any, set[str], Any]) -> Any:
    """Deleting a schedule deletes its backfills, and needs no further permission for them."""
    rows, counts, needed, protected = found
    return rows, counts, needed - {str(Backfill._meta.verbose_name)}, protected
