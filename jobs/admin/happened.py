"""What did a schedule do at a moment, or why did it not run? A page that asks for the moment, and shows the sentence.

Its one rule: it needs only the permission to view the schedule, and its address holds the moment, so people can pass
the answer on.
"""

from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_celery_beat.models import PeriodicTask

from jobs.monitoring import history

NAME = "jobs_happened"


class MomentForm(forms.Form):
    at = forms.SplitDateTimeField(label="When", widget=AdminSplitDateTime, require_all_fields=True)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["at"].help_text = f"A due moment, or any other one ({timezone.get_current_timezone_name()})."


def paths(schedules: admin.ModelAdmin[Any]) -> list[Any]:
    def page(request: HttpRequest, key: str) -> TemplateResponse:
        return _page(schedules, request, unquote(key))

    return [path("<path:key>/happened/", schedules.admin_site.admin_view(page), name=NAME)]


def link(schedule: PeriodicTask, text: str, at: datetime | None = None) -> SafeString:
    """A link to the page of a schedule, for a moment if it is given."""
    address = reverse(f"admin:{NAME}", args=[schedule.pk])
    if at is not None:
        local = timezone.localtime(at)
        address += "?" + urlencode({"at_0": f"{local:%Y-%m-%d}", "at_1": f"{local:%H:%M:%S}"})
    return format_html('<a href="{}">{}</a>', address, text)


def _page(schedules: admin.ModelAdmin[Any], request: HttpRequest, key: str) -> TemplateResponse:
    if not schedules.has_view_permission(request):
        raise PermissionDenied
    schedule = schedules.get_object(request, key)
    if schedule is None:
        raise Http404("There is no such schedule.")
    form = MomentForm(request.GET or None)
    answer = history.what_happened(schedule, form.cleaned_data["at"]) if form.is_valid() else None
    neighbours = [("earlier", answer.before), ("later", answer.after)] if answer else []
    context = {
        **schedules.admin_site.each_context(request),
        "title": "What happened?",
        "schedule": schedule,
        "form": form,
        "media": schedules.media + form.media,
        "answer": answer,
        "may_view_run": request.user.has_perm("jobs.view_run"),
        "neighbours": [link(schedule, _shown(word, at), at) for word, at in neighbours if at],
    }
    return TemplateResponse(request, "admin/jobs/happened.html", context)


def _shown(word: str, at: datetime) -> str:
    return f"{word}: {timezone.localtime(at):%Y-%m-%d %H:%M:%S}"
