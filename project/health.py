"""Is this process alive, and can the installation work? Answers to probes, by the first middleware.

Its one rule: load balancers may ask by IP address and without HTTPS. `/livez` checks nothing else: a web process that
answers needs no restart. `/readyz` checks what its runs need (jobs/monitoring/probes.py), in a few seconds at most.
`?exclude=worker&exclude=beat` leaves checks out: a site without workers still serves its pages.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase

from jobs.monitoring import probes
from jobs.rules.errors import Invalid

LIVE, READY = "/livez", "/readyz"


def answered(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """The first middleware: it answers for every host name and scheme."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path == LIVE:
            return _plain("ok")
        if request.path == READY:
            return _readiness(request.GET.getlist("exclude"))
        return get_response(request)

    return middleware


def _readiness(excluded: list[str]) -> HttpResponse:
    try:
        found = probes.not_ready(excluded)
    except Invalid as error:
        return _plain(str(error), 400)
    lines = [f"{name} failed: {why}" if why else f"{name} ok" for name, why in found.items()]
    return _plain("\n".join(lines), 503 if any(found.values()) else 200)


def _plain(text: str, status: int = 200) -> HttpResponse:
    headers = {"Cache-Control": "no-store"}
    return HttpResponse(f"{text}\n", status=status, content_type="text/plain; charset=utf-8", headers=headers)
