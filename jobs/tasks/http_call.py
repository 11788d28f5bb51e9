"""Does this address answer as it should? Calls it and fails unless the expected status, and text, come back.

A check of a site, a nudge to another system's web hook, a cron job behind a URL: all are this call. It teaches the one
way in which jobs reach out: `toolkit.http.fetch`, with a deadline for everything, a cap on the answer and no way to
private addresses. Redirects are followed, so the expected status is that of their end.

Headers and body may name secrets (`secret:NAME`), which only the worker puts in. A retry after a 5xx, or when nobody
answered, is a new attempt of the run: the address may be called again, so what it does should bear that.
"""

import logging
import time
from typing import Annotated, Any, Literal

from celery import shared_task
from pydantic import AfterValidator, Field, validate_call

from jobs.secrets import reveal
from jobs.toolkit import http

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds before a retry; each pause is twice as long as the one before

logger = logging.getLogger(__name__)


def _no_redirect(status: int) -> int:
    if status in http.REDIRECTS:
        raise ValueError(f"cannot be {status}: redirects are followed, so expect their end's")
    return status


def _no_secret(text: str) -> str:
    if "secret:" in text:
        raise ValueError("cannot name a secret: those go into the values of headers and into the body")
    return text


Plain = AfterValidator(_no_secret)  # what stands in logs and errors
Address = Annotated[str, Field(max_length=2000, description="http, https, or /path of this site."), Plain]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Headers = Annotated[dict[Annotated[str, Plain], str], Field(description='As {"Authorization": "Bearer secret:NAME"}.')]
Body = Annotated[str, Field(description="May name secrets, too.", json_schema_extra={"format": "multi-line"})]
Status = Annotated[int, Field(ge=200, le=599), AfterValidator(_no_redirect)]
Text = Annotated[str, Field(description="The answer has to hold it. Empty: any answer will do."), Plain]
Deadline = Annotated[float, Field(gt=0, le=3600, description="Seconds for everything together.")]
Largest = Annotated[int, Field(ge=0, le=100_000_000, description="Bytes; of a larger answer nothing is taken.")]
Retries = Annotated[int, Field(ge=0, le=10, description="After a 5xx, or when nobody answers.")]


@shared_task(name="jobs.http_call", bind=True)
@validate_call
def http_call(  # noqa: PLR0913, PLR0917 - each is a field that a person fills in
    self: Any,
    url: Address,
    method: Method = "GET",
    headers: Headers = {},  # noqa: B006 - read only
    body: Body = "",
    expected_status: Status = 200,
    expected_text: Text = "",
    deadline: Deadline = 30.0,
    largest_answer: Largest = 1_000_000,
    retries: Retries = 0,
) -> dict[str, int]:
    """Call an address. Raises `http.FetchError` when it goes otherwise, UnknownNameError for a secret's."""
    revealed = {name: reveal(value) for name, value in headers.items()}
    content = reveal(body).encode() or None
    start = time.monotonic()
    try:
        response = http.fetch(method, url, headers=revealed, body=content, deadline=deadline, limit=largest_answer)
        if response.status >= 500:
            response.require(expected_status)
    except (http.Unreachable, http.TimedOut, http.UnexpectedStatus) as error:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.request.retries)
        raise self.retry(exc=error, countdown=pause, max_retries=retries) from error
    response.require(expected_status, expected_text)
    milliseconds = round((time.monotonic() - start) * 1000)
    logger.info("%s %s answered %d in %d ms.", method, response.place, response.status, milliseconds)
    return {"status": response.status, "bytes": len(response.body), "milliseconds": milliseconds}
