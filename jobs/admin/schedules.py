"""How do users see and edit schedules with their policies?"""

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from celery import current_app
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django_celery_beat.admin import PeriodicTaskForm, TaskChoiceField
from django_celery_beat.models import PeriodicTask

from jobs.admin import actions, alerts, happened, typed
from jobs.admin.display import NOTHING, between, moment, state
from jobs.admin.guard import ChosenFilter, RightsAdmin, actor_of, without_backfills
from jobs.admin.timings import shared, tell_of_return
from jobs.alerts import descriptions
from jobs.messages import discovery, queues
from jobs.messages.arguments import find_task, model_of, startable
from jobs.models import KINDS, Node, Policy
from jobs.models.audit import Actor, Door
from jobs.rules.errors import Invalid
from jobs.rules.health import Health
from jobs.rules.queues import reserved
from jobs.schedules import acts, status
from jobs.schedules.check import TIMING, check, problem_of_policy
from jobs.schedules.entries import KEPT_FOR

SHOWN = 5  # upcoming due moments
ARGUMENTS = "Arguments"
# Beat counts these down while a user edits, so the form compares them with the values that the page showed.
COUNTED_DOWN = {"remaining_runs", "skip_next"}
BEING_COMPUTED = "being computed"  # beat adds a missing policy within seconds
NO_FURTHER_RUNS = "no further runs"
DESTINATION = ("exchange", "routing_key")  # shown if the settings or SQL have set them
LAST_RUN = ("state", "reason", "due_at", "started_at", "finished_at")


class JobField(TaskChoiceField):  # type: ignore[misc] # django-celery-beat has no type hints
    """Offers the jobs that the user may schedule, but accepts any name: `check` says why it refuses one."""

    widget = forms.Select


