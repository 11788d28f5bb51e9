"""How long does a test wait? Until the event comes, and never longer.

Its one rule: a deadline only ends a test that hangs. No test may pass or fail because the machine is busy, so all waits
have one bound, `DEADLINE`, far above what any of them takes.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 300.0  # seconds until a wait counts as a hang
POLL = 0.02  # seconds between two looks


def eventually(function: Callable[[], T], deadline: float = DEADLINE, stop: Callable[[], str] = str) -> T:
    """The first true value of `function`, called every `POLL` seconds.

    Raises AssertionError after `deadline` seconds, or as soon as `stop` says why no true value can come.
    """
    until = time.monotonic() + deadline
    while not (value := function()):
        why = stop() or (f"not within {deadline} s" if time.monotonic() > until else "")
        assert not why, f"{why}; the last value was {value!r}"
        time.sleep(POLL)
    return value
