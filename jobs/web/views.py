"""What can be asked for beside the admin? A stored file, by whoever has a link to it; the statistics, by staff.

Its one rule: a door parses, asks one function and renders. Browsers may keep statistics but ask each time whether they
still hold, so that an invalidation reaches them, too; while they hold, nothing is sent again (304).
"""

from django.contrib.admin.views.decorators import staff_member_required
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.cache import get_conditional_response, patch_cache_control
from django.views.decorators.http import require_safe

from jobs.cache import shared
from jobs.monitoring import statistics as of_runs
from jobs.toolkit import files


@require_safe
def download(_: HttpRequest, token: str) -> HttpResponseBase:
    """A stored file; always to be saved, never to be shown as a page of this site."""
    try:
        row = files.of_link(token)
        content = row.file.open("rb")
    except files.NoFileError as error:
        return _nothing(str(error))
    except OSError:
        return _nothing("This file cannot be read at present: tell whoever runs this site.")
    response = FileResponse(content, as_attachment=True, filename=row.name, content_type=row.content_type)
    patch_cache_control(response, private=True, no_store=True)
    return response


def _nothing(why: str) -> HttpResponse:
    return HttpResponse(f"{why}\n", status=404, content_type="text/plain; charset=utf-8")


@require_safe
@staff_member_required
def statistics(request: HttpRequest) -> HttpResponseBase:
    """The figures, and how often they were found in the cache; others than staff are sent to the login."""
    figures = of_runs.figures()
    usage = shared.usage(of_runs.NAME)
    counts = usage and {"hits": usage.hits, "misses": usage.misses, "hit_rate": usage.hit_rate}
    response = JsonResponse({**figures, "cache": counts})
    patch_cache_control(response, private=True, max_age=0, must_revalidate=True)
    response["ETag"] = f'W/"{figures["generated_at"]}"'  # weak: the counts of the cache may differ
    return get_conditional_response(request, response["ETag"], response=response) or response
