"""What does a scrape of Prometheus get? All metrics, or a reason to come back.

Its one rule: scrapes do not pile up. A process answers one at a time and refuses others at once; on PostgreSQL a query
ends after `search.PATIENCE`. Who may scrape is decided in front of it (project/metrics.py).
"""

import logging
import threading

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from jobs.monitoring import metrics
from jobs.monitoring.search import patient
from jobs.rules.errors import Invalid

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
BUSY = "Another scrape is under way: scrape this process less often."
SLOW = "The figures took too long: the database is overloaded, or very many runs are unfinished."
AWAY = "The database does not answer: try again in a few seconds."

_scraping = threading.Lock()


@require_safe
def scrape(_: HttpRequest) -> HttpResponse:
    """The metrics in the text format of Prometheus."""
    if not _scraping.acquire(blocking=False):
        return _unavailable(BUSY)
    try:
        with patient():
            found = metrics.text()
    except Invalid:
        return _unavailable(SLOW)
    except (OperationalError, InterfaceError):
        log.warning("A scrape could not read the database.", exc_info=True)
        return _unavailable(AWAY)
    finally:
        _scraping.release()
    return HttpResponse(found, content_type=metrics.CONTENT_TYPE, headers={"Cache-Control": "no-store"})


def _unavailable(sentence: str) -> HttpResponse:
    headers = {"Retry-After": str(RETRY_SECONDS), "Cache-Control": "no-store"}
    return HttpResponse(f"{sentence}\n", status=503, content_type="text/plain; charset=utf-8", headers=headers)
