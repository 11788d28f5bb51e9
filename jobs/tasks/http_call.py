"""Does this address answer as it should? Calls it once and fails unless the status is the expected one.

A check of a site, a nudge to another system's web hook, a cron job behind a URL: all are this call. It teaches the one
way in which jobs reach out: `jobs.http.fetch`, with a deadline for everything, a cap on the answer and no way to
private addresses. Redirects are followed, so the expected status is that of their end. A retry is a new attempt of the
run, by its schedule's policy: the address may be called again, so what it does should bear that.
"""

import logging
import time

from celery import shared_task

from jobs import http

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DEADLINE = 30.0  # seconds
LARGEST_ANSWER = 1_000_000  # bytes

logger = logging.getLogger(__name__)


@shared_task(name="jobs.http_call")
def http_call(url: str, method: str = "GET", expected_status: int = 200) -> dict[str, int]:
    """Call `url` (http, https, or "/path" of this site). Raises `jobs.http.FetchError` when it goes otherwise."""
    _refuse_bad_arguments(method, expected_status)
    start = time.monotonic()
    response = http.fetch(method, url, deadline=DEADLINE, limit=LARGEST_ANSWER).require(expected_status)
    milliseconds = round((time.monotonic() - start) * 1000)
    logger.info("%s %s answered %d in %d ms.", method, url, response.status, milliseconds)
    return {"status": response.status, "bytes": len(response.body), "milliseconds": milliseconds}


def _refuse_bad_arguments(method: str, expected_status: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}.")
    if not isinstance(expected_status, int) or not 200 <= expected_status <= 599:
        raise ValueError("expected_status must be a number from 200 to 599.")
    if expected_status in http.REDIRECTS:
        raise ValueError(f"expected_status cannot be {expected_status}: redirects are followed, so expect their end's.")
