"""What do all operations of the API share? The actor of a request, types of values, the reading and writing of bodies.

Its one rule: what no database row or job could hold is refused here, with a sentence, before any function sees it.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponseBase, RawPostDataException, UnreadablePostError
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.parser import Parser
from ninja.renderers import JSONRenderer
from ninja.responses import NinjaJSONEncoder
from ninja.security.base import AuthBase
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from jobs.messages.message import Decoder
from jobs.models.audit import Actor, Door
from jobs.rules.errors import Conflict, Forbidden, Invalid
from jobs.web.api import problems

LARGEST_KEY = 2**31 - 1  # of a row
LONGEST_KEY = 120  # characters of an Idempotency-Key
NOT_JSON = "The body must be JSON: send it with the header Content-Type: application/json."


class MissingError(LookupError):
    """404: the row does not exist, or the token may not see it. The message names it."""


def _in_one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("remove the control characters and the broken Unicode")
    return text


def _moment(value: Any) -> datetime:
    """A moment of a request, in UTC; one of a row as it is."""
    if isinstance(value, datetime):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("write the moment in ISO 8601, such as 2026-12-24T18:00:00+01:00") from None
    if moment.tzinfo is None:
        raise ValueError("add the offset of the moment, such as Z or +01:00 (in an address, + is %2B)")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("choose a moment in the years 1 to 9999") from None


Text = Annotated[str, Field(max_length=200), AfterValidator(_in_one_line)]  # a name or a short sentence, in one line
Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY), AfterValidator(_in_one_line)]
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
RowId = Annotated[int, Field(ge=1, le=LARGEST_KEY)]  # the key of a schedule, a token or the like


class In(Schema):
    """A body. A name that it does not know is refused: otherwise a typing error would go unnoticed."""

    model_config = ConfigDict(extra="forbid")


class Token(AuthBase):
    """`Authorization: Bearer`; `jobs.web.tokens` has checked it."""

    openapi_type = "http"
    openapi_scheme = "bearer"

    def __call__(self, request: HttpRequest) -> Any:
        return getattr(request, "token", None)


class Session(AuthBase):
    """The session of a browser. Django checks the CSRF token of its requests."""

    openapi_type = "apiKey"
    openapi_in = "cookie"
    openapi_name = settings.SESSION_COOKIE_NAME
    csrf = True  # the page of the document sends the CSRF token

    def __call__(self, request: HttpRequest) -> Any:
        return request.user if request.user.is_authenticated and request.user.is_active else None


class Bodies(Parser):
    """Reads only JSON that every reader accepts. Raises HttpError with a sentence."""

    def parse_body(self, request: HttpRequest) -> Any:
        if request.content_type != "application/json":
            raise HttpError(415, NOT_JSON)
        try:
            return Decoder().decode(request.body.decode())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise HttpError(400, f"The body is not valid JSON: {error}.") from error


class Encoder(NinjaJSONEncoder):
    """Writes moments with their microseconds, which Django would cut: a moment that is sent back means the same."""

    def default(self, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else super().default(value)


class Renderer(JSONRenderer):
    encoder_class = Encoder


def actor_of(request: HttpRequest) -> Actor:
    """The user of the request, with the token if it came with one."""
    return Actor.of_user(request.user, Door.API, getattr(request, "token", None))  # set by jobs.web.tokens


def needs(permission: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Refuse a request whose user or token lacks the permission, such as `jobs.view_run`. For reading operations."""

    def guarding(operation: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(operation)
        def guarded(request: HttpRequest, *args: Any, **values: Any) -> Any:
            actor_of(request).check(permission)
            return operation(request, *args, **values)

        return guarded

    return guarding


def refuse_unknown_parameters(run: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Refuse names in the address that the operation does not know: an ignored filter would select too much."""
    queries = [model for model in run.__self__.models if model.__ninja_param_source__ == "query"]  # type: ignore[attr-defined]
    known = {name for model in queries for name in model.__ninja_flatten_map__}

    @wraps(run)
    def checked(request: HttpRequest, **values: Any) -> HttpResponseBase:
        unknown = sorted(request.GET.keys() - known) if request.user.is_authenticated else []
        if not unknown:
            return run(request, **values)
        names = ", ".join(sorted(known)) or "none"
        faults = [{"place": f"query/{name}", "detail": "unknown parameter"} for name in unknown[:10]]
        return problems.answer(422, f"The address has an unknown parameter. Known ones: {names}.", faults)

    return checked


def handle_errors(api: NinjaAPI) -> None:
    """Answer the errors of operations with problem documents. Unknown errors are Django's to log."""
    for kind, answer in ANSWERS.items():
        api.add_exception_handler(kind, answer)


def _raise(_: HttpRequest, error: Exception) -> Any:
    raise error


def _http(_: HttpRequest, error: Any) -> HttpResponseBase:
    """ninja hides the error of a body in an error of its own."""
    known = error.__cause__ if isinstance(error.__cause__, HttpError) else error
    return problems.answer(known.status_code, str(known))


def _invalid(_: HttpRequest, error: Any) -> HttpResponseBase:
    faults = [
        {"place": _place(each["loc"]), "detail": each["msg"].removeprefix("Value error, ")} for each in error.errors
    ]
    sentence = "; ".join(f"{fault['place']}: {fault['detail']}" for fault in faults)
    return problems.answer(422, f"{sentence}.", faults)


def _place(loc: Sequence[str | int]) -> str:
    """Where a fault is; ninja also names the parameter of the operation that holds the whole body."""
    return "/".join(map(str, loc[:1] if loc[0] == "body" else loc[:2])) + "".join(f"/{each}" for each in loc[2:])


def _plain(status: int, sentence: str = "") -> Callable[[HttpRequest, Any], HttpResponseBase]:
    return lambda _, error: problems.answer(status, sentence or str(error))


ANSWERS: dict[type[Exception], Callable[[HttpRequest, Any], Any]] = {
    Exception: _raise,
    HttpError: _http,
    AuthenticationError: lambda *_: problems.unauthorized(),
    ValidationError: _invalid,
    Invalid: _plain(422),
    Conflict: _plain(409),
    Forbidden: _plain(403),
    MissingError: _plain(404),
    RawPostDataException: _plain(415, NOT_JSON),
    RequestDataTooBig: _plain(413, "The body is too large: send less."),
    UnreadablePostError: _plain(400, "The request did not arrive completely: send it again."),
}
