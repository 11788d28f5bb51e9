"""Which requests reach the admin's pages? Django's admin site, with each app's pages guarded like our own.

Its one rule: every app registers its pages with this site, which adds the guard (jobs/admin/guard.py) to each.
"""

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.contrib.admin.apps import AdminConfig
from django.contrib.admin.options import TO_FIELD_VAR
from django.contrib.auth.signals import user_login_failed
from django.http import HttpRequest, HttpResponseBadRequest

NUL = "\0"  # no database stores it as text


class Config(AdminConfig):
    """Django's admin app with `Site` as its site."""

    default_site = "project.admin.Site"


class Site(admin.AdminSite):
    """Guards the pages of every app, including those of Django and other packages."""

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        from jobs.admin.guard import guarded  # late: models cannot be imported yet

        super().register(model_or_iterable, guarded(admin_class or admin.ModelAdmin), **options)

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Count a wrong old password like a failed login, so that a stolen session cannot guess it."""
        from axes.handlers.proxy import AxesProxyHandler  # late, as in `register`

        from project import login

        credentials = {"username": request.user.get_username()}
        if request.method == "POST" and not AxesProxyHandler.is_allowed(request, credentials):
            return login.locked_out(request)
        page = super().password_change(request, extra_context)
        form = (getattr(page, "context_data", None) or {}).get("form")
        if form is not None and form.has_error("old_password", "password_incorrect"):
            user_login_failed.send(sender=__name__, credentials=credentials, request=request)
        return page

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Any:
        def guarded_view(request: HttpRequest, *args: Any, **options: Any) -> Any:
            if sentence := _refusal(request):
                return HttpResponseBadRequest(f"{sentence}\n", content_type="text/plain; charset=utf-8")
            return view(request, *args, **options)

        return super().admin_view(guarded_view, cacheable)


def _refusal(request: HttpRequest) -> str:
    """Why the admin cannot answer the request; empty if it can. Django's pages would fail."""
    if NUL in request.path or any(NUL in text for pair in request.GET.lists() for text in (pair[0], *pair[1])):
        return "This address contains a NUL character: correct the address."
    if any(values.get(TO_FIELD_VAR) == "" for values in (request.GET, request.POST)):
        return f"{TO_FIELD_VAR} is empty: remove it from the address or the form, or name a column."
    return ""
