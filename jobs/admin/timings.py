"""How do users see and edit intervals, crontabs, solar events and clocked moments?

Its one rule: such a row may be shared. Its page names the schedules that use it, and offers to change only one of them:
that one then gets a row of its own.
"""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminTextInputWidget
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.forms.models import model_to_dict
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule

from jobs.admin.display import counted
from jobs.admin.guard import RightsAdmin, actor_of, without_backfills
from jobs.models import KINDS
from jobs.models.audit import Actor
from jobs.models.unknown_zones import UnknownZone
from jobs.rules.crontab import LONGEST_FIELD
from jobs.rules.errors import Invalid
from jobs.rules.pasted import Fields, doubt, looks_like_line, read_line
from jobs.schedules import acts, calendar, timings
from jobs.schedules.calendar import CRONTAB_FIELDS
from jobs.schedules.timings import kind_of

LISTED = 20  # schedules that use a row
VIEW, CHANGE = "django_celery_beat.view_periodictask", "django_celery_beat.change_periodictask"


class TimingForm(forms.ModelForm[Any]):
    """Refuses a timing that is never due, even if the validators of django-celery-beat accept it."""

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if self.errors:
            return data
        try:
            self.read(data)
        except Invalid as error:
            raise ValidationError(str(error)) from error
        return data

    def read(self, data: dict[str, Any]) -> Any:
        """The timing that these values mean. Raises `Invalid`."""
        columns = {column.name for column in self._meta.model._meta.fields}
        row = self._meta.model(**{name: data[name] for name in columns & data.keys()})
        return calendar.timing_of(row, timezone.now())


