"""How much memory does a call take at most? For tests of code that reads untrusted files.

Its one rule: it measures bytes, never time: a busy machine changes no result. Limit: memory that the test process has
freed and still holds is not counted, so a bound in a test must be well below the fault's figure.
"""

import resource
import sys
from collections.abc import Callable

from tests.forking import in_child

UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss


def appetite(call: Callable[[], object]) -> int:
    """The megabytes by which a forked process, or one that it starts, grows at most in `call`, even if that raises."""

    def measured() -> int:
        before = _peak()
        try:
            call()
        except Exception:  # noqa: BLE001 - a refusal is one of the ways to stay small
            return _peak() - before
        return _peak() - before

    grown = in_child(measured)
    assert isinstance(grown, int)
    return grown // 1_000_000


def _peak() -> int:
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return max(resource.getrusage(each).ru_maxrss for each in whose) * UNIT
