"""How does a message reach thousands, none of them twice? Sends it to a list, or to whom a query finds, at a pace.

It teaches work of many small effects that must not be doubled. Each address is committed before it is written to and
ticked off afterwards, so a process may die anywhere: the next attempt goes on from there, at the same pace. One bad
address is noted as refused and stops nobody else.

Limits: the query is asked again by each attempt, and whom it finds only then is written to as well. The pace is that of
this run: two runs at once send twice as fast. Who may be written to, and how they unsubscribe, is for the query and
the text to say.
"""

from itertools import chain
from typing import Annotated

from celery import shared_task
from pydantic import Field, validate_call

from jobs.toolkit import mail, queries

COLUMN = "email"

# Not checked here: a bad address among thousands is refused by itself.
Recipients = Annotated[list[str], Field(description="Addresses.")]
Query = Annotated[queries.QueryName, Field(description=f"Finds more addresses, in its column {COLUMN!r}.")]
PerMinute = Annotated[int, Field(ge=1, le=6000, description="Messages a minute at most.")]


@shared_task(name="jobs.send_bulk_email")
@validate_call
def send_bulk_email(
    subject: mail.Subject,
    text: mail.Text,
    recipients: Recipients = [],  # noqa: B006 - read only
    query: Query | None = None,
    html: mail.Html = "",
    per_minute: PerMinute = 60,
) -> dict[str, int]:
    """Send it to each address once; returns to how many it was sent, how many were refused, and are in doubt.

    Raises `jobs.toolkit.mail.MailError` when the server takes no mail now, or nobody was reached.
    """
    if not recipients and query is None:
        raise ValueError("It has nobody to write to: give recipients, or a query.")
    found = queries.execute(query, queries.window()).column(COLUMN) if query else ()
    addresses = (str(address) for address in chain(recipients, found) if address)
    return mail.send(mail.Message(subject, text, html), addresses, per_minute)
