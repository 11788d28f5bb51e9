"""Who may read the metrics? A client with METRICS_TOKEN, in METRICS_NETWORKS; if both are set, both must hold.

Its one rule: without either setting, there is no such page. The answer is then that of any unknown address.
Limits: Prometheus reaches a process by its IP address and often without HTTPS, so the middleware stands before those
checks. A token that travels without HTTPS can be read on its way.
"""

from collections.abc import Callable
from hmac import compare_digest

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from jobs.web.metrics import scrape
from project.login import client_of

PATH = "/metrics"
WITHOUT = (
    "Send the token of METRICS_TOKEN with this request: in the header Authorization, after “Bearer” and a space.\n"
)
OUTSIDE = "The network of this client is none of METRICS_NETWORKS.\n"


def served(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """The middleware that answers scrapes."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path != PATH or not (settings.METRICS_TOKEN or settings.METRICS_NETWORKS):
            return get_response(request)
        return _refusal(request) or scrape(request)

    return middleware


def _refusal(request: HttpRequest) -> HttpResponse | None:
    if settings.METRICS_NETWORKS and not _is_inside(request):
        return HttpResponse(OUTSIDE, status=403, content_type="text/plain; charset=utf-8")
    if settings.METRICS_TOKEN and not compare_digest(_token_of(request), settings.METRICS_TOKEN.encode()):
        headers = {"WWW-Authenticate": 'Bearer realm="metrics"'}
        return HttpResponse(WITHOUT, status=401, content_type="text/plain; charset=utf-8", headers=headers)
    return None


def _is_inside(request: HttpRequest) -> bool:
    client = client_of(request)
    return client is not None and any(client in network for network in settings.METRICS_NETWORKS)


def _token_of(request: HttpRequest) -> bytes:
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
