"""Who sends a request to the API? The user of its token, or of its session; the middleware stands before the uploads.

Its one rule: an unknown sender changes nothing and sends no body. A request with a token is that of the token's user,
also beside a session, and needs no CSRF token, because no browser adds a token by itself.
"""

from collections.abc import Callable
from math import ceil

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from jobs.models.tokens import ApiToken
from jobs.web.api import problems

LONGEST_SECRET = 200  # characters
SAFE = {"GET", "HEAD", "OPTIONS"}
INVALID = "This token is unknown, revoked or expired, or its user is disabled: ask for a new one."


def admitted(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Sets `request.token` (or None) and `request.user` for the paths of the API."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        request.token = None  # type: ignore[attr-defined] # ours
        if not problems.is_of_api(request):
            return get_response(request)
        return _refusal(request) or get_response(request)

    return middleware


def _refusal(request: HttpRequest) -> HttpResponse | None:
    secret = _secret_of(request)
    if secret is None:
        return None if request.method in SAFE or request.user.is_authenticated else problems.unauthorized()
    try:
        return _admit(request, secret)
    except (OperationalError, InterfaceError):
        return problems.unavailable()


def _admit(request: HttpRequest, secret: str) -> HttpResponse | None:
    if not 0 < len(secret) <= LONGEST_SECRET:
        return problems.unauthorized(INVALID, "invalid_token")
    admission = ApiToken.objects.admit(secret)
    if admission.retry_after:
        seconds = max(1, ceil(admission.retry_after))
        sentence = f"This token has used up its requests: try again in {seconds} s."
        return problems.answer(429, sentence, headers={"Retry-After": str(seconds)})
    if admission.token is None:
        return problems.unauthorized(INVALID, "invalid_token")
    request.user, request.token = admission.token.user, admission.token  # type: ignore[attr-defined] # as above
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined] # what Django's CSRF check reads
    return None


def _secret_of(request: HttpRequest) -> str | None:
    """The text after `Bearer`; None for a request without it, also if a proxy added another scheme."""
    scheme, _, secret = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