class ScheduleForm(PeriodicTaskForm):  # type: ignore[misc] # django-celery-beat has no type hints
    regtask = JobField(label="Task (registered)", required=False)
    actor = Actor("code", door=Door.ADMIN)  # replaced by the user of the page
    job: Any = None  # a typed job, if the page has a field for each of its arguments

    queue = forms.ChoiceField(
        required=False,
        help_text="For a new queue, set QUEUES, or start a worker that consumes it.",
        error_messages={"invalid_choice": "Choose a listed queue instead of %(value)s; the setting QUEUES lists more."},
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "regtask" in self.fields:
            names = [name for name in startable() if not self.actor.why_not(name)]
            self.fields["regtask"].choices = [("", ""), *zip(names, names, strict=True)]
        self._stored: dict[str, Any] = {}
        if self.job and self.instance.task == self.job.name:
            self._stored = typed.stored_of(self.job, self.instance.args, self.instance.kwargs) or {}
        elif self.job:
            self.initial["regtask"] = self.job.name
        self.initial |= {f"{typed.PREFIX}{name}": value for name, value in self._stored.items()}
        if "queue" in self.fields:
            self.fields["queue"].choices = _choices_of_queues(self.instance.queue or "")
        if "enabled" in self.fields:  # beat may disable a limited schedule meanwhile
            self.fields["enabled"].show_hidden_initial = True

    def _clean_json(self, field: str) -> str:
        """The parent fails on deeply nested JSON; here `message_of` checks it, in clean()."""
        return str(self.cleaned_data[field])

    def clean_expire_seconds(self) -> int | None:
        seconds: int | None = self.cleaned_data["expire_seconds"]
        if seconds == 0:
            raise ValidationError("Enter at least 1, or leave this empty for no limit.")
        return seconds

    def clean_queue(self) -> str | None:
        return self.cleaned_data["queue"] or None

    def clean(self) -> dict[str, Any]:
        """Refuse a schedule that could never run, with the reason."""
        self.cleaned_data.setdefault("task", "")  # the parent's clean() fails without it
        data: dict[str, Any] = super().clean()
        data["headers"] = data.get("headers") or "{}"  # the column takes no empty value
        if model := self.job and model_of(self.job):
            given = typed.read(self, model, self._stored)
            self.instance.args, self.instance.kwargs = "[]", json.dumps(given, ensure_ascii=False)
            data |= {"args": self.instance.args, "kwargs": self.instance.kwargs}
            if self.errors:
                return data  # shown beside their fields
        columns = {column.name for column in PeriodicTask._meta.fields}
        stored = {name: getattr(self.instance, name) for name in DESTINATION}
        schedule = PeriodicTask(**stored, **{name: data[name] for name in columns & data.keys() - set(DESTINATION)})
        try:
            changed = bool(TIMING & set(self.changed_data))
            check(schedule, Policy(), timezone.now(), timing_changed=changed, actor=self.actor)
        except Invalid as error:
            raise ValidationError(str(error)) from error
        return data


class PolicyForm(forms.ModelForm[Policy]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in COUNTED_DOWN & set(self.fields):
            self.fields[name].show_hidden_initial = True

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if problem := problem_of_policy(data, self.changed_data):
            self.add_error(*problem)
        return data

    def save(self, commit: bool = True) -> Policy:
        """Write only the columns that the user changed: beat may have moved the others meanwhile."""
        if commit and self.changed_data:
            changed = set(self.changed_data) & set(self.cleaned_data)
            self.instance.save(update_fields=changed - {"skip_next"})
            if "skip_next" in changed:
                Policy.objects.filter(pk=self.instance.pk).skip(self.instance.skip_next)
        return self.instance


class PolicyInline(admin.StackedInline[Policy, PeriodicTask]):
    """The policy, on the page of its schedule; the permissions for the schedule apply."""

    model = Policy
    form = PolicyForm
    can_delete = False
    readonly_fields = ("due_next", "status", "origin", "health", "alerts")
    of_alerts = frozenset({"health", "alerts"})  # which some users may not see
    fieldsets = (
        (None, {"fields": readonly_fields}),
        ("Due moments", {"fields": ("overlap", "catch_up", "catch_up_window", "catch_up_cap", "jitter")}),
        ("Limits", {"fields": ("skip_next", "remaining_runs", "pause_after_failures")}),
        (
            "Alerts",
            {
                "fields": (
                    *("late_after", "failures_allowed", "longest_runtime", "shortest_runtime", "longest_pause"),
                ),
                "description": "When its health changes, which its channels are told.",
            },
        ),
        (
            "Each run",
            {
                "fields": (
                    "max_attempts",
                    "retry_delay",
                    "rerun_if_lost",
                    "soft_time_limit",
                    "time_limit",
                    "keep_result",
                )
            },
        ),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        self.viewer = request.user  # Django makes an inline for each request
        (_, own), *others = super().get_fieldsets(request, obj)
        hidden = set() if obj and alerts.may_view(request) else self.of_alerts
        return [(None, {"fields": [name for name in own["fields"] if name not in hidden]}), *others]

    def has_view_permission(self, request: HttpRequest, _: Any = None) -> bool:
        return request.user.has_perm("django_celery_beat.view_periodictask") or self.has_change_permission(request)

    def has_change_permission(self, request: HttpRequest, _: Any = None) -> bool:
        return request.user.has_perm("django_celery_beat.change_periodictask")

    def has_add_permission(self, request: HttpRequest, _: Any = None) -> bool:
        return request.user.has_perm("django_celery_beat.add_periodictask")

    @admin.display(description="next due")
    def due_next(self, policy: Policy) -> str:
        if policy._state.adding:
            return BEING_COMPUTED if policy.schedule_id else NOTHING
        zone = getattr(policy.schedule.crontab, "timezone", None)
        upcoming: list[str] = [_upcoming_moment(*each, zone) for each in status.upcoming(policy.schedule, SHOWN)]
        lines = [*(upcoming or [NO_FURTHER_RUNS]), happened.link(policy.schedule, "What happened at another moment?")]
        return format_html_join(mark_safe("<br>"), "{}", ((line,) for line in lines))

    @admin.display(description="status")
    def status(self, policy: Policy) -> str:
        if policy._state.adding:
            return NOTHING
        return _problem(policy) or ("ok" if policy.schedule.enabled else "disabled")

    @admin.display(description="source")
    def origin(self, policy: Policy) -> str:
        if not policy.entry:
            return "the admin, a fixture or a script"
        if policy.removed_at:
            return format_html(
                "CELERY_BEAT_SCHEDULE of the project {}, until {}. Its entry is gone: beat has disabled it, and deletes"
                " it after {} days. If the entry returns, so does the schedule. Enable it to keep it as your own.",
                *(policy.owner, moment(policy.removed_at), KEPT_FOR.days),
            )
        return (
            f"CELERY_BEAT_SCHEDULE, or add_periodic_task in code, of the project {policy.owner or 'that defines it'}."
            " When beat starts, it applies changes of its entry, and disables the schedule if the entry is gone."
            " Changes never enable, disable, pause or resume the schedule."
        )

    @admin.display(description="health")
    def health(self, policy: Policy) -> str:
        return NOTHING if policy._state.adding else alerts.health_of(policy.schedule, self.viewer)

    @admin.display(description="last alerts")
    def alerts(self, policy: Policy) -> str:
        return NOTHING if policy._state.adding else alerts.last_of(policy.schedule)


class HealthFilter(ChosenFilter):
    title = "health"
    parameter_name = "health"

    def conditions(self) -> dict[str, Q]:
        return {each.value: descriptions.has_health(each) for each in Health if each != Health.DOWN}

    def lookups(self, request: HttpRequest, _rows: Any) -> list[tuple[str, str]]:
        """Without any, Django leaves the filter out, and ignores it in the address."""
        return [(name, descriptions.title(name)) for name in self.conditions()] if alerts.may_view(request) else []


class StatusFilter(ChosenFilter):
    title = "status"
    parameter_name = "condition"

    def lookups(self, _request: HttpRequest, _schedules: Any) -> list[tuple[str, str]]:
        return [
            ("paused", "paused"),
            ("flagged", "cannot run"),
            ("from_settings", "from the settings"),
            ("removed", "gone from the settings"),
        ]

    def conditions(self) -> dict[str, Q]:
        return {name: status.CONDITIONS[name] for name, _ in self.lookup_choices}


admin.site.unregister(PeriodicTask)


@admin.register(PeriodicTask)
class ScheduleAdmin(RightsAdmin):
    form = ScheduleForm
    inlines = (PolicyInline,)
    actions = (
        *(actions.run_now, actions.enable, actions.disable),
        *(actions.pause, actions.resume, actions.mute, actions.skip_next, actions.backfill),
    )
    without_right = ("mute",)
    list_display = ("name", "enabled", "when", "next_due", "last_outcome", "lateness", "duration", "runs")
    list_filter = ("enabled", StatusFilter, HealthFilter)
    list_select_related = ("policy", *KINDS)
    search_fields = ("name", "task")
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "regtask", "task", "enabled", "description")}),
        (ARGUMENTS, {"fields": ("args", "kwargs")}),
        ("Timing", {"fields": ("interval", "crontab", "solar", "clocked", "start_time", "expires", "one_off")}),
        ("Message", {"fields": ("expire_seconds", "queue", "priority", "headers")}),
    )

    class Media:
        js = ("jobs/schedule.js",)

    def has_mute_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("jobs.add_silence")

    def changelist_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        page = super().changelist_view(request, *args, **options)
        _show_broken_modules(request)
        return page

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        page = super().changeform_view(request, *args, **options)
        _show_broken_modules(request)
        return page

    def get_urls(self) -> list[Any]:
        return [*happened.paths(self), *super().get_urls()]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        if task := self._typed_job(request, obj):
            options["form"] = typed.form_for(self.form, task)
        form: Any = super().get_form(request, obj, change, **options)
        form.actor = actor_of(request)  # Django makes a class for each request
        return form

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        task = self._typed_job(request, obj)
        names = typed.names(typed.form_for(self.form, task)) if task else ["args", "kwargs"]
        fields: dict[Any, list[Any]] = {title: list(options["fields"]) for title, options in self.fieldsets} | {
            ARGUMENTS: names
        }
        if obj and not self.has_change_permission(request, obj):
            fields[None].remove("regtask")  # a list to choose from: it shows no value
        if obj:
            fields["Timing"].append("timing_shared")
            fields["Message"] += _stored_destination(obj)
        return [(title, {"fields": shown}) for title, shown in fields.items()]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """A schedule from the settings keeps its name: beat would install its entry again under the old one."""
        names = [*super().get_readonly_fields(request, obj), *(["timing_shared", *DESTINATION] if obj else [])]
        return [*names, "name"] if obj and Policy.objects.filter(schedule=obj).exclude(entry="").exists() else names

    def get_object(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        schedule: Any = super().get_object(request, *args, **options)
        if schedule:
            schedule.viewer = request.user  # `timing_shared` offers what this user may do
        return schedule

    @admin.display(description="timing used by")
    def timing_shared(self, schedule: Any) -> str:
        return shared(schedule, schedule.viewer)

    def _typed_job(self, request: HttpRequest, schedule: PeriodicTask | None) -> Any:
        """The job, if this page has a field for each of its arguments; None if it takes them as JSON."""
        may = self.has_change_permission(request, schedule) if schedule else self.has_add_permission(request)
        data = request.POST if request.method == "POST" else request.GET
        name = data.get("regtask") or data.get("task") or (schedule.task if schedule else "")
        task = find_task(name)
        if not may or task is None or model_of(task) is None:
            return None
        if request.method == "POST":
            return task if typed.MARK in data else None
        can_be_shown = (
            schedule is None
            or schedule.task != name
            or typed.stored_of(task, schedule.args, schedule.kwargs) is not None
        )
        return task if can_be_shown else None

    def save_model(self, *_: Any) -> None:
        """`save_related` saves the schedule with its policy, as one act."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """A schedule that was disabled while a user edited other fields stays disabled."""
        schedule = form.instance
        with acts.saving(schedule, actor_of(request)):
            if change and "enabled" not in form.changed_data:
                schedule.enabled = PeriodicTask.objects.values_list("enabled", flat=True).get(pk=schedule.pk)
            super().save_model(request, schedule, form, change)
            super().save_related(request, form, formsets, change)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        acts.delete(PeriodicTask.objects.filter(pk=obj.pk), actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        acts.delete(queryset, actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        tell_of_return(request, PeriodicTask.objects.filter(pk__in=[schedule.pk for schedule in objs]))
        return without_backfills(super().get_deleted_objects(objs, request))

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        return status.with_last_run(super().get_queryset(request), *LAST_RUN)

    @admin.display(description="when")
    def when(self, schedule: PeriodicTask) -> str:
        return str(schedule.scheduler or NOTHING)

    @admin.display(description="next due", ordering="policy__next_due_at")
    def next_due(self, schedule: PeriodicTask) -> str:
        policy: Policy | None = getattr(schedule, "policy", None)
        if policy is None:
            return BEING_COMPUTED
        due = moment(policy.next_due_at) if policy.next_due_at else NO_FURTHER_RUNS
        problem = _problem(policy)
        return format_html("{} {}", due, problem) if problem else due

    @admin.display(description="last outcome")
    def last_outcome(self, schedule: Any) -> str:
        if not schedule.last_run_state:
            return "no run yet"
        return format_html("{} {}", state(schedule.last_run_state), schedule.last_run_reason)

    @admin.display(description="late by")
    def lateness(self, schedule: Any) -> str:
        return between(schedule.last_run_due_at, schedule.last_run_started_at)

    @admin.display(description="took")
    def duration(self, schedule: Any) -> str:
        return between(schedule.last_run_started_at, schedule.last_run_finished_at)

    @admin.display(description="runs")
    def runs(self, schedule: PeriodicTask) -> SafeString:
        address = reverse("admin:jobs_run_changelist")
        return format_html('<a href="{}?schedule__id__exact={}">show</a>', address, schedule.pk)


def _choices_of_queues(stored: str) -> list[tuple[str, str]]:
    """The queues of the settings, of jobs and of live workers, and the stored one."""
    consumed = Node.objects.consumers().queues()
    names = {name for name in {*queues.defined(current_app), *consumed} if not reserved(name)} | {stored} - {""}
    hints = {name: "" if name in consumed else " (no live worker consumes it)" for name in names}
    return [("", "as the job says"), *((name, f"{name}{hints[name]}") for name in sorted(names))]


def _stored_destination(schedule: Any) -> list[str]:
    return [name for name in DESTINATION if getattr(schedule, name)]


def _show_broken_modules(request: HttpRequest) -> None:
    """On a page that lets users choose from all other jobs. After a POST, the next page shows them."""
    find_task("")  # imports every module that can be imported
    for sentence in discovery.broken() if request.method == "GET" else ():
        messages.error(request, f"{sentence}. Mend it and restart.")


def _problem(policy: Policy) -> str:
    """Why the schedule does not run now: it cannot, or it is paused; empty if neither."""
    if policy.invalid_reason:
        return format_html("{} {}", state("flagged", "cannot run"), policy.invalid_reason)
    if policy.pause and policy.pause.covers(timezone.now()):
        return format_html("{}{}", state("paused"), policy.pause.sentence.removeprefix("paused"))
    return ""


def _upcoming_moment(due_at: datetime, reason: str, zone: ZoneInfo | None) -> SafeString:
    """A due moment in the site's zone, also in the schedule's zone if it differs, and why it will not run then."""
    local = (
        f" = {timezone.localtime(due_at, zone):%Y-%m-%d %H:%M:%S} {zone}"
        if zone and str(zone) != timezone.get_current_timezone_name()
        else ""
    )
    skipped = format_html(" {} {}", state("skipped", "will not run then:"), reason) if reason else ""
    return format_html("{}{}{}", moment(due_at), local, skipped)
