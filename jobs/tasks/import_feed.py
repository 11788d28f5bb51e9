"""What is new in this feed? Reads an RSS or Atom feed and stores each entry once, as a `FeedEntry`.

Run it as often as you like, twice at once or again after a crash: feed and guid identify an entry, and a unique
constraint, not this code, decides which entries are new: a pattern for every import that may be repeated. An entry
stays as first seen. Later corrections in the feed are ignored.

Limits: it reads only the first MAX_ENTRIES of the feed. The parser runs in a process with limits of time and memory,
because a malicious feed can keep it busy for minutes.
"""

import hashlib
import json
import logging
from datetime import UTC, datetime
from email.utils import parsedate
from typing import Annotated, Any
from urllib.parse import urljoin

from celery import shared_task
from pydantic import Field, validate_call

from jobs.models import FeedEntry
from jobs.toolkit import confined, http

MAX_ENTRIES = 1_000
LARGEST_FEED = 2_000_000  # bytes
LONGEST_TEXT = 500  # characters: feed, guid and title
LONGEST_LINK = 2_000  # characters

logger = logging.getLogger(__name__)


@shared_task(name="jobs.import_feed")
@validate_call
def import_feed(
    url: Annotated[str, Field(max_length=LONGEST_TEXT, description="An http or https address, or /path of this site.")],
) -> dict[str, int]:
    """Import the feed at an address. Returns how many entries it has and how many were new.

    Raises `jobs.toolkit.http.FetchError` if it cannot be fetched, ValueError if the response is not a feed.
    """
    response = http.fetch("GET", url, limit=LARGEST_FEED).require(200)
    rows = {row.guid: row for row in (_row(url, response.url, entry) for entry in _entries(response)) if row.guid}
    known = set(FeedEntry.objects.filter(feed=url, guid__in=rows).values_list("guid", flat=True))
    # Another import may insert between these two lines: then the constraint keeps its row and drops ours.
    FeedEntry.objects.bulk_create([row for guid, row in rows.items() if guid not in known], ignore_conflicts=True)
    counts = {"seen": len(rows), "new": len(rows) - len(known)}
    logger.info("%s: %d entries seen, %d of them new.", response.place, counts["seen"], counts["new"])
    return counts


def _entries(response: http.Response) -> list[dict[str, Any]]:
    try:
        read = confined.parse("feed", response.body, response.headers.get("content-type", ""), str(MAX_ENTRIES))
    except (confined.ExhaustedError, confined.CrashedError) as error:
        raise ValueError(f"The feed cannot be read: {error}. Ask its publisher for another one.") from error
    entries: list[dict[str, Any]] = json.loads(read)
    return entries


def _row(feed: str, base: str, entry: dict[str, Any]) -> FeedEntry:
    link, title = _text(entry.get("link")), _text(entry.get("title"))
    guid = _text(entry.get("id")) or link or title
    if len(guid) > LONGEST_TEXT:  # cut, two guids could become equal
        guid = hashlib.sha256(guid.encode()).hexdigest()
    return FeedEntry(
        feed=feed,
        guid=guid,
        title=title[:LONGEST_TEXT],
        link=_absolute(base, link),
        published_at=_published_at(entry),
    )


def _text(value: object) -> str:
    return str(value or "").replace("\0", "").strip()  # PostgreSQL cannot store NUL, and some feeds contain it


def _absolute(base: str, link: str) -> str:
    """The absolute link, or an empty text: half an address, or a script, is worse than none."""
    try:
        address = urljoin(base, link) if link else ""
    except ValueError:
        return ""
    return address if address.startswith(("http://", "https://")) and len(address) <= LONGEST_LINK else ""


def _published_at(entry: dict[str, Any]) -> datetime | None:
    stated = [name for name in ("published", "updated") if name in entry]
    # It gives UTC, but cannot read mail dates without a zone; those count as UTC.
    parts: Any = next(filter(None, (entry[f"{name}_parsed"] or parsedate(entry[name]) for name in stated)), None)
    if parts is None:
        return None
    try:
        year, month, day, hour, minute, second = parts[:6]
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    # Years at the edge of the calendar are mistakes, and converting them to another zone would fail.
    return moment if 1900 < moment.year < 9000 else None
