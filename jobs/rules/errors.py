"""Why is a request refused, and which errors are only logged? `Invalid` for people, `logged` for code that goes on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Invalid(ValueError):  # noqa: N818 - describes the request
    """Refuses a schedule, its arguments or a request; the message is a sentence that says what to change."""


@contextmanager
def logged(log: logging.Logger, sentence: str, *args: object, level: int = logging.ERROR) -> Iterator[None]:
    """Run code that may raise anything; an error is logged with this sentence, and the caller goes on.

    For threads that must not end, and for receivers and listeners that must not stop each other.
    """
    try:
        yield
    except Exception:
        log.log(level, sentence, *args, exc_info=True)
