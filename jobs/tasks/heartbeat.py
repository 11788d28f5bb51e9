"""Is anything running at all? A job that does nothing but say so.

Scheduled every few seconds, it is the cheapest proof that beat, broker, worker and ledger are alive together: each
run of it went through all four. It touches nothing outside of them, so that when it fails, one of them is the cause.
"""

import logging

from celery import shared_task

logger = logging.getLogger(__name__)


@shared_task(name="jobs.heartbeat")
def heartbeat() -> None:
    """Log one line."""
    logger.info("Alive.")
