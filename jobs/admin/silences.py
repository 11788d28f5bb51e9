"""Silences: users say about which schedules no message is sent for a time, and end that early.

Its one rule: a silence is made with an end, and never edited: ending it and making another one shows who meant what.
"""

from datetime import datetime, time, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.widgets import AdminSplitDateTime, AdminTextInputWidget
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from django_celery_beat.models import PeriodicTask

from jobs.admin.display import counted, moment, state
from jobs.admin.guard import ActForm, CappedPaginator, ChosenFilter, GuardedAdmin, ReadOnlyAdmin, actor_of
from jobs.admin.tokens import Lines
from jobs.alerts import acts, descriptions
from jobs.alerts.descriptions import Phase
from jobs.models import LONGEST_REASON, Silence, database_now
from jobs.rules.errors import Invalid

MORNING = time(8)
OWN_END = "own end"
LENGTHS = [
    ("1 hour", "for 1 hour"),
    ("8 hours", "for 8 hours"),
    ("tomorrow", f"until tomorrow {MORNING:%H:%M}"),
    ("7 days", "for 7 days"),
    (OWN_END, "until the end below"),
]
COLOURS = {Phase.CURRENT: "paused", Phase.UPCOMING: "waiting", Phase.OVER: "cancelled"}


def end_of(lasts: str, start: datetime) -> datetime:
    """When a silence ends that lasts so long; in the site's time zone."""
    if lasts == "tomorrow":
        day = timezone.localtime(start).date() + timedelta(days=1)
        return timezone.make_aware(datetime.combine(day, MORNING))
    return start + {"1 hour": timedelta(hours=1), "8 hours": timedelta(hours=8), "7 days": timedelta(days=7)}[lasts]


class LengthForm(forms.Form):
    """How long a silence lasts, and why."""

    lasts = forms.ChoiceField(choices=LENGTHS, initial="1 hour", widget=forms.RadioSelect)
    ends_at = forms.SplitDateTimeField(required=False, label="End", widget=AdminSplitDateTime)
    reason = forms.CharField(required=False, max_length=LONGEST_REASON, widget=AdminTextInputWidget)

    def clean(self) -> dict[str, Any]:
        """Compute the end from the choice."""
        data = self.cleaned_data
        if self.errors:
            return data
        if data["lasts"] != OWN_END:
            data["ends_at"] = end_of(data["lasts"], data.get("starts_at") or timezone.now())
        elif not data["ends_at"]:
            self.add_error("ends_at", "Enter the end, or choose a length above.")
        return data


class SilenceForm(ActForm, LengthForm):
    schedule = forms.ModelChoiceField(PeriodicTask.objects.order_by("name"), required=False, empty_label="–")
    patterns = Lines(
        required=False,
        help_text="Instead of a schedule: names of schedules or jobs, or patterns such as billing.*, one per line."
        " Without a schedule and patterns: everything, the system too.",
    )
    starts_at = forms.SplitDateTimeField(
        required=False, label="Start", widget=AdminSplitDateTime, help_text="Empty: now."
    )

    def clean_starts_at(self) -> datetime:
        start: datetime | None = self.cleaned_data["starts_at"]
        return start or database_now()

    def clean(self) -> dict[str, Any]:
        super().clean()
        return LengthForm.clean(self)

    def validate_constraints(self) -> None:
        """`check_silence` says it better."""

    def check_row(self) -> None:
        acts.check_silence(self.instance, database_now())


class PhaseFilter(ChosenFilter):
    title = "state"
    parameter_name = "phase"

    def conditions(self) -> dict[str, Q]:
        return descriptions.in_phase(timezone.now())


@admin.action(description="End now", permissions=["end"])
def end(_: admin.ModelAdmin[Silence], request: HttpRequest, queryset: QuerySet[Silence]) -> None:
    try:
        number = acts.end_silences(queryset, actor_of(request))
    except Invalid as error:
        messages.error(request, str(error))
        return
    if number:
        messages.success(request, f"{counted(number, 'silence was', 'silences were')} ended.")
    else:
        messages.info(request, "No silence was ended: all selected silences are over.")


@admin.register(Silence)
class SilenceAdmin(ReadOnlyAdmin, GuardedAdmin):
    form = SilenceForm
    change_form_template = "admin/jobs/silence_page.html"
    actions = (end,)
    list_display = ("about", "phase", "starts", "ends", "reason", "created_by")
    list_filter = (PhaseFilter,)
    list_select_related = ("schedule",)
    linked_by = ("schedule__id__exact",)
    ordering = ("-ends_at", "-id")
    paginator = CappedPaginator
    asked = ("schedule", "patterns", "starts_at", "lasts", "ends_at", "reason")  # of a user who makes one
    shown = ("about", "phase", "starts", "ends", "reason", "created_by", "created")

    def get_fields(self, _request: HttpRequest, obj: Silence | None = None) -> Any:
        return self.shown if obj else self.asked

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("jobs.change_silence")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_view_permission(self, request, obj) or self.has_end_permission(request)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        one_button = {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().add_view(request, form_url, {**(extra_context or {}), **one_button})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        silence = self.get_object(request, unquote(object_id))
        may_end = self.has_end_permission(request)
        if may_end and silence is not None and request.method == "POST":
            end(self, request, Silence.objects.filter(pk=silence.pk))
            return HttpResponseRedirect(reverse("admin:jobs_silence_changelist"))
        may_end = may_end and silence is not None and descriptions.phase(silence, timezone.now()) != Phase.OVER
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), "may_end": may_end})

    def save_model(self, request: HttpRequest, obj: Silence, _form: Any, _change: bool) -> None:
        acts.save_silence(obj, actor_of(request))

    def delete_model(self, request: HttpRequest, obj: Silence) -> None:
        acts.delete_silences(Silence.objects.filter(pk=obj.pk), actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Silence]) -> None:
        acts.delete_silences(queryset, actor_of(request))

    @admin.display(description="about")
    def about(self, silence: Silence) -> str:
        return descriptions.about(silence)

    @admin.display(description="state")
    def phase(self, silence: Silence) -> SafeString:
        phase = descriptions.phase(silence, timezone.now())
        return state(COLOURS[phase], phase)

    @admin.display(description="starts", ordering="starts_at")
    def starts(self, silence: Silence) -> str:
        return moment(silence.starts_at)

    @admin.display(description="ends", ordering="ends_at")
    def ends(self, silence: Silence) -> str:
        return moment(silence.ends_at)

    @admin.display(description="created")
    def created(self, silence: Silence) -> str:
        return moment(silence.created_at)
