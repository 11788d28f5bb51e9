"""How does a page become a value of the cache? As JSON: its status, headers, cookies and bytes.

Its one rule: a page comes back as a plain `HttpResponse` that a client cannot tell from the first. So Django's
`cache_page` and its cache middleware work without pickles. What only the server knows of a response (its template, its
context) is gone.
"""

import json

from django.http import HttpResponse

MARK = "page "  # before the JSON of a page: no other JSON begins so


def as_text(page: HttpResponse) -> str:
    """The page as text that begins with `MARK`. Raises `django.template.response.ContentNotRenderedError`."""
    cookies = [morsel.OutputString() for morsel in page.cookies.values()]
    parts = [page.status_code, page.reason_phrase, list(page.headers.items()), cookies, page.content.decode("latin-1")]
    return MARK + json.dumps(parts, ensure_ascii=False)


def from_text(text: str) -> HttpResponse:
    status, reason, headers, cookies, content = json.loads(text.removeprefix(MARK))
    page = HttpResponse(content.encode("latin-1"), status=status, reason=reason, headers=dict(headers))
    for cookie in cookies:
        page.cookies.load(cookie)
    return page
