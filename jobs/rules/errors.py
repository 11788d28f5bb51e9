"""Why is a request refused, and which errors are only logged? `Invalid` for people, `logged` for code that goes on."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

E = TypeVar("E", bound=BaseException)

# What asks the running code to end, wherever it is: no edge may take it for an error of the code it calls.
ENDING = (SystemExit, KeyboardInterrupt, SoftTimeLimitExceeded)


class Invalid(ValueError):  # noqa: N818 - describes the request
    """Refuses a schedule, its arguments or a request. The message is a sentence that says what to change."""


class Forbidden(Invalid):
    """The user may not change or start the job. The message names the missing permission."""


class Conflict(Invalid):
    """Refuses what contradicts an earlier request, another row, or the state of its row. The message says which."""


class UnknownJob(Invalid):
    """The code of this process has no job of that name; that of another process may have it."""


@contextmanager
def logged(
    log: logging.Logger,
    sentence: str,
    *args: object,
    level: int = logging.ERROR,
    extra: Mapping[str, object] | None = None,
) -> Iterator[None]:
    """Run code that may raise anything. Errors are logged with this sentence, and the caller goes on.

    For threads that must not end, and for receivers and listeners that must not stop each other. Raises `ENDING`.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, ENDING):
            raise
        log.log(level, sentence, *args, exc_info=True, extra=extra)


def error_of(call: Callable[[], object], passing: tuple[type[BaseException], ...] = ()) -> Exception | None:
    """Call code that may raise anything. Returns its error, or None. Raises `passing` and hidden `ENDING`."""
    try:
        call()
    except passing:
        raise
    except Exception as error:  # noqa: BLE001 - the caller knows what the error concerns
        if (ending := hidden(error, *ENDING)) is not None:
            raise ending from None
        return error
    return None


def of_broker(errors: Iterable[type[BaseException]]) -> tuple[type[BaseException], ...]:
    """The errors of a transport that come from its broker. kombu adds KeyError, which a message may cause as well."""
    return tuple(error for error in errors if not issubclass(error, LookupError))


def hidden(error: BaseException | None, *kinds: type[E]) -> E | None:
    """The error of one of these kinds that `error` is, or that it was raised after or from."""
    if error is None or isinstance(error, kinds):
        return error
    return hidden(error.__cause__, *kinds) or hidden(error.__context__, *kinds)
