"""What does the site serve besides the admin? A stored file to anyone with its link, and the statistics to staff.

Its one rule: a view parses, calls one function and renders. Browsers may store the statistics but must revalidate them
with each request. So an invalidation reaches them, too. Unchanged ones are answered with 304.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps

from django.contrib.auth.views import redirect_to_login
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.urls import NoReverseMatch, reverse
from django.utils.cache import get_conditional_response, patch_cache_control
from django.views.decorators.http import require_safe

from jobs.cache import shared
from jobs.monitoring import statistics as of_runs
from jobs.toolkit import files

USUAL_ADMIN = "/admin/"
View = Callable[[HttpRequest], HttpResponseBase]


def for_staff(view: View) -> View:
    """Redirect non-staff users to the login page. Without it, or if ADMIN_PATH hides it, answer them with 404."""

    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponseBase:
        if request.user.is_active and getattr(request.user, "is_staff", False):
            return view(request)
        with suppress(NoReverseMatch):
            if reverse("admin:index") == USUAL_ADMIN:
                return redirect_to_login(request.get_full_path(), reverse("admin:login"))
        raise Http404

    return guarded


@require_safe
@for_staff
def home(_: HttpRequest) -> HttpResponseBase:
    """Redirect to the admin's first page."""
    return redirect("admin:index")


@require_safe
def download(_: HttpRequest, token: str) -> HttpResponseBase:
    """A stored file, always as a download. Browsers must not show it as a page of this site."""
    try:
        row = files.of_link(token)
        content = row.file.open("rb")
    except files.NoFileError as error:
        return _not_found(str(error))
    except OSError:
        return _not_found("This file cannot be read at present: tell the operator of this site.")
    response = FileResponse(content, as_attachment=True, filename=row.name, content_type=row.content_type)
    patch_cache_control(response, private=True, no_store=True)
    return response


def _not_found(why: str) -> HttpResponse:
    return HttpResponse(f"{why}\n", status=404, content_type="text/plain; charset=utf-8")


@require_safe
@for_staff
def statistics(request: HttpRequest) -> HttpResponseBase:
    """The figures, and the hits and misses of their cache. Redirects non-staff users to the login page."""
    figures = of_runs.figures()
    usage = shared.usage(of_runs.NAME)
    counts = usage and {"hits": usage.hits, "misses": usage.misses, "hit_rate": usage.hit_rate}
    response = JsonResponse({**figures, "cache": counts})
    patch_cache_control(response, private=True, max_age=0, must_revalidate=True)
    response["ETag"] = f'W/"{figures["generated_at"]}"'  # weak: the cache counts may differ
    return get_conditional_response(request, response["ETag"], response=response) or response
