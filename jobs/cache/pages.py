"""How does a page become a value of the cache? As JSON: its status, headers, cookies and bytes.

Its one rule: a page comes back as a plain `HttpResponse` that a client cannot tell from the first. So Django's
`cache_page` and its cache middleware work without pickles. What only the server knows of a response (its template, its
context) is gone.
"""

import json
from typing import Any

from django.http import HttpResponse

MARK = "page "  # before the JSON of a page: no other JSON begins so


def as_text(page: HttpResponse) -> str:
    """The page as text that begins with `MARK`. Raises `django.template.response.ContentNotRenderedError`."""
    cookies = [morsel.OutputString() for morsel in page.cookies.values()]
    parts = [page.status_code, page.reason_phrase, list(page.headers.items()), cookies, page.content.decode("latin-1")]
    return MARK + json.dumps(parts, ensure_ascii=False)


def from_text(text: str) -> HttpResponse:
    """The page. Raises ValueError for text that `as_text` did not write."""
    parts = json.loads(text.removeprefix(MARK))
    if not _is_page(parts):
        raise ValueError("It is not a page.")
    status, reason, headers, cookies, content = parts
    page = HttpResponse(content.encode("latin-1"), status=status, reason=reason, headers=dict(headers))
    for cookie in cookies:
        page.cookies.load(cookie)
    return page


def _is_page(parts: Any) -> bool:
    if not isinstance(parts, list) or list(map(type, parts)) != [int, str, list, list, str]:
        return False
    _, reason, headers, cookies, _ = parts
    texts = [*cookies, *(each for pair in headers if isinstance(pair, list) for each in pair)]
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in headers)
    return pairs and reason.isprintable() and all(isinstance(each, str) for each in texts)
