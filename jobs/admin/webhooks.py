"""Sources of webhooks, which users add and change, and the webhooks that they have sent, which are read-only.

Its one rule: a form refuses a source whose webhooks could start nothing, and a job that the user may not start. Pages
show the names of keys, never the keys, and bodies with secrets masked.
"""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.db.models.functions import Length
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html

from jobs.admin.display import NOTHING, moment
from jobs.admin.guard import ActForm, CappedPaginator, GuardedAdmin, ReadOnlyAdmin, RightsAdmin, actor_of
from jobs.ledger import webhooks
from jobs.messages import message
from jobs.messages.arguments import startable
from jobs.models import Webhook, WebhookSource
from jobs.models.audit import Actor


class SourceForm(ActForm):
    actor = Actor("code")  # the user of the page
    keys = forms.ChoiceField(help_text="For further names, set WEBHOOK_KEYS_NAME for the web processes.")
    job = forms.ChoiceField(help_text="A job that takes the argument `webhook`, the id of what was sent.")
    arguments = forms.JSONField(
        required=False,
        decoder=message.Decoder,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="Further arguments of the job, as a JSON object.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        jobs = [name for name in startable() if not self.actor.why_not(name)]
        for field, names in {"keys": getattr(settings, "WEBHOOK_KEYS", {}), "job": jobs}.items():
            if field in self.fields:
                offered = sorted({*names, getattr(self.instance, field)} - {""})
                self.fields[field].choices = [("", "–"), *zip(offered, offered, strict=True)]  # type: ignore[attr-defined]

    def clean_arguments(self) -> Any:
        return self.cleaned_data["arguments"] or {}

    def check_row(self) -> None:
        webhooks.check(self.instance, self.actor)


@admin.register(WebhookSource)
class WebhookSourceAdmin(RightsAdmin):
    form = SourceForm
    path_to_job = "job"
    list_display = ("name", "is_enabled", "form", "job", "keys", "refused", "received")
    fields = ("name", "form", "keys", "job", "arguments", "is_enabled")
    readonly_fields = ("address", "refused", "received")
    search_fields = ("name", "job")
    ordering = ("name",)

    def jobs_of(self, row: WebhookSource) -> list[str]:
        return [row.job]

    def get_fields(self, _request: HttpRequest, obj: WebhookSource | None = None) -> Any:
        return (*self.fields, *self.readonly_fields) if obj else self.fields

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        form: Any = super().get_form(request, obj, change, **options)
        form.actor = actor_of(request)  # Django makes a class for each request
        return form

    def save_model(self, request: HttpRequest, obj: WebhookSource, _form: Any, _change: bool) -> None:
        webhooks.save(obj, actor_of(request))

    def delete_model(self, request: HttpRequest, obj: WebhookSource) -> None:
        webhooks.delete([obj], actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[WebhookSource]) -> None:
        webhooks.delete(queryset, actor_of(request))

    @admin.display(description="address")
    def address(self, source: WebhookSource) -> str:
        try:
            return settings.SITE_URL + reverse("hook", args=[source.name])
        except NoReverseMatch:
            return "none: the urls.py of this project does not include jobs.web.hooks"

    @admin.display(description="last refused", ordering="refused_at")
    def refused(self, source: WebhookSource) -> str:
        if source.refused_at is None:
            return "never"
        return format_html("{} {}", moment(source.refused_at), source.refused_reason)

    @admin.display(description="webhooks")
    def received(self, source: WebhookSource) -> str:
        address = reverse("admin:jobs_webhook_changelist")
        return format_html('<a href="{}?source__id__exact={}">show</a>', address, source.pk)


@admin.register(Webhook)
class WebhookAdmin(ReadOnlyAdmin, GuardedAdmin):
    linked_by = ("source__id__exact",)
    list_display = ("received", "source_name", "event", "content_type", "size", "run_")
    fields = ("id", "source_name", "event", "received", "content_type", "size", "run_", "headers", "content")
    search_fields = ("=id", "=event")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Webhook]:
        rows: QuerySet[Webhook] = super().get_queryset(request).defer("body").annotate(length=Length("body"))
        return rows

    @admin.display(description="received", ordering="received_at")
    def received(self, webhook: Webhook) -> str:
        return moment(webhook.received_at)

    @admin.display(description="size")
    def size(self, webhook: Any) -> str:
        return filesizeformat(webhook.length)

    @admin.display(description="run")
    def run_(self, webhook: Webhook) -> str:
        return format_html('<a href="{}">run</a>', reverse("admin:jobs_run_change", args=[webhook.run_id]))

    @admin.display(description="body")
    def content(self, webhook: Webhook) -> str:
        text = webhooks.body_of(webhook)
        return format_html("<pre>{}</pre>", text) if text else NOTHING
