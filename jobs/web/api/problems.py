"""How does the API refuse a request? With a problem document (RFC 9457) whose detail says what to do.

Its one rule: every answer below /api/ with a status of 400 or more is such a document: those of the operations, of
Django and of every middleware. Another answer's text counts as the detail if it is plain text; a page is replaced.
Limits: a server in front of Django writes its own refusals.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_cache_control
from django.utils.deprecation import MiddlewareMixin
from ninja import Field, Schema

log = logging.getLogger(__name__)

ROOT = "/api/"
MEDIA_TYPE = "application/problem+json"
LONGEST_DETAIL = 2_000  # characters
RETRY_SECONDS = 5  # for a database that is away
SENTENCES = {
    400: "This request is malformed: correct it.",
    401: "Send a token with this request: in the header Authorization, after “Bearer” and a space.",
    403: "This request came without the CSRF token of its session: send it as the header X-CSRFToken, or use a token.",
    404: "There is nothing at this address: compare it with those of the document at /api/docs.",
    405: "This address does not take this method.",
    500: "The site could not answer this request because of an error in it: ask its operator to read the log.",
    503: "The database does not answer: try again in a few seconds.",
}


class Fault(Schema):
    """One invalid part of a request."""

    place: str = Field(description="Where it is, such as body/arguments or query/limit.")
    detail: str


class Problem(Schema):
    """Why a request is refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do.")
    errors: list[Fault] = Field(default=[], description="Each invalid part of the request.")


class Problems(MiddlewareMixin):
    """Turns every refusal below /api/ into a problem document, and forbids browsers to store any answer.

    Answers to HEAD lose their bodies.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if not is_of_api(request):
            return response
        if response.status_code >= 400 and response.get("Content-Type") != MEDIA_TYPE:
            response = _rewritten(response)
        if "Cache-Control" not in response:
            patch_cache_control(response, no_store=True, private=True)
        if request.method == "HEAD" and isinstance(response, HttpResponse):
            response.content = b""  # after its length was noted; gunicorn would log a warning, and drop it
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponseBase | None:
        if not is_of_api(request) or not isinstance(error, (OperationalError, InterfaceError)):
            return None
        return unavailable()


def is_of_api(request: HttpRequest) -> bool:
    return request.path_info.startswith(ROOT)


def answer(
    status: int, detail: str = "", errors: Sequence[Mapping[str, str]] = (), headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """A problem document. Without a detail, it has the sentence for its status."""
    problem: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    problem["detail"] = (detail or SENTENCES.get(status, problem["title"]))[:LONGEST_DETAIL]
    if errors:
        problem["errors"] = list(errors)
    return HttpResponse(json.dumps(problem), status=status, content_type=MEDIA_TYPE, headers=dict(headers or {}))


def unauthorized(detail: str = "", error: str = "") -> HttpResponse:
    """401, with the header that names the scheme."""
    scheme = 'Bearer realm="api"' + (f', error="{error}"' if error else "")
    return answer(401, detail, headers={"WWW-Authenticate": scheme})


def unavailable() -> HttpResponse:
    """503, and an entry in the log. Call it while the error of the database is handled."""
    log.warning("The API could not reach the database.", exc_info=True)
    return answer(503, headers={"Retry-After": str(RETRY_SECONDS)})


def _rewritten(response: HttpResponseBase) -> HttpResponse:
    """The same refusal as a problem document. It keeps the headers that say more, such as Allow and Retry-After."""
    is_text = isinstance(response, HttpResponse) and response.get("Content-Type", "").startswith("text/plain")
    is_text = is_text and response.status_code != 500  # with DEBUG on, it is a traceback
    detail = response.content.decode(errors="replace").strip() if is_text else ""  # type: ignore[attr-defined]
    if not detail and response.status_code == 405 and (allowed := response.get("Allow")):
        detail = f"{SENTENCES[405]} It takes {', '.join(sorted(allowed.split(', ')))}."
    problem = answer(response.status_code, detail)
    for name, value in response.items():
        if name.lower() not in {"content-type", "content-length"}:
            problem[name] = value
    problem.cookies = response.cookies
    return problem
