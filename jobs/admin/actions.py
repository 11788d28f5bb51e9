"""What people can do with the schedules they ticked in the list.

Its one rule: an action checks what it was told, calls one function, says what became of it, and leaves a line in the
history of each schedule. One that needs words, dates or a preview answers with a page first; the form on that page
comes back to the same address, so that permissions, filters and the choice of rows are Django's to check again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME, AdminForm
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.widgets import AdminIntegerFieldWidget, AdminSplitDateTime, AdminTextInputWidget
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django_celery_beat.models import PeriodicTask

from jobs.admin.display import counted, moment
from jobs.ledger import backfills, outbox, requests
from jobs.messages.dispatch import BrokerUnavailableError
from jobs.models import CATCH_UP_CHOICES, Backfill, Policy, PolicyQuerySet, Run
from jobs.monitoring import statistics
from jobs.rules.errors import Invalid
from jobs.rules.policies import CatchUp
from jobs.schedules import calendar

NAMED = 10  # schedules, or due moments, that a page names; of the others it says how many there are
FARTHEST = timedelta(days=36525)  # until when a pause may last; what is meant to end later has no end

Schedules = QuerySet[PeriodicTask]
ScheduleAdmin = admin.ModelAdmin[PeriodicTask]


class PauseForm(forms.Form):
    reason = forms.CharField(
        required=False,
        max_length=500,
        widget=AdminTextInputWidget,
        help_text="Stands in the ledger beside every moment that is not run.",
    )
    until = forms.SplitDateTimeField(
        required=False, widget=AdminSplitDateTime, help_text="Empty: until somebody resumes it."
    )
    catch_up = forms.ChoiceField(
        label="Afterwards",
        choices=CATCH_UP_CHOICES,
        initial=CatchUp.NONE.value,
        help_text="What to do then with the moments that were due during the pause.",
    )

    def clean_until(self) -> datetime | None:
        until: datetime | None = self.cleaned_data["until"]
        if until and not timedelta(0) < until - timezone.now() < FARTHEST:
            raise ValidationError("Choose a moment in the next hundred years, or none.")
        return until


class SkipForm(forms.Form):
    moments = forms.IntegerField(
        label="How many",
        min_value=0,
        max_value=10_000,
        initial=1,
        widget=AdminIntegerFieldWidget,
        help_text="How many of the next due moments to skip; 0: none, whatever was said before.",
    )


class BackfillForm(forms.ModelForm[Backfill]):
    class Meta:
        model = Backfill
        fields = ("start", "end", "which", "at_once")
        field_classes = dict.fromkeys(("start", "end"), forms.SplitDateTimeField)
        widgets = dict.fromkeys(("start", "end"), AdminSplitDateTime) | {"at_once": AdminIntegerFieldWidget}

    def __init__(self, schedule: PeriodicTask, request: HttpRequest) -> None:
        told = request.POST if "step" in request.POST else None
        asked = Backfill(schedule=schedule, actor=request.user.get_username())
        super().__init__(told, instance=asked)
        self.preview: backfills.Preview | None = None

    def clean(self) -> dict[str, Any]:
        """Find out what it would do: what cannot be computed is refused before anything is previewed."""
        data = super().clean() or {}
        if not self.errors:
            for name in self._meta.fields or ():
                setattr(self.instance, name, data[name])
            try:
                self.preview = backfills.preview(self.instance)
            except Invalid as error:
                raise ValidationError(str(error)) from error
        return data

    @property
    def fingerprint(self) -> str:
        """What a preview was made of; another one needs a preview of its own."""
        return " ".join(str(self.cleaned_data.get(name)) for name in self.fields)


@dataclass(frozen=True, slots=True)
class Page:
    """What an action asks before it acts; `hidden` fields and `buttons` are pairs of a name and a value."""

    action: str
    verb: str
    form: Any
    buttons: Sequence[tuple[str, str]]
    hidden: Sequence[tuple[str, str]] = ()
    preview: dict[str, Any] | None = None


@admin.action(description="Run now", permissions=["change"])
def run_now(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    runs = []
    for schedule in queryset:
        try:
            runs.append(requests.run_now(schedule, actor=request.user.get_username()))
        except Invalid as error:
            messages.error(request, f"“{schedule.name}” cannot run: {error}")
    transaction.on_commit(partial(send, request, runs))


def send(request: HttpRequest, runs: Sequence[Run]) -> None:
    """Hand over runs that were asked for, and say what became of them. A broker that is away is waited for once."""
    names = ", ".join(f"“{run.schedule_name}”" for run in runs[:NAMED])
    names += f" and {len(runs) - NAMED:,} more" if len(runs) > NAMED else ""
    are, them = ("is", "it") if len(runs) == 1 else ("are", "them")
    try:
        outbox.send(runs)
    except BrokerUnavailableError:
        waits = "waits" if len(runs) == 1 else "wait"
        messages.warning(request, f"{names} {waits}: the broker is away. Any beat sends {them} when it is back.")
        return
    if runs:
        messages.success(request, f"{names} {are} queued.")


@admin.action(description="Enable", permissions=["change"])
def enable(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    _switch(request, queryset, enabled=True)


@admin.action(description="Disable", permissions=["change"])
def disable(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    _switch(request, queryset, enabled=False)


def _switch(request: HttpRequest, queryset: Schedules, *, enabled: bool) -> None:
    chosen = _settled(queryset)
    with transaction.atomic():
        # Locked in one order, or two people at the same rows could wait for each other for ever.
        list(chosen.select_for_update().order_by("pk").values_list("pk", flat=True))
        chosen.update(enabled=enabled)
    calendar.refresh(chosen)
    _report(request, chosen, "enabled" if enabled else "disabled")


@admin.action(description="Pause …", permissions=["change"])
def pause(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    form = PauseForm(request.POST if "step" in request.POST else None)
    if not form.is_valid():
        return _ask(schedules, request, queryset, Page("pause", "Pause", form, [("do", "Pause")]))
    chosen = _settled(queryset)
    _policies(chosen).pause(by=request.user.get_username(), **form.cleaned_data)
    _report(request, chosen, "paused")
    return None


@admin.action(description="Resume", permissions=["change"])
def resume(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    chosen = _settled(queryset.filter(policy__in=Policy.objects.paused()))
    if not chosen.exists():
        messages.warning(request, "None of these is paused.")
        return
    _policies(chosen).resume()
    _report(request, chosen, "resumed")


@admin.action(description="Skip the next …", permissions=["change"])
def skip_next(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    form = SkipForm(request.POST if "step" in request.POST else None)
    if not form.is_valid():
        page = Page("skip_next", "Skip due moments of", form, [("do", "Skip them")])
        return _ask(schedules, request, queryset, page)
    chosen, moments = _settled(queryset), form.cleaned_data["moments"]
    _policies(chosen).update(skip_next=moments)
    _report(request, chosen, f"told to skip {counted(moments, 'due moment', 'due moments')}")
    return None


@admin.action(description="Backfill …", permissions=["change"])
def backfill(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    """Ask for a range, show what it means, and only then do it; sent twice, it is done once."""
    if queryset.count() != 1:
        messages.error(request, "Choose one schedule to backfill.")
        return None
    form = BackfillForm(queryset.get(), request)
    previewed = form.is_valid() and request.POST.get("previewed") == form.fingerprint
    if previewed and "do" in request.POST:
        form.instance.id = _id_of(request)
        _backfill(request, form.instance)
        return None
    buttons, hidden = [("preview", "Preview")], [("request", str(_id_of(request)))]
    if form.preview:
        hidden.append(("previewed", form.fingerprint))
        number = len(form.preview.moments)
        buttons += [("do", f"Run {counted(number, 'time', 'times')}")] * bool(number)
    page = Page("backfill", "Backfill", form, buttons, hidden, _shown(form.preview))
    return _ask(schedules, request, queryset, page)


def _id_of(request: HttpRequest) -> UUID:
    try:
        return UUID(request.POST["request"])
    except (KeyError, ValueError):
        return uuid4()


def _shown(preview: backfills.Preview | None) -> dict[str, Any] | None:
    if preview is None:
        return None
    number, left_alone = len(preview.moments), preview.left_alone
    sentence = f"It would run {counted(number, 'time', 'times')}"
    if left_alone:
        sentence += f", and leave {counted(left_alone, 'due moment', 'due moments')} of this range alone"
    rows = [moment(due_at) for due_at in preview.moments[:NAMED]]
    if number > NAMED:
        rows += ["…", moment(preview.moments[-1])]
    return {"sentence": f"{sentence}.", "moments": rows}


def _backfill(request: HttpRequest, asked: Backfill) -> None:
    number = backfills.backfill(asked)
    if not number:
        messages.info(request, "This was asked for before, and is done once.")
        return
    address = f"{reverse('admin:jobs_run_changelist')}?backfill__id__exact={asked.id}"
    sentence = f"“{asked.schedule.name}” runs {counted(number, 'time', 'times')}, {asked.at_once} at once:"
    messages.success(request, format_html('{} <a href="{}">show its runs</a>.', sentence, address))
    _note(request, PeriodicTask.objects.filter(pk=asked.schedule_id), f"backfilled: {asked}")


def _settled(queryset: Schedules) -> Schedules:
    """The same schedules, chosen by what will not change, with a policy each."""
    chosen: Schedules = PeriodicTask.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
    calendar.refresh(chosen)
    return chosen


def _policies(chosen: Schedules) -> PolicyQuerySet:
    return Policy.objects.filter(schedule__in=chosen)


def _report(request: HttpRequest, chosen: Schedules, what: str) -> None:
    statistics.forget()
    number = _note(request, chosen, what)
    level = messages.SUCCESS if number else messages.WARNING
    messages.add_message(request, level, f"{counted(number, 'schedule is', 'schedules are')} {what}.")


def _note(request: HttpRequest, chosen: Schedules, what: str) -> int:
    """Write it into the history of each schedule; returns how many there are."""
    noted = chosen.select_related(*calendar.KINDS)
    return len(LogEntry.objects.log_actions(request.user.pk or 0, noted, CHANGE, f"{what[0].upper()}{what[1:]}."))


def _ask(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules, page: Page) -> HttpResponse:
    """Answer with the page. What was chosen in the list goes along, hidden, and comes back with the form."""
    chosen = [(ACTION_CHECKBOX_NAME, pk) for pk in request.POST.getlist(ACTION_CHECKBOX_NAME)]
    across = request.POST.get("select_across", "0")
    number, names = queryset.count(), list(queryset.values_list("name", flat=True)[:NAMED])
    context = {
        **schedules.admin_site.each_context(request),
        "opts": schedules.opts,
        "title": f"{page.verb} {counted(number, 'schedule', 'schedules')}",
        "names": names,
        "more": number - len(names),
        "form": page.form,
        "fieldsets": AdminForm(page.form, [(None, {"fields": list(page.form.fields)})], {}),
        "media": schedules.media + page.form.media,
        "hidden": [("action", page.action), ("select_across", across), ("step", "1"), *chosen, *page.hidden],
        "buttons": page.buttons,
        "preview": page.preview,
    }
    return TemplateResponse(request, "admin/jobs/action.html", context)
