"""Is this process alive? The first middleware answers. So load balancers may ask by IP address and without HTTPS.

Its one rule: it checks neither the database nor the broker. A web process that answers needs no restart.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase

PATH = "/healthz"


def alive(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """The first middleware: it answers for every host name and scheme."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path == PATH:
            return HttpResponse("ok\n", content_type="text/plain")
        return get_response(request)

    return middleware
