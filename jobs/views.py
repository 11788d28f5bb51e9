"""What can be asked for beside the admin? The statistics, as JSON, by staff.

Its one rule: a door asks one function and renders. Browsers may keep an answer but ask each time whether it still
holds, so that an invalidation reaches them, too; while it holds they are told so (304) and nothing is sent again.
"""

from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.utils.cache import get_conditional_response, patch_cache_control
from django.views.decorators.http import require_safe

from jobs import caching
from jobs import statistics as of_runs


@require_safe
@staff_member_required
def statistics(request: HttpRequest) -> HttpResponseBase:
    """The figures, and how often they were found in the cache; others than staff are sent to the login."""
    figures = of_runs.figures()
    usage = caching.usage(of_runs.NAME)
    counts = usage and {"hits": usage.hits, "misses": usage.misses, "hit_rate": usage.hit_rate}
    response = JsonResponse({**figures, "cache": counts})
    patch_cache_control(response, private=True, max_age=0, must_revalidate=True)
    response["ETag"] = f'W/"{figures["generated_at"]}"'  # weak: the counts of the cache may differ
    return get_conditional_response(request, response["ETag"], response=response) or response
