"""Which actions can an admin user apply to the selected schedules?

Its one rule: an action parses the request, calls one act (`schedules.acts`, `ledger.requests`, `ledger.backfills`) and
reports the result. An action that needs a reason, dates or a preview first answers with a form. The form posts to the
address of the list, so Django checks permissions, filters and selected rows again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME, AdminForm
from django.contrib.admin.widgets import AdminIntegerFieldWidget, AdminSplitDateTime, AdminTextInputWidget
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django_celery_beat.models import PeriodicTask

from jobs.admin.display import counted, moment
from jobs.admin.guard import actor_of
from jobs.admin.silences import LengthForm
from jobs.alerts import acts as telling
from jobs.ledger import backfills, requests, sending
from jobs.models import CATCH_UP_CHOICES, Backfill, Run, Silence, State
from jobs.rules.errors import Invalid
from jobs.rules.policies import CatchUp
from jobs.schedules import acts

PATIENCE = 2.0  # seconds that a page waits for the broker to take runs that its user requested
MOST_MUTED = 100  # schedules at once
NAMED = 10  # schedules or due moments that a page lists; it counts the rest

Schedules = QuerySet[PeriodicTask]
ScheduleAdmin = admin.ModelAdmin[PeriodicTask]


class PauseForm(forms.Form):
    reason = forms.CharField(
        required=False,
        max_length=acts.LONGEST_REASON,
        widget=AdminTextInputWidget,
        help_text="Recorded with every due moment that the pause skips.",
    )
    until = forms.SplitDateTimeField(
        required=False, widget=AdminSplitDateTime, help_text="Empty: until a user resumes the schedule."
    )
    catch_up = forms.ChoiceField(
        label="After the pause",
        choices=CATCH_UP_CHOICES,
        initial=CatchUp.NONE.value,
        help_text="What to do with the moments that were due during the pause.",
    )


class SkipForm(forms.Form):
    moments = forms.IntegerField(
        label="Due moments",
        min_value=0,
        max_value=acts.MOST_SKIPPED,
        initial=1,
        widget=AdminIntegerFieldWidget,
        help_text="How many of the next due moments to skip. Replaces the earlier number; 0 skips none.",
    )


class BackfillForm(forms.ModelForm[Backfill]):
    class Meta:
        model = Backfill
        fields = ("start", "end", "which", "at_once")
        field_classes = dict.fromkeys(("start", "end"), forms.SplitDateTimeField)
        widgets = dict.fromkeys(("start", "end"), AdminSplitDateTime) | {"at_once": AdminIntegerFieldWidget}

    def __init__(self, schedule: PeriodicTask, request: HttpRequest) -> None:
        data = request.POST if "step" in request.POST else None
        super().__init__(data, instance=Backfill(schedule=schedule))
        self.preview: backfills.Preview | None = None

    def clean(self) -> dict[str, Any]:
        """Compute the preview; a backfill that cannot be computed is an error of the form."""
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
        """The values of this form. A preview counts only for the values that it was computed from."""
        return " ".join(str(self.cleaned_data.get(name)) for name in self.fields)


@dataclass(frozen=True, slots=True)
class Page:
    """A form that an action shows before it acts; `hidden` fields and `buttons` are pairs of a name and a value."""

    action: str
    verb: str
    form: Any
    buttons: Sequence[tuple[str, str]]
    hidden: Sequence[tuple[str, str]] = ()
    preview: dict[str, Any] | None = None


@admin.action(description="Run now", permissions=["change"])
def run_now(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    requested = requests.run_now(queryset, actor_of(request))
    for schedule, why in requested.refused:
        messages.error(request, f"“{schedule.name}” cannot run: {why}")
    show_requested(request, requested.runs)


def show_requested(request: HttpRequest, runs: Sequence[Run]) -> None:
    """Report the state of runs that were just requested, once they are committed, and so sent."""
    transaction.on_commit(partial(_show_requested, request, runs))


def _show_requested(request: HttpRequest, runs: Sequence[Run]) -> None:
    """They are queued (a fast worker may be further already), wait for the broker, or have failed."""
    sending.wait(PATIENCE)
    unsent_or_failed = Q(state=State.WAITING, attempt=1, sends=0) | Q(state=State.FAILED)
    found = Run.objects.filter(unsent_or_failed, id__in=[run.id for run in runs])
    unsent = {key: (state, reason) for key, state, reason in found.values_list("id", "state", "reason")}
    by_state: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_state.setdefault(unsent.get(run.id, (State.QUEUED, "")), []).append(run)
    for (state, reason), group in by_state.items():
        are, them = ("is", "it") if len(group) == 1 else ("are", "them")
        if state == State.FAILED:
            messages.error(request, f"{_names(group)} failed: {reason}")
        elif state == State.WAITING:
            sentence = f"{_names(group)} {are} waiting. Beat sends {them} as soon as the broker accepts messages."
            messages.warning(request, sentence)
        else:
            messages.success(request, f"{_names(group)} {are} queued.")


def _names(runs: Sequence[Run]) -> str:
    names = ", ".join(f"“{run.schedule_name}”" for run in runs[:NAMED])
    return f"{names} and {len(runs) - NAMED:,} more" if len(runs) > NAMED else names


@admin.action(description="Enable", permissions=["change"])
def enable(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    _report(request, acts.enable(queryset, actor_of(request)), "is enabled", "are enabled")


@admin.action(description="Disable", permissions=["change"])
def disable(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    _report(request, acts.disable(queryset, actor_of(request)), "is disabled", "are disabled")


@admin.action(description="Pause …", permissions=["change"])
def pause(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    form = PauseForm(request.POST if "step" in request.POST else None)
    if form.is_valid():
        try:
            number = acts.pause(queryset, actor_of(request), **form.cleaned_data)
        except Invalid as error:
            form.add_error("until", str(error))
        else:
            _report(request, number, "is paused", "are paused")
            return None
    return _ask(schedules, request, queryset, Page("pause", "Pause", form, [("do", "Pause")]))


@admin.action(description="Resume", permissions=["change"])
def resume(_: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> None:
    if number := acts.resume(queryset, actor_of(request)):
        _report(request, number, "was resumed", "were resumed")
    else:
        messages.warning(request, "None of the selected schedules is paused.")


@admin.action(description="Mute …", permissions=["mute"])
def mute(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    """Ask for an end, then make a silence of each schedule."""
    form = LengthForm(request.POST if "step" in request.POST else None)
    if queryset.count() > MOST_MUTED:
        messages.error(request, f"Nothing was muted: for more than {MOST_MUTED} schedules, add a silence of a pattern.")
        return None
    if form.is_valid():
        ends_at, reason = form.cleaned_data["ends_at"], form.cleaned_data["reason"]
        try:
            with transaction.atomic():
                for schedule in queryset:
                    silence = Silence(schedule=schedule, ends_at=ends_at, reason=reason)
                    telling.save_silence(silence, actor_of(request))
        except Invalid as error:
            form.add_error("ends_at", str(error))
        else:
            _report(request, queryset.count(), "is muted", "are muted")
            return None
    return _ask(schedules, request, queryset, Page("mute", "Mute", form, [("do", "Mute")]))


@admin.action(description="Skip the next …", permissions=["change"])
def skip_next(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    form = SkipForm(request.POST if "step" in request.POST else None)
    if not form.is_valid():
        page = Page("skip_next", "Skip due moments of", form, [("do", "Skip")])
        return _ask(schedules, request, queryset, page)
    moments = form.cleaned_data["moments"]
    number = acts.skip_next(queryset, actor_of(request), moments)
    skipped = {0: "no due moment", 1: "the next due moment"}.get(moments, f"the next {moments:,} due moments")
    _report(request, number, f"will skip {skipped}", f"will each skip {skipped}")
    return None


@admin.action(description="Backfill …", permissions=["change"])
def backfill(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules) -> HttpResponse | None:
    """Ask for a range, show a preview, then create the runs; the same request twice creates them once."""
    if queryset.count() != 1:
        messages.error(request, "Nothing was backfilled: select exactly one schedule.")
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
        buttons += [("do", f"Create {counted(number, 'run', 'runs')}")] * bool(number)
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
    number = len(preview.moments)
    sentence = f"This backfill would create {counted(number, 'run', 'runs')}."
    if preview.left_alone:
        left_out = counted(preview.left_alone, "due moment", "due moments")
        why = "because of runs that exist or may have been deleted, or because beat has not decided yet"
        sentence += f" It would leave out {left_out}, {why}."
    if preview.assumed:
        runs = counted(preview.assumed, "run lies", "runs lie")
        sentence += f" {runs} before the timings of this schedule are known: its first one counts there."
    rows = [moment(due_at) for due_at in preview.moments[:NAMED]]
    if number > NAMED:
        rows += ["…", moment(preview.moments[-1])]
    return {"sentence": sentence, "moments": rows}


def _backfill(request: HttpRequest, backfill: Backfill) -> None:
    try:
        number = backfills.backfill(backfill, actor_of(request))
    except Invalid as error:  # the schedule has changed since the preview
        messages.error(request, f"Nothing was backfilled: {error}")
        return
    if not number:
        messages.info(request, "Nothing was backfilled: this request has already created its runs.")
        return
    address = f"{reverse('admin:jobs_run_changelist')}?backfill__id__exact={backfill.id}"
    sentence = (
        f"Created {counted(number, 'run', 'runs')} of “{backfill.schedule.name}”, at most {backfill.at_once} at a time:"
    )
    messages.success(request, format_html('{} <a href="{}">show the runs</a>.', sentence, address))


def _report(request: HttpRequest, number: int, one: str, many: str) -> None:
    level = messages.SUCCESS if number else messages.WARNING
    messages.add_message(request, level, f"{counted(number, f'schedule {one}', f'schedules {many}')}.")


def _ask(schedules: ScheduleAdmin, request: HttpRequest, queryset: Schedules, page: Page) -> HttpResponse:
    """Answer with the form of an action; hidden fields carry the selected rows to the next request."""
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
