"""Which id has a request? That of the proxy in front (X-Request-ID), or else a new one; the answer names it, too.

Its one rule: only a proxy may choose an id (BEHIND_PROXY), and only a harmless one (jobs.messages.request_ids). The log
lines of the request, of the runs that it starts and of their steps have it as `request_id`.
"""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from jobs.messages import request_ids

HEADER = "X-Request-ID"


def identified(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Gives each request its id."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get(HEADER) if settings.BEHIND_PROXY else None
        request_id = request_ids.checked(given) or request_ids.new()
        setattr(request, request_ids.KEY, request_id)  # for lines that Django logs after all middleware
        with request_ids.within(request_id):
            response = get_response(request)
        response.headers[HEADER] = request_id
        return response

    return middleware
