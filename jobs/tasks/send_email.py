"""How does a job tell somebody something? Sends a message to a few people, each by itself.

A reminder, a notice, the last step of a workflow. It teaches what `toolkit.mail` keeps: what a run has sent once it
does not send again, in whichever attempt, and by whichever of its steps; so it may be rescued and retried without harm.

Limits: for a list that should not get everything in one burst there is `jobs.send_bulk_email`. Files go as links.
"""

from typing import Annotated

from celery import shared_task
from pydantic import Field, validate_call

from jobs.toolkit import mail

To = Annotated[list[mail.Address], Field(min_length=1, max_length=100, description="Each gets a message of its own.")]


@shared_task(name="jobs.send_email")
@validate_call
def send_email(to: To, subject: mail.Subject, text: mail.Text, html: mail.Html = "") -> dict[str, int]:
    """Send it; returns to how many it was sent, how many were refused, and how many are in doubt.

    Raises `jobs.toolkit.mail.MailError` when the server takes no mail now, or nobody was reached.
    """
    return mail.send(mail.Message(subject, text, html), to)
