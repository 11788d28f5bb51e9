"""Which entries does this RSS or Atom feed have? Returns JSON with the columns that an import needs.

feedparser forgives broken feeds, which costs time: many attributes, categories or namespaces keep it busy for minutes.
"""

import io
import json
from typing import Any

import feedparser

TEXTS, TIMES = ("id", "link", "title", "published", "updated"), ("published_parsed", "updated_parsed")


class Refused(ValueError):  # noqa: N818 - describes the feed
    """The content is not a readable feed. The message is a sentence."""


def read(content: bytes, content_type: str, most: str) -> bytes:
    """A list of at most `most` objects, each with the TEXTS and TIMES of its entry. Raises Refused."""
    headers = {"content-type": content_type} if content_type else {}
    try:
        # A stream, because feedparser would open text or bytes as the name of a file or an address.
        feed = feedparser.parse(io.BytesIO(content), response_headers=headers)
    except ValueError as error:  # bugs of the parser, as with references to characters that do not exist
        raise Refused(f"The feed cannot be read: {error}.") from error
    if not feed.get("version"):
        raise Refused("The response is not an RSS or Atom feed: give the address of the feed itself, not of its page.")
    return json.dumps([_plain(entry) for entry in feed.entries[: int(most)]]).encode()


def _plain(entry: Any) -> dict[str, Any]:
    # `in` first: for a missing "updated", feedparser gives "published" and warns.
    texts = {name: str(entry[name]) for name in TEXTS if name in entry}
    return texts | {name: list(entry[name]) if entry[name] else None for name in TIMES if name in entry}
