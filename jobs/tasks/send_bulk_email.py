"""How does a message reach thousands, none of them twice? Sends it to a list, or to addresses from a query, at a pace.

It shows work of many small effects that must not be doubled. Each address is committed before its message is sent, and
ticked off afterwards. So the process may die anywhere. The next attempt continues from there, at the same pace. A bad
address is recorded as refused and stops no other.

Limits: each attempt runs the query again, and also sends to addresses that only it finds. The pace is per run: two runs
at once send twice as fast. The query and the text decide who may get mail, and how people unsubscribe.
"""

from itertools import chain
from typing import Annotated

from celery import shared_task
from pydantic import Field, validate_call

from jobs.toolkit import mail, queries

COLUMN = "email"

# Not checked here: `mail.send` refuses each bad address alone.
Recipients = Annotated[list[str], Field(description="Addresses to send to.")]
Query = Annotated[queries.QueryName, Field(description=f"A query for more addresses, in its column {COLUMN!r}.")]
PerMinute = Annotated[int, Field(ge=1, le=6000, description="Maximum number of messages per minute.")]


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
    """Send it to each address once. Returns how many were sent, refused, and are in doubt.

    Raises `jobs.toolkit.mail.MailError` if the server accepts no mail now, or no address was reached.
    """
    if not recipients and query is None:
        raise ValueError("There are no addresses to send to: give recipients, or a query.")
    found = queries.execute(query, queries.window()).column(COLUMN) if query else ()
    addresses = (str(address) for address in chain(recipients, found) if address)
    return mail.send(mail.Message(subject, text, html), addresses, per_minute)
