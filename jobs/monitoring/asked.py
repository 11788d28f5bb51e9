"""How does a process ask a server that may hang? In a thread, and it waits for the answer until a deadline.

Its one rule: the caller waits for no longer. A thread that hangs ends with its process. Each has a connection of its
own to the database.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Generic, TypeVar

from django.db import connection

from jobs.models import LONGEST_REASON
from jobs.rules.errors import Invalid, error_of
from jobs.secrets import in_one_line

T = TypeVar("T")
DEADLINE = 2.5  # seconds, for a command whose user waits


class NoAnswerError(Exception):
    """The deadline has passed."""


class Asked(Generic[T]):
    """What a thread finds out."""

    def __init__(self, find: Callable[[], T], seconds: float = 0.0) -> None:
        """Ask at once. The deadline comes after so many seconds, otherwise after `DEADLINE`."""
        self._find, self._seconds = find, seconds or DEADLINE
        self._until = time.monotonic() + self._seconds
        self._over = threading.Event()
        self._found: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._ask, name="asked", daemon=True).start()

    def answer(self) -> T:
        """What was found. Raises the error of the thread, and `NoAnswerError` at the deadline."""
        if not self._over.wait(max(self._until - time.monotonic(), 0)):
            raise NoAnswerError(f"no answer within {self._seconds:g} s")
        if self._error:
            raise self._error
        return self._found[0]

    def _ask(self) -> None:
        try:
            with closing(connection):
                self._error = error_of(lambda: self._found.append(self._find()))
        finally:
            self._over.set()


def why(error: BaseException) -> str:
    """The reason of an error in one line, with secrets masked."""
    return str(error) if isinstance(error, NoAnswerError) else in_one_line(error, LONGEST_REASON)


def in_time(find: Callable[[], T]) -> T:
    """What `find` reads from the database. Raises its errors, and `Invalid` if the database does not answer."""
    try:
        return Asked(find).answer()
    except NoAnswerError as error:
        raise Invalid(f"The database gives {error}: call `manage.py doctor`.") from error
