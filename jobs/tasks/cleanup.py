"""How long should the ledger remember? A job that deletes what is older, on a schedule like any other.

What went well is seldom asked for after a month; what did not, and why, sometimes after half a year. A run that is not
over, and the latest of each schedule, always stay; so the ledger's answers do not change. It works in small
transactions, so it may run beside everything else, be killed at any line, and go on the next day.
"""

import logging
from datetime import timedelta

from celery import shared_task

from jobs.current import progress
from jobs.models import TERMINAL, State, database_now
from jobs.retention import forget

SHORTEST, LONGEST = 1, 36_500  # days

logger = logging.getLogger(__name__)


@shared_task(name="jobs.cleanup")
def cleanup(succeeded_days: int = 30, other_days: int = 180) -> dict[str, int]:
    """Delete runs that ended longer ago, succeeded ones and all others; returns how many of each were deleted.

    Raises ValueError for anything but whole days from 1 to 36,500.
    """
    for days in (succeeded_days, other_days):
        if isinstance(days, bool) or not isinstance(days, int) or not SHORTEST <= days <= LONGEST:
            raise ValueError(f"Give whole days from {SHORTEST} to {LONGEST}, not {days!r}.")
    now, deleted = database_now(), {"succeeded": 0, "others": 0}
    kinds = {
        "succeeded": (succeeded_days, {State.SUCCEEDED}),
        "others": (other_days, TERMINAL - {State.SUCCEEDED}),
    }
    for kind, (days, states) in kinds.items():
        for number in forget(now - timedelta(days=days), states):
            deleted[kind] += number
            progress(sum(deleted.values()), message=f"{kind} of more than {days} days ago")
    logger.info("%(succeeded)d succeeded runs and %(others)d others were deleted.", deleted)
    return deleted
