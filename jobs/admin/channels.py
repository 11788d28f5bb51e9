"""Channels: users say who is told about which changes of health, send a test message, and see what was sent lately.

Its one rule: a form refuses a channel that could tell nothing, with the sentence of the act. No page shows the address
of a channel that is not mail: a channel names the variable that holds it.
"""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.widgets import AdminTimeWidget
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from jobs.admin.alerts import notice
from jobs.admin.display import NOTHING, moment, state
from jobs.admin.guard import ActForm, GuardedAdmin, actor_of
from jobs.admin.tokens import Lines
from jobs.alerts import acts, channels, descriptions
from jobs.models import Channel, Notice
from jobs.rules.errors import Forbidden, Invalid
from jobs.rules.health import TITLES, Health

SHOWN = 20  # notices of a channel


class ChannelForm(ActForm):
    addresses = Lines(required=False, help_text="Of a mail channel: its addresses, one per line.")
    url = forms.CharField(
        required=False,
        max_length=100,
        label="Variable",
        help_text="Of the other kinds: NAME, if the variable CHANNEL_URL_NAME holds the address. The processes of beat"
        " and of this site need it.",
    )
    patterns = Lines(
        required=False,
        label="Only these",
        help_text="Names of schedules or jobs, or patterns such as Invoices* or billing.*, one per line. Empty: all.",
    )
    healths = forms.MultipleChoiceField(
        required=False,
        label="Only when",
        widget=forms.CheckboxSelectMultiple,
        choices=[(name, TITLES[Health(name)]) for name in acts.HEALTHS],
        help_text="None chosen: all of them. A recovery is always told.",
    )

    class Meta:
        widgets = dict.fromkeys(("quiet_from", "quiet_until"), AdminTimeWidget)

    def validate_constraints(self) -> None:
        """`check_channel` says it better."""

    def check_row(self) -> None:
        acts.check_channel(self.instance)


@admin.register(Channel)
class ChannelAdmin(GuardedAdmin):
    form = ChannelForm
    change_form_template = "admin/jobs/channel_page.html"
    list_display = ("name", "kind", "target", "about", "is_enabled", "sent", "trouble")
    search_fields = ("name",)
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "kind", "addresses", "url", "is_enabled")}),
        ("What it is told about", {"fields": ("patterns", "healths", "of_system")}),
        ("Its readers", {"fields": ("zone", ("quiet_from", "quiet_until"))}),
    )
    readonly_fields = ("sent", "trouble", "told")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        shown = ("What was sent", {"fields": self.readonly_fields})
        return (*super().get_fieldsets(request, obj), *([shown] if obj else []))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        channel = self.get_object(request, unquote(object_id))
        if channel is not None and request.method == "POST" and "test" in request.POST:
            return self._test(request, channel)
        may_test = channel is not None and self.has_change_permission(request, channel)
        if channel is not None and request.method == "GET" and (why := channels.why_not(channel)):
            messages.warning(request, why)
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), "may_test": may_test})

    def _test(self, request: HttpRequest, channel: Channel) -> HttpResponse:
        """Send a test message: outside of the transaction in which Django saves a form."""
        try:
            acts.test_channel(channel, actor_of(request))
        except Forbidden as error:
            raise PermissionDenied(str(error)) from error
        except Invalid as error:
            messages.error(request, f"The test message was not sent. {error}")
        else:
            messages.success(request, f"A test message was sent to “{channel.name}”.")
        return HttpResponseRedirect(reverse("admin:jobs_channel_change", args=[channel.pk]))

    def save_model(self, request: HttpRequest, obj: Channel, _form: Any, _change: bool) -> None:
        acts.save_channel(obj, actor_of(request))

    def delete_model(self, request: HttpRequest, obj: Channel) -> None:
        acts.delete_channels(Channel.objects.filter(pk=obj.pk), actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Channel]) -> None:
        acts.delete_channels(queryset, actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Deleting a channel deletes what it was told, and needs no further permission for that."""
        rows, counts, needed, protected = super().get_deleted_objects(objs, request)
        notices = str(Notice._meta.verbose_name)
        counts = {name: number for name, number in counts.items() if name != Notice._meta.verbose_name_plural}
        return rows, counts, needed - {notices}, protected

    @admin.display(description="goes to")
    def target(self, channel: Channel) -> str:
        return descriptions.target(channel)

    @admin.display(description="told about")
    def about(self, channel: Channel) -> str:
        healths = ", ".join(descriptions.title(each) for each in channel.healths)
        return f"{descriptions.about(channel)}: {healths}" if healths else descriptions.about(channel)

    @admin.display(description="last message", ordering="sent_at")
    def sent(self, channel: Channel) -> str:
        return moment(channel.sent_at) if channel.sent_at else "none yet"

    @admin.display(description="problem")
    def trouble(self, channel: Channel) -> str:
        if not channel.problem:
            return NOTHING
        return format_html(
            "{} since {}: {}", state("failed", "failing"), moment(channel.problem_since), channel.problem
        )

    @admin.display(description="latest")
    def told(self, channel: Channel) -> str:
        """The latest notices, each with its state and error."""
        rows = channel.notices.select_related("alert").order_by("-id")[:SHOWN]
        return format_html_join(mark_safe("<br>"), "{}: {}", ((_subject(row), notice(row)) for row in rows)) or NOTHING


def _subject(row: Notice) -> SafeString | str:
    """The alert or the run that a notice tells of."""
    if row.alert is not None:
        text = f"{row.alert.name} {descriptions.title(row.alert.health)}"
        return format_html('<a href="{}">{}</a>', reverse("admin:jobs_alert_change", args=[row.alert_id]), text)
    if row.run is not None:
        return format_html('{} of a <a href="{}">run</a>', row.event, reverse("admin:jobs_run_change", args=[row.run]))
    return NOTHING
