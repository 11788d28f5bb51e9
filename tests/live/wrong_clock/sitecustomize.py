"""For processes of a host whose clock is wrong: Python imports this first where PYTHONPATH names its folder."""

import os
import time
from datetime import timedelta

from django.utils import timezone

_wrong_by = float(os.environ["CLOCK_WRONG_BY"])  # seconds; positive is fast
_time, _now = time.time, timezone.now

time.time = lambda: _time() + _wrong_by
timezone.now = lambda: _now() + timedelta(seconds=_wrong_by)
