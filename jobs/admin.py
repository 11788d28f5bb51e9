"""The doors for people: schedules with their policies, and the ledger of runs.

Its one rule: a page shows what the ledger says and asks other modules to act. What cannot run is refused here with the
sentence the calendar gives; what was written past this form is flagged with the same sentence. Runs are read-only.
"""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_celery_beat.admin import PeriodicTaskForm
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs import ask, calendar, dispatch
from jobs.message import message_of
from jobs.models import Attempt, FeedEntry, Policy, Run
from jobs.occurrences import Invalid

NOTHING = "–"
LAST_RUN = ("state", "reason", "due_at", "started_at", "finished_at")


class ScheduleForm(PeriodicTaskForm):  # type: ignore[misc] # django-celery-beat has no type hints
    def _clean_json(self, field: str) -> str:
        """Not the parent's, which stumbles over deep nesting: `message_of` reads it all in clean()."""
        return str(self.cleaned_data[field])

    def clean(self) -> dict[str, Any]:
        """Refuse what could never run, with the reason."""
        self.cleaned_data.setdefault("task", "")  # the parent's clean() stumbles where the field itself was refused
        data: dict[str, Any] = super().clean()
        data["headers"] = data.get("headers") or "{}"  # the column takes no empty value
        schedule = PeriodicTask(**{name: data[name] for name in data if name != "regtask"})
        try:
            calendar.spec_of(schedule, timezone.now())
            message_of(schedule, Policy())
        except Invalid as error:
            raise ValidationError(str(error)) from error
        return data


class TimingForm(forms.ModelForm[Any]):
    """For the rows that say when: refuses what never comes, however the stock validators like it."""

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        try:
            calendar.timing_of(self._meta.model(**data), timezone.now())
        except Invalid as error:
            raise ValidationError(str(error)) from error
        return data


class PolicyForm(forms.ModelForm[Policy]):
    def save(self, commit: bool = True) -> Policy:
        """Write what the person changed and nothing else: beat moves the other columns meanwhile."""
        if commit and self.changed_data:
            self.instance.save(update_fields=[name for name in self.changed_data if name in self.cleaned_data])
        return self.instance


class PolicyInline(admin.StackedInline[Policy, PeriodicTask]):
    model = Policy
    form = PolicyForm
    can_delete = False
    readonly_fields = ("next_due_at", "invalid_reason")


