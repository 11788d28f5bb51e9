"""Which changes of health were there, and who was told? Read-only. The page of a schedule shows its own, too.

Its one rule: users without the permission to view alerts see no health, neither here nor on the pages of schedules.
"""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django_celery_beat.models import PeriodicTask

from jobs.admin.display import NOTHING, moment, state
from jobs.admin.guard import CappedPaginator, ChosenFilter, GuardedAdmin, KnownChoices, ReadOnlyAdmin
from jobs.alerts import descriptions
from jobs.models import Alert, Channel, Notice, Run
from jobs.rules.health import Health

SHOWN = 5  # alerts of a schedule
# How a state of a notice is coloured.
COLOURS = {
    Notice.State.WAITING: "waiting",
    Notice.State.SENDING: "running",
    Notice.State.SENT: "succeeded",
    Notice.State.FAILED: "failed",
    Notice.State.DROPPED: "skipped",
}


def health(name: str) -> SafeString:
    """A health in its colour."""
    colour = {Health.OK: "succeeded", Health.PAUSED: "paused", Health.SHORT: "skipped"}.get(name, "failed")  # type: ignore[call-overload]
    return state(colour, descriptions.title(name))


def notice(row: Notice) -> SafeString:
    """The state of a notice, when it was reached, and its error."""
    shown = state(COLOURS.get(row.state, ""), row.state)  # type: ignore[call-overload]
    when = moment(row.done_at) if row.done_at else f"due {timezone.localtime(row.not_before):%H:%M:%S}"
    return format_html("{} {} {}", shown, when, row.error)


def may_view(request: HttpRequest) -> bool:
    return request.user.has_perm("jobs.view_alert")


def health_of(schedule: PeriodicTask, user: Any) -> str:
    """The health of a schedule with its sentence and since when it is so; its silence, or a link to mute it."""
    found = descriptions.condition_of(schedule)
    shown = health(found.health)
    if found.health != Health.OK:
        shown = format_html("{} since {}: {}", shown, moment(found.since), found.sentence)
    if found.run:
        shown = format_html("{} {}", shown, _link_to_run(found.run))
    if silence := descriptions.silence_of(schedule, timezone.now()):
        muted = format_html("{} until {} by {}", state("paused", "muted"), moment(silence.ends_at), silence.created_by)
        return format_html("{}<br>{}{}", shown, muted, f": {silence.reason}" if silence.reason else "")
    if not user.has_perm("jobs.add_silence"):
        return shown
    address = f"{reverse('admin:jobs_silence_add')}?schedule={schedule.pk}"
    return format_html('{} <a href="{}">Mute …</a>', shown, address)


def last_of(schedule: PeriodicTask) -> str:
    """The last alerts of a schedule, and a link to all."""
    rows = Alert.objects.filter(schedule=schedule.pk).order_by("-id")[:SHOWN]
    lines = ((_link(row), health(row.before), health(row.health), row.sentence) for row in rows)
    shown = format_html_join(mark_safe("<br>"), "{} {} → {} {}", lines)
    if not shown:
        return NOTHING
    address = f"{reverse('admin:jobs_alert_changelist')}?schedule__id__exact={schedule.pk}"
    return format_html('{}<br><a href="{}">show all</a>', shown, address)


def _link(alert: Alert) -> SafeString:
    return format_html('<a href="{}">{}</a>', reverse("admin:jobs_alert_change", args=[alert.pk]), moment(alert.at))


def _link_to_run(run: Any) -> SafeString:
    return format_html('<a href="{}">run</a>', reverse("admin:jobs_run_change", args=[run]))


class TimeFilter(ChosenFilter):
    title = "time"
    parameter_name = "seen"

    def conditions(self) -> dict[str, Q]:
        now = timezone.now()
        lengths = {"last hour": 1, "last day": 24, "last 7 days": 7 * 24, "last 30 days": 30 * 24}
        return {name: Q(at__gte=now - timedelta(hours=hours)) for name, hours in lengths.items()}


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin, GuardedAdmin):
    change_form_template = "admin/jobs/entry_page.html"  # without History
    linked_by = ("schedule__id__exact",)
    list_display = ("when", "name", "change", "sentence", "since_", "count", "told")
    list_display_links = ("when",)
    list_filter = (("health", KnownChoices), TimeFilter)
    fields = ("when", "name_", "change", "sentence", "expected", "since_", "count", "due", "run_", "told_in_full")
    search_fields = ("^name",)
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Alert]:
        rows: QuerySet[Alert] = super().get_queryset(request).prefetch_related("notices__channel")
        return rows

    @admin.display(description="when", ordering="id")
    def when(self, alert: Alert) -> str:
        return moment(alert.at)

    @admin.display(description="name")
    def name_(self, alert: Alert) -> str:
        """The name then, which leads to the schedule."""
        if alert.schedule_id is None:
            return alert.name
        address = reverse("admin:django_celery_beat_periodictask_change", args=[alert.schedule_id])
        return format_html('<a href="{}">{}</a>', address, alert.name)

    @admin.display(description="change")
    def change(self, alert: Alert) -> SafeString:
        return format_html("{} → {}", health(alert.before), health(alert.health))

    @admin.display(description="since")
    def since_(self, alert: Alert) -> str:
        return moment(alert.since)

    @admin.display(description="due")
    def due(self, alert: Alert) -> str:
        return moment(alert.due_at)

    @admin.display(description="run")
    def run_(self, alert: Alert) -> str:
        if alert.run is None:
            return NOTHING
        return _link_to_run(alert.run) if Run.objects.filter(pk=alert.run).exists() else f"{alert.run} (deleted)"

    @admin.display(description="told to")
    def told(self, alert: Alert) -> str:
        """The channels, each in the colour of its notice."""
        rows = alert.notices.all()
        lines = ((state(COLOURS.get(row.state, ""), row.channel.name),) for row in rows)  # type: ignore[call-overload]
        return format_html_join(mark_safe(" "), "{}", lines) or NOTHING

    @admin.display(description="told to")
    def told_in_full(self, alert: Alert) -> str:
        lines = ((_channel(row.channel), notice(row)) for row in alert.notices.all())
        return format_html_join(mark_safe("<br>"), "{}: {}", lines) or NOTHING


def _channel(channel: Channel) -> SafeString:
    return format_html('<a href="{}">{}</a>', reverse("admin:jobs_channel_change", args=[channel.pk]), channel.name)
