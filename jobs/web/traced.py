"""Which trace does a request belong to? One of its own, or that of the client that sent a traceparent.

Its one rule: a span names the route and never the path, which may hold a link or a token.
Limits: requests that earlier middleware answers have no span; a streamed answer is written after its span.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from jobs import tracing

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

View = Callable[[HttpRequest], HttpResponseBase]


def traced(get_response: View) -> View:
    """Makes a span of each request, in which the runs that it starts begin."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if not tracing.is_on():
            return get_response(request)
        method = request.method if request.method in METHODS else "_OTHER"
        attributes = {"http.request.method": method}
        with tracing.span(str(method), "server", [request.headers.get(tracing.HEADER)], attributes) as span:
            response = get_response(request)
            span.set_attributes({"http.response.status_code": response.status_code})
            if match := request.resolver_match:
                span.update_name(f"{method} /{match.route}")
                span.set_attributes({"http.route": f"/{match.route}"})
            if response.status_code >= 500:
                tracing.fail_request(span, response.status_code)
            return response

    return middleware
