"""What does a forked child see? For tests of what must survive a fork."""

import json
import os
import signal
from collections.abc import Callable

import pytest

HANGS_AFTER = 5  # seconds

forks = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # what a fork amid threads does is the question


def in_child(call: Callable[[], object]) -> object:
    """What `call` returns in a forked process, as far as JSON can tell. Raises ValueError when it fails or hangs."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(HANGS_AFTER)
        try:
            os.write(write, json.dumps(call()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)
