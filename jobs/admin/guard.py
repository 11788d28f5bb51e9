"""Which requests do the admin pages refuse?

They refuse edits of read-only rows, changes by users without the right for a job, and filters and rows that no page
offers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial, wraps
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import NotRelationField, get_fields_from_path, unquote
from django.core.exceptions import FieldDoesNotExist, PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import IntegrityError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.functional import cached_property

from jobs.admin.display import NOTHING, counted
from jobs.models import KINDS, Backfill, Kind, installation
from jobs.models.audit import Actor, Door
from jobs.rules.errors import Conflict, Forbidden, Invalid

NAMED = 10  # rows that a message lists; it counts the rest
# The pages whose *History* leads to the audit entries of the row: the kind of these, and what precedes the key.
AUDITED = {
    "django_celery_beat_periodictask": (Kind.SCHEDULE, ""),
    **{f"django_celery_beat_{model._meta.model_name}": (Kind.TIMING, f"{name} ") for name, model in KINDS.items()},
    "jobs_run": (Kind.RUN, ""),
    "jobs_resourceversion": (Kind.RESOURCE, ""),
    "jobs_storedfile": (Kind.FILE, ""),
    "jobs_apitoken": (Kind.TOKEN, ""),
    "jobs_webhooksource": (Kind.SOURCE, ""),
    "jobs_channel": (Kind.CHANNEL, ""),
    "jobs_silence": (Kind.SILENCE, ""),
}


def actor_of(request: HttpRequest) -> Actor:
    """The user of a request to the admin."""
    return Actor.of_user(request.user, Door.ADMIN)


def entries(**filters: str) -> str:
    """The address of the audit entries that these filters leave."""
    return f"{reverse('admin:jobs_auditentry_changelist')}?{urlencode(filters)}"


class GuardedAdmin(admin.ModelAdmin[Any]):
    """Filters a list only by its own filters (`list_filter`) and by those that pages link to (`linked_by`)."""

    empty_value_display = NOTHING
    linked_by: tuple[str, ...] = ()

    def changelist_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        page = super().changelist_view(request, *args, **options)
        if request.method == "GET" and (why := installation.refusal()):
            messages.error(request, why)
        return page

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        """Show the sentence of an act that refuses what the form has let pass, because of another request meanwhile.

        If that one has taken a name, the form refuses it when it is checked again, and keeps what was typed.
        """
        page = partial(super().changeform_view, request, object_id, form_url, extra_context)
        try:
            try:
                return page()
            except (Conflict, IntegrityError):
                return page()
        except Forbidden as error:
            raise PermissionDenied(str(error)) from error
        except Invalid as error:
            messages.error(request, str(error))
            changelist = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")
            return HttpResponseRedirect(changelist if object_id else request.get_full_path())

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:  # noqa: ARG002 - Django's names
        """Refuse any other filter with 400: a bad pattern or year would fail in the database, with 500."""
        return lookup in {*self.linked_by, *map(_parameter, self.list_filter)}

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """The audit entries of the row, for users who may view these; for others, what the admin itself has noted."""
        kind, prefix = AUDITED.get(f"{self.opts.app_label}_{self.opts.model_name}", ("", ""))
        if not kind or not request.user.has_perm("jobs.view_auditentry"):
            return super().history_view(request, object_id, extra_context)
        return HttpResponseRedirect(entries(kind__exact=kind, key__exact=f"{prefix}{unquote(object_id)}"))

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:  # type: ignore[override] # None, too
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.opts.pk.run_validators(self.opts.pk.to_python(key))
        except ValidationError:
            messages.error(request, "Some of the selected rows do not exist: select rows in the list.")
            return HttpResponseRedirect(request.get_full_path())
        return super().response_action(request, queryset)


class ActForm(forms.ModelForm[Any]):
    """A form whose row an act checks as a whole, once Django has built it of valid fields."""

    def check_row(self) -> None:
        """Raises `Invalid` with the sentence of the act."""
        raise NotImplementedError

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc] # Django's own hook
        if not self.errors:
            try:
                self.check_row()
            except Invalid as error:
                self.add_error(None, ValidationError(str(error)))


class RightsAdmin(GuardedAdmin):
    """Rows of jobs. A user without the right for a job can only view them; actions leave them out and say so."""

    path_to_job = "task"  # from a row, for a query
    without_right: tuple[str, ...] = ()  # actions that change and start nothing, so that no right is needed

    def jobs_of(self, row: Any) -> Iterable[str]:
        """The jobs that a change of the row concerns."""
        return [row.task]

    def why_not(self, request: HttpRequest, row: Any) -> str:
        """Why the user may not change this row; empty if the user may, or if there is no row."""
        actor = actor_of(request)
        return next(filter(None, map(actor.why_not, self.jobs_of(row))), "") if row else ""

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and not self.why_not(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and not self.why_not(request, obj)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **options: Any) -> Any:
        if request.method == "GET" and (why := self.why_not(request, options.get("obj"))):
            messages.warning(request, why)
        return super().render_change_form(request, context, *args, **options)

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        with self._explained(request, object_id):
            return super().changeform_view(request, object_id, form_url, extra_context)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        with self._explained(request, object_id):
            return super().delete_view(request, object_id, extra_context)

    def get_actions(self, request: HttpRequest) -> Any:
        actions: dict[str, Any] = super().get_actions(request)
        return {
            name: (act if name in self.without_right else _for_permitted(act), *rest)
            for name, (act, *rest) in actions.items()
        }

    def permitted(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """The rows that the user may change. A message names the others, with the reason."""
        actor = actor_of(request)
        jobs = rows.order_by().values_list(self.path_to_job, flat=True).distinct()
        refused = {job: why for job in jobs if job and (why := actor.why_not(job))}
        for job, why in refused.items():
            left_out = rows.order_by("pk").filter(**{self.path_to_job: job}).distinct()
            names = [f"“{row}”" for row in left_out[: NAMED + 1]]
            more = [f"and {counted(left_out.count() - NAMED, 'more', 'more')}"] if len(names) > NAMED else []
            messages.error(request, f"Left out: {', '.join([*names[:NAMED], *more])}. {why}")
        return rows.exclude(**{f"{self.path_to_job}__in": refused}) if refused else rows

    @contextmanager
    def _explained(self, request: HttpRequest, key: Any) -> Iterator[None]:
        """Add the sentence that names the missing right to a refusal."""
        try:
            yield
        except Forbidden as error:  # an administrator has taken the right away meanwhile
            raise PermissionDenied(str(error)) from error
        except PermissionDenied as error:
            row = self.get_object(request, key) if key and not error.args else None
            raise PermissionDenied(*error.args or [self.why_not(request, row)]) from error


def _for_permitted(act: Callable[..., Any]) -> Callable[..., Any]:
    """The action, applied only to rows that the user may change."""

    @wraps(act)
    def apply(rows_admin: RightsAdmin, request: HttpRequest, rows: QuerySet[Any]) -> Any:
        permitted = rows_admin.permitted(request, rows)
        if permitted is not rows and not permitted.exists():
            return None
        try:
            return act(rows_admin, request, permitted)
        except Forbidden as error:  # another user has changed the job of a schedule meanwhile
            messages.error(request, str(error))
            return None

    return apply


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


class ChosenFilter(admin.SimpleListFilter):
    """Filters by one of the named conditions, and refuses other names."""

    def conditions(self) -> dict[str, Q]:
        raise NotImplementedError

    def lookups(self, _request: HttpRequest, _rows: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in self.conditions()]

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen, conditions = self.value(), self.conditions()
        if chosen is not None and chosen not in conditions:
            raise IncorrectLookupParameters
        return queryset if chosen is None else queryset.filter(conditions[chosen])


def _parameter(filter_: Any) -> str:
    """The name of a filter in an address."""
    if isinstance(filter_, type):
        return str(getattr(filter_, "parameter_name", ""))
    return f"{filter_ if isinstance(filter_, str) else filter_[0]}__exact"


def without_backfills(found: tuple[Any, Any, set[str], Any]) -> Any:
    """Deleting a schedule deletes its backfills, and needs no further permission for them."""
    rows, counts, needed, protected = found
    return rows, counts, needed - {str(Backfill._meta.verbose_name)}, protected


LAST_YEAR = 9999  # of Python; a filter also computes the year after its own
HARMLESS = {"exact", "gt", "gte", "lt", "lte"}  # lookups that no database refuses for a valid value of the column


class AnyFilterAdmin(GuardedAdmin):
    """Pages of another app. They also filter by the columns that their own admin allows, for valid values."""

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:
        path, _, kind = lookup.rpartition("__")
        if path and path == self.date_hierarchy and kind in {"year", "month", "day"}:
            return value.isdecimal() and len(value) <= 4 and (kind == "year") < int(value) < LAST_YEAR
        if lookup in {_parameter(each) for each in self.list_filter if isinstance(each, type)}:
            return True
        suits = kind == "isnull" or (kind in HARMLESS and self._suits(path, value)) or self._suits(lookup, value)
        return suits and super(GuardedAdmin, self).lookup_allowed(lookup, value, request)  # what its own admin says

    def _suits(self, path: str, value: str) -> bool:
        """Whether the path ends in a column (not in a transform such as a year) for which the value is valid."""
        try:
            column: Any = get_fields_from_path(self.model, path)[-1]
            read = column.to_python(value)
            column.run_validators(read)
        except (FieldDoesNotExist, NotRelationField, ValidationError):
            return False
        return not isinstance(read, date) or 1 < read.year < LAST_YEAR


def guarded(admin_class: type[admin.ModelAdmin[Any]]) -> type[admin.ModelAdmin[Any]]:
    """The admin class of another app, with the guard added if it has none."""
    if issubclass(admin_class, GuardedAdmin):
        return admin_class
    return type(admin_class.__name__, (AnyFilterAdmin, admin_class), {"__module__": admin_class.__module__})