@admin.action(description="Run now", permissions=["change"])
def run_now(_: admin.ModelAdmin[PeriodicTask], request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
    for schedule in queryset:
        try:
            run = ask.run_now(schedule, actor=request.user.get_username())
        except Invalid as error:
            messages.error(request, f"“{schedule.name}” cannot run: {error}")
            continue
        transaction.on_commit(partial(_send, request, run))


def _send(request: HttpRequest, run: Run) -> None:
    name = run.schedule_name
    try:
        dispatch.send([run])
        messages.success(request, f"“{name}” is queued.")
    except dispatch.BrokerAwayError:
        messages.warning(request, f"“{name}” waits: the broker is away. It is sent as soon as the broker is back.")


@admin.action(description="Enable", permissions=["change"])
def enable(_: admin.ModelAdmin[PeriodicTask], request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
    _switch(request, queryset, enabled=True)


@admin.action(description="Disable", permissions=["change"])
def disable(_: admin.ModelAdmin[PeriodicTask], request: HttpRequest, queryset: QuerySet[PeriodicTask]) -> None:
    _switch(request, queryset, enabled=False)


def _switch(request: HttpRequest, queryset: QuerySet[PeriodicTask], *, enabled: bool) -> None:
    chosen = PeriodicTask.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
    chosen.update(enabled=enabled)
    calendar.refresh(chosen)
    messages.success(request, f"{chosen.count()} schedules are {'enabled' if enabled else 'disabled'}.")


admin.site.unregister([PeriodicTask, CrontabSchedule, IntervalSchedule])


@admin.register(CrontabSchedule, IntervalSchedule)
class TimingAdmin(admin.ModelAdmin[Any]):
    form = TimingForm


@admin.register(PeriodicTask)
class ScheduleAdmin(admin.ModelAdmin[PeriodicTask]):
    form = ScheduleForm
    inlines = (PolicyInline,)
    actions = (run_now, enable, disable)
    list_display = ("name", "enabled", "when", "next_due", "last_outcome", "lateness", "duration", "runs")
    list_filter = ("enabled", ("policy__invalid_reason", admin.EmptyFieldListFilter))
    list_select_related = ("policy", *calendar.KINDS)
    search_fields = ("name", "task")
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "regtask", "task", "enabled", "description")}),
        ("When", {"fields": ("interval", "crontab", "solar", "clocked", "start_time", "expires", "one_off")}),
        ("Arguments", {"fields": ("args", "kwargs")}),
        ("Message", {"fields": ("expire_seconds", "queue", "priority", "exchange", "routing_key", "headers")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        latest = Run.objects.filter(schedule=OuterRef("pk")).order_by("-due_at")
        columns = {f"last_{name}": Subquery(latest.values(name)[:1]) for name in LAST_RUN}
        schedules: QuerySet[PeriodicTask] = super().get_queryset(request).annotate(**columns)
        return schedules

    @admin.display(description="when")
    def when(self, schedule: PeriodicTask) -> str:
        return str(schedule.scheduler or NOTHING)

    @admin.display(description="next due", ordering="policy__next_due_at")
    def next_due(self, schedule: PeriodicTask) -> str:
        policy: Policy | None = getattr(schedule, "policy", None)
        if policy is None:
            return "known in a few seconds"
        if policy.invalid_reason:
            return format_html('<span class="state state-flagged">cannot run</span> {}', policy.invalid_reason)
        return _moment(policy.next_due_at) if policy.next_due_at else "nothing to come"

    @admin.display(description="last outcome")
    def last_outcome(self, schedule: Any) -> str:
        if not schedule.last_state:
            return "has not been due yet"
        return format_html("{} {}", _state(schedule.last_state), schedule.last_reason)

    @admin.display(description="late by")
    def lateness(self, schedule: Any) -> str:
        return _between(schedule.last_due_at, schedule.last_started_at)

    @admin.display(description="took")
    def duration(self, schedule: Any) -> str:
        return _between(schedule.last_started_at, schedule.last_finished_at)

    @admin.display(description="runs")
    def runs(self, schedule: PeriodicTask) -> SafeString:
        address = reverse("admin:jobs_run_changelist")
        return format_html('<a href="{}?schedule__id__exact={}">show</a>', address, schedule.pk)


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


class AttemptInline(ReadOnlyAdmin, admin.TabularInline[Attempt, Run]):
    model = Attempt
    verbose_name_plural = "earlier attempts"
    extra = 0


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin, admin.ModelAdmin[Run]):
    inlines = (AttemptInline,)
    fieldsets = (
        (None, {"fields": ("outcome", "why", "schedule", "due", "late_by", "took", "trigger", "actor")}),
        ("What", {"fields": ("task", "args", "kwargs", "queue", "priority", "options")}),
        ("Life", {"fields": ("attempt", "sends", "queued", "started", "finished", "worker", "id")}),
        ("Error", {"fields": ("error_class", "error")}),
    )
    list_display = ("schedule_name", "outcome", "due", "late_by", "took", "attempt", "trigger", "worker", "why")
    list_filter = (("state", KnownChoices), ("trigger", KnownChoices))
    search_fields = ("=id", "^schedule_name")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    @admin.display(description="state", ordering="state")
    def outcome(self, run: Run) -> SafeString:
        return _state(run.state)

    @admin.display(description="due", ordering="due_at")
    def due(self, run: Run) -> str:
        if run.count == 1:
            return _moment(run.due_at)
        return format_html("{} to {} ({} times)", _moment(run.due_at), _moment(run.last_due_at), run.count)

    @admin.display(description="late by")
    def late_by(self, run: Run) -> str:
        return _between(run.due_at, run.started_at)

    @admin.display(description="took")
    def took(self, run: Run) -> str:
        return _between(run.started_at, run.finished_at)

    @admin.display(description="why")
    def why(self, run: Run) -> str:
        return run.reason or NOTHING

    @admin.display(description="queued")
    def queued(self, run: Run) -> str:
        return _moment(run.queued_at)

    @admin.display(description="started")
    def started(self, run: Run) -> str:
        return _moment(run.started_at)

    @admin.display(description="finished")
    def finished(self, run: Run) -> str:
        return _moment(run.finished_at)

    @admin.display(description="error")
    def error(self, run: Run) -> str:
        return format_html("<pre>{}</pre>", run.error_text) if run.error_text else NOTHING


@admin.register(FeedEntry)
class FeedEntryAdmin(ReadOnlyAdmin, admin.ModelAdmin[FeedEntry]):
    list_display = ("title", "feed", "published_at", "imported_at")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False


def _state(state: str) -> SafeString:
    return format_html('<span class="state state-{}">{}</span>', state, state)


def _moment(moment: datetime | None) -> str:
    if moment is None:
        return NOTHING
    return format_html('<span class="moment">{}</span>', f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}")


def _between(start: datetime | None, end: datetime | None) -> str:
    """A length of time as people say it."""
    if start is None or end is None:
        return NOTHING
    seconds = (end - start).total_seconds()
    if abs(seconds) < 60:
        return format_html('<span class="moment">{} s</span>', f"{seconds:.2f}")
    return str(timedelta(seconds=round(seconds)))
