"""What is wrong with a request, and what may go wrong without harm? The error people read, and the edge that logs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Invalid(ValueError):  # noqa: N818 - what it says of the request
    """A schedule, its arguments or a request cannot be accepted; the message is a sentence that says what to change."""


@contextmanager
def logged(log: logging.Logger, sentence: str, *args: object) -> Iterator[None]:
    """An edge to code that may raise anything: an error is logged with this sentence, and the caller goes on.

    For threads that must not end, and for receivers and listeners of which none may stop the others.
    """
    try:
        yield
    except Exception:
        log.exception(sentence, *args)
