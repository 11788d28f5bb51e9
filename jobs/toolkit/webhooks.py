"""What did a webhook send? A job gets its id as the argument `webhook`, and reads it here.

    sent = webhooks.read(webhook)
    order = sent.json()["data"]

Its one rule: the body is exactly what the sender signed. Headers are not signed: they may say how to read the body, and
decide nothing else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from jobs.models import Webhook

FORM = "application/x-www-form-urlencoded"


class NoWebhookError(LookupError):
    """There is no such webhook: it was deleted with its run, or never was one."""


@dataclass(frozen=True, slots=True)
class Received:
    """A webhook as it arrived: `event` is its identity, `source` the name of the source that has sent it."""

    source: str
    event: str
    content_type: str
    headers: Mapping[str, str]  # those that describe the event, by lower-case names
    body: bytes = field(repr=False)
    received_at: datetime

    def json(self) -> Any:
        """The body as JSON; of a form, its field `payload`, as GitHub sends it. Raises ValueError."""
        is_form = self.content_type.partition(";")[0].strip().lower() == FORM
        try:
            return json.loads(self._payload() if is_form else self.body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The webhook {self.event} of {self.source} is not JSON: {error}.") from error

    def _payload(self) -> str:
        return parse_qs(self.body.decode()).get("payload", [""])[0]


def read(webhook: UUID | str) -> Received:
    """What the webhook with this id has sent. Raises `NoWebhookError`, a LookupError."""
    try:
        row = Webhook.objects.filter(pk=UUID(str(webhook))).first()
    except ValueError:
        row = None
    if row is None:
        raise NoWebhookError(f"There is no webhook {webhook}: it is deleted together with its run.")
    return Received(row.source_name, row.event, row.content_type, row.headers, bytes(row.body), row.received_at)
