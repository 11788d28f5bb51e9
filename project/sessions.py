"""How long does a login last? Until SESSION_IDLE_MINUTES without a request, and never longer than SESSION_DAYS.

Its one rule: the session holds both moments, so no cookie can outlast them. The middleware writes a used session at
most once in `RENEWAL` seconds.
"""

import time
from collections.abc import Callable

from django.conf import settings
from django.contrib.auth import SESSION_KEY, logout
from django.http import HttpRequest, HttpResponseBase

RENEWAL = 300  # seconds
BEGUN, SEEN = "begun_at", "seen_at"  # seconds since 1970


def limited(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Logs a user out whose session is over, before any page sees the user."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if settings.SESSION_COOKIE_NAME in request.COOKIES and SESSION_KEY in request.session:
            _limit(request)
        return get_response(request)

    return middleware


def _limit(request: HttpRequest) -> None:
    now = int(time.time())
    session = request.session
    begun, seen = session.get(BEGUN, now), session.get(SEEN, 0)
    idle = settings.SESSION_IDLE_MINUTES * 60
    if now - begun >= settings.SESSION_COOKIE_AGE or (seen and now - seen >= idle):
        logout(request)
    elif now - seen >= min(RENEWAL, idle // 4):
        session.update({BEGUN: begun, SEEN: now})
