"""Which web request has started this run? Its id is in the log lines of the request, of its runs and of their steps.

Its one rule: an id comes from a header, of a request or of a message, and any program may have written that. So an id
is short, has only letters, digits and `._-`, and looks like no secret; any other text counts as none.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import uuid4

from jobs import logs
from jobs.messages import baggage
from jobs.secrets import mask

HEADER = "punctual_request"  # of a message
KEY = "request_id"  # of a log line
HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")

_current: ContextVar[str] = ContextVar("punctual_request_id", default="")


def new() -> str:
    """An id for a request that brings none."""
    return uuid4().hex


def checked(text: object) -> str:
    """The id in a header; empty if that is none."""
    return text if isinstance(text, str) and HARMLESS.fullmatch(text) and mask(text) == text else ""


def current() -> str:
    """The id of the request that the calling code belongs to, also through a run; empty if there is none."""
    return _current.get()


def enter(request_id: str) -> None:
    """The code that follows belongs to this request, or to none."""
    _current.set(request_id)


@contextmanager
def within(request_id: str) -> Iterator[None]:
    """For the block, the code belongs to this request."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def keys_of(header: object) -> dict[str, str]:
    """The id in a header of a message, as a key of log lines."""
    return {KEY: request_id} if (request_id := checked(header)) else {}


def _keys() -> dict[str, str]:
    return {KEY: request_id} if (request_id := current()) else {}


def _headers() -> dict[str, str]:
    return {HEADER: request_id} if (request_id := current()) else {}


logs.register(_keys)
baggage.register(_headers, HEADER)
