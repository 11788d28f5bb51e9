"""How does a program outside start a job? `POST /hooks/SOURCE`, signed with a key of the source.

Its one rule: an answer says what the sender should do, and nothing about the reasons of this site. 202 means that the
run is committed; senders repeat all others later. Whatever is refused has neither a row nor a run.

    path("hooks/<slug:source>", hooks.receive, name="hook")
"""

import logging
import re

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError
from django.db.transaction import non_atomic_requests
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from jobs.ledger import webhooks
from jobs.ledger.webhooks import Delivery, UnknownSourceError
from jobs.rules.errors import Invalid
from jobs.rules.signatures import LARGEST_BODY, Reason, RefusedError
from jobs.toolkit.uploads import accepts_body

log = logging.getLogger(__name__)

LARGEST = min(LARGEST_BODY, settings.DATA_UPLOAD_MAX_MEMORY_SIZE or LARGEST_BODY)  # bytes
LATER = 60  # seconds
TYPE = re.compile(r"application/(json|[\w.+-]+\+json|x-www-form-urlencoded)", re.ASCII | re.IGNORECASE)


@csrf_exempt
@non_atomic_requests  # Django would begin before the view, and answer 500 without the database
@accepts_body(LARGEST)
@require_POST
def receive(request: HttpRequest, source: str) -> HttpResponse:
    """Start the job of the source, once for each event."""
    if refusal := _unreadable(request):
        return refusal
    try:
        delivery = Delivery(request.headers, request.META.get("CONTENT_TYPE", ""), request.body)
        return JsonResponse({"run": str(webhooks.receive(source, delivery))}, status=202)
    except (UnreadablePostError, RequestDataTooBig):
        return _refused(400, "The request did not arrive completely: send it again.")
    except (UnknownSourceError, RefusedError, Invalid, DatabaseError) as error:
        return _answer_to(error)


def _answer_to(error: Exception) -> HttpResponse:
    match error:
        case UnknownSourceError():
            return _refused(404, "There is no such source of webhooks.")
        case RefusedError(reason=Reason.MALFORMED):
            return _refused(400, "This webhook cannot be read: check its headers and its body.")
        case RefusedError():
            return _refused(401, "This webhook has no valid signature: check the key and the clock of the sender.")
        case DatabaseError():
            known = isinstance(error, (OperationalError, InterfaceError))
            log.error("The ledger took no webhook: %s", error, exc_info=not known, extra={"action": "webhook"})
    response = _refused(503, "This site cannot take the webhook now: send it again later.")
    response["Retry-After"] = str(LATER)
    return response


def _unreadable(request: HttpRequest) -> HttpResponse | None:
    """Refuse a request by its length and its type, before its body is read."""
    length = request.META.get("CONTENT_LENGTH") or ""
    if not length.isdecimal():
        return _refused(411, "Send the length of the body: Content-Length.")
    if len(length) > len(str(LARGEST)) or int(length) > LARGEST:
        return _refused(413, f"Send at most {LARGEST:,} bytes.")
    if not TYPE.fullmatch(request.content_type or ""):
        return _refused(415, "Send JSON, or a form: application/json or application/x-www-form-urlencoded.")
    return None


def _refused(status: int, sentence: str) -> HttpResponse:
    headers = {"WWW-Authenticate": "Signature"} if status == 401 else {}
    response = JsonResponse({"error": sentence}, status=status, headers=headers)
    response._has_been_logged = True  # type: ignore[attr-defined] # Django would log each: forged ones fill a disk
    return response
