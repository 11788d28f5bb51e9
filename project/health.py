"""Is this process alive? Answered before anything else, so that load balancers may ask by address and without HTTPS.

Its one rule: it asks nothing of the database or the broker. A web process that can say so itself is not to be replaced.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase

PATH = "/healthz"


def alive(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware, the first of all: the host name and the scheme of the question do not matter."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path == PATH:
            return HttpResponse("ok\n", content_type="text/plain")
        return get_response(request)

    return middleware
