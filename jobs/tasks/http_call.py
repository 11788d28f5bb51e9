"""Does this address answer as it should? Calls it, and fails unless the expected status and text come back.

Use it to check a site, to trigger another system's webhook, or to run a cron job behind a URL. It shows how jobs reach
the network: through `toolkit.http.fetch`, with a deadline for the whole call, a limit on the response, and no way to
private addresses. Redirects are followed, so the expected status is that of the final response.

Headers and body may name secrets (`secret:NAME`). Only the worker inserts their values, and only for the hosts that
SECRET_HOSTS_NAME allows: the form and the worker refuse others. A retry after a 5xx, or without a response, is a new
attempt of the run. It calls the address again, so the call must be safe to repeat.
"""

import logging
import time
from typing import Annotated, Any, Literal

from celery import shared_task
from pydantic import AfterValidator, Field, ValidationInfo, validate_call

from jobs import secrets
from jobs.messages import destinations
from jobs.toolkit import http, reveal

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds before a retry; each pause is twice the previous one

logger = logging.getLogger(__name__)


def _no_redirect(status: int) -> int:
    if status in http.REDIRECTS:
        raise ValueError(f"cannot be {status}: redirects are followed, so expect the final status")
    return status


def _no_secret(text: str) -> str:
    if "secret:" in text:
        raise ValueError("cannot name a secret; put secrets into values of headers or into the body")
    return text


def _for_host(given: Any, info: ValidationInfo) -> Any:
    """Refuse a secret that may not go to the host of the url. The worker checks it again before it inserts values."""
    texts = given.values() if isinstance(given, dict) else [given]
    names = [name for text in texts for name in secrets.named(text)]
    if names and "url" in (info.data or {}):  # the worker checks each argument by itself, without the url
        url = http.locate(info.data["url"])
        for name in names:
            destinations.check_host(name, url)
    return given


Plain = AfterValidator(_no_secret)  # for values that logs and errors show
Address = Annotated[str, Field(max_length=2000, description="An http or https address, or /path of this site."), Plain]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Headers = Annotated[
    dict[Annotated[str, Plain], str],
    Field(description='Such as {"Authorization": "Bearer secret:NAME"}.'),
    AfterValidator(_for_host),
]
Body = Annotated[
    str,
    Field(description="May also contain secret:NAME.", json_schema_extra={"format": "multi-line"}),
    AfterValidator(_for_host),
]
Status = Annotated[int, Field(ge=200, le=599, description="After all redirects."), AfterValidator(_no_redirect)]
Text = Annotated[str, Field(description="The response must contain it. Leave empty to accept any."), Plain]
Deadline = Annotated[float, Field(gt=0, le=3600, description="Seconds for the whole call, with redirects.")]
Largest = Annotated[int, Field(ge=0, le=100_000_000, description="In bytes; a larger response fails the run.")]
Retries = Annotated[int, Field(ge=0, le=10, description="How often to try again after a 5xx or no response.")]


@shared_task(name="jobs.http_call", bind=True)
@validate_call
def http_call(  # noqa: PLR0913, PLR0917 - each is a field in the admin
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
    """Call an address.

    Raises `http.FetchError` if the response differs, `Invalid` for a secret that may not go to the host, and
    UnknownNameError for one without a value.
    """
    revealed = {name: reveal(value, url) for name, value in headers.items()}
    content = reveal(body, url).encode() or None
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
