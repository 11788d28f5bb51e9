"""Is anything running at all? A job that only logs one line.

Scheduled every few seconds, it is the cheapest proof that beat, broker, worker and ledger all work: each of its runs
passes through all four. It uses nothing else. If it fails, one of the four is the cause.
"""

import logging

from celery import shared_task

logger = logging.getLogger(__name__)


@shared_task(name="jobs.heartbeat")
def heartbeat() -> None:
    """Log one line."""
    logger.info("Alive.")
