"""What does a forked child see? A helper for tests of code that must survive a fork."""

import json
import os
import signal
from collections.abc import Callable

import pytest

from tests.waiting import DEADLINE

# These tests fork while threads run on purpose; Python warns of that.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(call: Callable[[], object]) -> object:
    """The result of `call` in a forked process, passed through JSON. Raises ValueError if the call fails or hangs."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(int(DEADLINE))
        try:
            os.write(write, json.dumps(call()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)
