"""How does a job notify people? Sends a message to a few addresses, to each separately.

Use it for a reminder, a notice, the last step of a workflow. It shows the promise of `toolkit.mail`: a run sends a
message to an address once, over all of its attempts and steps, so it may be rescued and retried without harm.

Limits: for a long list use `jobs.send_bulk_email`, which sends at a pace. Send files as links.
"""

from typing import Annotated

from celery import shared_task
from pydantic import Field, validate_call

from jobs.toolkit import mail

To = Annotated[
    list[mail.Address], Field(min_length=1, max_length=100, description="Each address gets a separate message.")
]


@shared_task(name="jobs.send_email")
@validate_call
def send_email(to: To, subject: mail.Subject, text: mail.Text, html: mail.Html = "") -> dict[str, int]:
    """Send it; returns how many were sent, refused, and are in doubt.

    Raises `jobs.toolkit.mail.MailError` if the server accepts no mail now, or no address was reached.
    """
    return mail.send(mail.Message(subject, text, html), to)