class CrontabForm(TimingForm):
    """Takes crontabs as people write and paste them, and stores them as Celery reads them."""

    line = forms.CharField(
        label="Whole line",
        required=False,
        max_length=LONGEST_FIELD,
        widget=AdminTextInputWidget,
        help_text="To paste a crontab line, such as 0 9 * * MON-FRI or @daily. It replaces the five fields.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in set(CRONTAB_FIELDS) & set(self.fields):
            self.fields[name].required = False  # a line may replace them; an empty one is refused with a hint
        field: Any = self.fields.get("timezone")
        zone = self.instance.timezone
        if field and isinstance(zone, UnknownZone):  # otherwise a browser would select the first zone of the list
            field.choices = [(str(zone), f"{zone} (unknown here: choose another)"), *field.choices]

    def read(self, data: dict[str, Any]) -> Any:
        line = data.get("line") or data["minute"]
        if data.get("line") or looks_like_line(line):
            data |= read_line(line)._asdict()
        timing = super().read(data)
        data |= timings.fitting(timing)
        return timing

    def _get_validation_exclusions(self) -> set[str]:
        """The validators of django-celery-beat refuse 22-2 and names such as `monday`, which Celery reads."""
        return {*super()._get_validation_exclusions(), *CRONTAB_FIELDS}  # type: ignore[misc]


admin.site.unregister(list(KINDS.values()))


@admin.register(IntervalSchedule, SolarSchedule, ClockedSchedule)
class TimingAdmin(RightsAdmin):
    """If schedules of a restricted job use the row, a change needs the right for the job."""

    form = TimingForm
    path_to_job = "periodictask__task"

    def jobs_of(self, row: Any) -> Iterable[str]:
        if not hasattr(row, "used_for"):  # each page asks several times
            using = PeriodicTask.objects.filter(**{kind_of(row): row}).order_by()
            row.used_for = list(using.values_list("task", flat=True).distinct())
        return list(row.used_for)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (*super().get_readonly_fields(request, obj), *(["used_by"] if obj else []))

    def get_object(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        row = super().get_object(request, *args, **options)
        if row:
            row.viewer = request.user  # `used_by` shows what this user may see
        return row

    @admin.display(description="used by")
    def used_by(self, row: Any) -> str:
        using = PeriodicTask.objects.filter(**{kind_of(row): row}).order_by("name")
        count = using.count()
        number = counted(count, "schedule", "schedules")
        if not (row.viewer.has_perm(VIEW) or row.viewer.has_perm(CHANGE)):
            return number
        lines = ((link_to(each), only_this_one(each, row.viewer)) for each in using[:LISTED])
        which = f", the first {LISTED}:" if count > LISTED else ":" if count else ""
        return format_html("{}{}{}", number, which, format_html_join("", "<br>{} {}", lines))

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> Any:
        if schedule := self._only(request):
            title = {"title": f"Change the {self.opts.verbose_name} of “{schedule.name}” only"}
            extra_context = {**title, **(extra_context or {})}
        return super().add_view(request, form_url, extra_context)

    def get_changeform_initial_data(self, request: HttpRequest) -> Any:
        schedule = self._only(request)
        if schedule is None:
            return super().get_changeform_initial_data(request)
        return model_to_dict(getattr(schedule, kind_of(self.model)))

    def save_model(self, request: HttpRequest, obj: Any, _form: Any, change: bool) -> None:
        acts.save_timing(obj, actor_of(request))
        if schedule := None if change else self._only(request):
            acts.retime(PeriodicTask.objects.filter(pk=schedule.pk), actor_of(request), obj)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        acts.delete_timings(self.model.objects.filter(pk=obj.pk), actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        acts.delete_timings(queryset, actor_of(request))

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        if schedule := self._only(request):
            messages.success(request, f"“{schedule.name}” now has a {self.opts.verbose_name} of its own: {obj}.")
            return HttpResponseRedirect(address_of(schedule))
        return super().response_add(request, obj, post_url_continue)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        rows = [row.pk for row in objs]
        tell_of_return(request, PeriodicTask.objects.filter(**{f"{kind_of(self.model)}__in": rows}))
        return without_backfills(super().get_deleted_objects(objs, request))

    def _only(self, request: HttpRequest) -> PeriodicTask | None:
        """The one schedule that a new row is for; None if it is for any. Raises Http404 or PermissionDenied."""
        if "schedule" not in request.GET:
            return None
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        key = request.GET["schedule"]
        timed = PeriodicTask.objects.exclude(**{kind_of(self.model): None})
        schedule: PeriodicTask = get_object_or_404(timed, pk=key if key.isdecimal() and len(key) < 19 else None)
        if why := actor_of(request).why_not(schedule.task):
            raise PermissionDenied(why)
        return schedule


@admin.register(CrontabSchedule)
class CrontabAdmin(TimingAdmin):
    form = CrontabForm

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        names = [name for name in super().get_fields(request, obj) if name != "line"]
        may = self.has_change_permission(request, obj) if obj else True
        return [*(["line"] if may else []), *names]

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if sentence := doubt(Fields(*(getattr(obj, name) for name in Fields._fields))):
            messages.warning(request, sentence)


def shared(schedule: PeriodicTask, user: Any) -> str:
    """How many other schedules use the timing of this one, and how to change only this one."""
    kind = next((kind for kind in KINDS if getattr(schedule, f"{kind}_id")), None)
    others = PeriodicTask.objects.exclude(pk=schedule.pk).filter(**{kind: getattr(schedule, kind)}) if kind else None
    if not others or not (number := others.count()):
        return "no other schedule"
    return format_html("{} {}", counted(number, "other schedule", "other schedules"), only_this_one(schedule, user))


def only_this_one(schedule: PeriodicTask, user: Any) -> str:
    """A link for users who may change the schedule and make a timing; else nothing."""
    kind = next(kind for kind in KINDS if getattr(schedule, f"{kind}_id"))
    name = KINDS[kind]._meta.model_name
    if not (user.has_perm(CHANGE) and user.has_perm(f"django_celery_beat.add_{name}")):
        return ""
    if Actor.of_user(user).why_not(schedule.task):
        return ""
    address = reverse(f"admin:django_celery_beat_{name}_add")
    return format_html('(<a href="{}?schedule={}">change only this one</a>)', address, schedule.pk)


def address_of(schedule: PeriodicTask) -> str:
    return reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])


def link_to(schedule: PeriodicTask) -> str:
    return format_html('<a href="{}">{}</a>', address_of(schedule), schedule.name)


def tell_of_return(request: HttpRequest, schedules: QuerySet[PeriodicTask]) -> None:
    """Say which of the schedules that a user is about to delete, or has deleted, come back by themselves."""
    returning = schedules.exclude(policy__entry="").filter(policy__removed_at=None).order_by("name")
    names = list(returning.values_list("name", flat=True)[: LISTED + 1])
    if names:
        shown = [*names[:LISTED], *["…"][: len(names) - LISTED]]
        messages.warning(
            request,
            f"From the settings: {', '.join(shown)}. Deleted, such a schedule comes back when beat next starts. Disable"
            " it instead, or remove its entry.",
        )
