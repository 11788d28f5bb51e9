"""How does a webhook start a run? Its source says who may sign it, and which job it starts with which arguments.

Its one rule: the webhook and its run are written in one transaction, and an event makes one of each, however often and
wherever it arrives. Requests for an unknown and for a disabled source take the same steps.
Limits: PostgreSQL and beat delete a webhook with its run; after that, its event is unknown here. A sender that signs no
time (GitHub) can then be replayed.
"""

import base64
import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet

from jobs.ledger import requests
from jobs.ledger.requests import RunOptions
from jobs.messages.arguments import check_fits
from jobs.messages.message import read
from jobs.models import LONGEST_NAME, Webhook, WebhookSource, database_now, new_run_id
from jobs.models.audit import Act, Actor, Changed, Door, Kind, differing, note
from jobs.models.refusals import refusal, sole
from jobs.rules import signatures
from jobs.rules.errors import Invalid
from jobs.rules.signatures import RefusedError
from jobs.secrets import head, mask, refuse_passwords, storable

log = logging.getLogger(__name__)

ARGUMENT = "webhook"  # of the job: the id of what was sent
QUIET = timedelta(minutes=1)  # between two notes that a source was refused
COLUMNS = ("name", "form", "keys", "job", "arguments", "is_enabled")
KEPT = ("webhook-", "x-github-", "stripe-")  # how the headers begin that describe an event
LONGEST_SHOWN = 20_000  # characters of a body
_DECOY = "standard", [base64.b64encode(secrets.token_bytes(24)).decode()]  # for sources that there are not


class UnknownSourceError(LookupError):
    """No source has this name, or it is disabled. Senders cannot tell which."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A request as it arrived. `headers` ignores case."""

    headers: Mapping[str, str]
    content_type: str
    body: bytes


def receive(name: str, delivery: Delivery) -> UUID:
    """The run of a webhook: a new one, or that of an earlier delivery of the same event.

    Raises `RefusedError`, `UnknownSourceError`, or `Invalid` if this site cannot check it or start the job now.
    """
    source = WebhookSource.objects.filter(name=name, is_enabled=True).first()
    now = database_now()
    try:
        form, keys = (source.form, keys_of(source.keys)) if source else _DECOY
        event = signatures.verify(form, delivery.headers, delivery.body, keys, now)
    except (RefusedError, Invalid) as error:
        if source is None:
            raise UnknownSourceError from None
        _note_refusal(source, str(error), now, Q(refused_at=None) | Q(refused_at__lte=now - QUIET))
        raise
    if source is None:
        raise UnknownSourceError
    try:
        return _run_of(source, event, delivery)
    except Invalid as error:  # an authentic one: the fault of this site must not hide behind forged ones
        _note_refusal(source, str(error), now, ~Q(refused_reason=_shown(str(error))) | Q(refused_at__lte=now - QUIET))
        raise


def keys_of(name: str) -> list[str]:
    """The keys in the variable WEBHOOK_KEYS_NAME. Raises `Invalid`."""
    keys: list[str] = getattr(settings, "WEBHOOK_KEYS", {}).get(name, [])
    if not keys:
        raise Invalid(f"The web processes have no keys named {name}: set WEBHOOK_KEYS_{name} for them.")
    return keys


def change(sources: QuerySet[WebhookSource], columns: Mapping[str, Any], actor: Actor | str) -> int:
    """Change these columns of these sources; returns how many there are. Raises as `save` does."""
    with transaction.atomic():
        rows = list(sources.select_for_update().order_by("pk"))
        for source in rows:
            for name, value in columns.items():
                setattr(source, name, value)
            save(source, actor)
    return len(rows)


def save(source: WebhookSource, actor: Actor | str) -> None:
    """Save a new or changed source. One without a change is checked, and leaves no note.

    Raises `Invalid` for one that could start nothing, `Conflict` for a name in use, and `Forbidden`.
    """
    actor = Actor.of(actor)
    actor.check_act(Kind.SOURCE, Act.ADD if source.pk is None else Act.CHANGE)
    check(source, actor)
    _clean(source)
    with transaction.atomic():
        stored = WebhookSource.objects.select_for_update().filter(pk=source.pk).first()
        if stored is None and source.pk is not None:
            raise Invalid("The source was deleted meanwhile.")
        actor.check_act(Kind.SOURCE, Act.CHANGE if stored else Act.ADD)
        if stored:
            actor.check_may(stored.job)
        before, after = _columns(stored) if stored else None, _columns(source)
        if before and not differing(before, after):
            return
        with sole(source, "source"):
            source.save(update_fields=COLUMNS if stored else None)
        note(actor, Kind.SOURCE, Act.CHANGE if stored else Act.ADD, [Changed(source.pk, source.name, before, after)])


def delete(sources: Iterable[WebhookSource], actor: Actor | str) -> int:
    """Delete these sources; what they have sent stays with its runs. Returns how many there were."""
    actor = Actor.of(actor)
    actor.check_act(Kind.SOURCE, Act.DELETE)
    keys = [source.pk for source in sources]
    with transaction.atomic():
        rows = list(WebhookSource.objects.select_for_update().filter(pk__in=keys).order_by("pk"))
        actor.check_may(*(row.job for row in rows))
        note(actor, Kind.SOURCE, Act.DELETE, [Changed(row.pk, row.name, _columns(row)) for row in rows])
        WebhookSource.objects.filter(pk__in=keys).delete()
    return len(rows)


def check(source: WebhookSource, actor: Actor) -> None:
    """Refuse a source whose webhooks could start nothing, or what its actor may not start. Raises `Invalid`."""
    actor.check_act(Kind.RUN, Act.START)
    actor.check_may(source.job)
    for key in keys_of(source.keys):
        signatures.signing_key(source.form, key)
    if ARGUMENT in _arguments(source):
        raise Invalid(f"Leave out the argument `{ARGUMENT}`: each webhook gives the job its own id by this name.")
    try:
        check_fits(source.job, [], {**source.arguments, ARGUMENT: str(new_run_id())})
    except Invalid as error:
        raise Invalid(f"{error} A job for webhooks takes the argument `{ARGUMENT}`.") from error


def body_of(webhook: Webhook) -> str:
    """The beginning of a body as text for people, with secrets masked."""
    return head(bytes(webhook.body).decode(errors="backslashreplace"), LONGEST_SHOWN)


def _clean(source: WebhookSource) -> None:
    """Refuse what the columns do not allow. Raises `Invalid`."""
    try:
        source.full_clean()
    except ValidationError as error:
        raise refusal(error) from error


def _arguments(source: WebhookSource) -> dict[str, Any]:
    refuse_passwords(source.arguments)
    return dict(read(json.dumps(source.arguments), "The arguments", dict))


def _columns(source: WebhookSource) -> dict[str, Any]:
    return {name: getattr(source, name) for name in COLUMNS}


def _run_of(source: WebhookSource, event: str, delivery: Delivery) -> UUID:
    with transaction.atomic():
        known = Webhook.objects.filter(source=source, event=event).values_list("run", flat=True)
        if (earlier := known.first()) is not None:
            return earlier
        webhook = Webhook(
            id=new_run_id(),
            source=source,
            source_name=source.name,
            event=event,
            content_type=_shown(delivery.content_type),
            headers={name.lower(): mask(storable(value)) for name, value in _describing(delivery.headers)},
            body=delivery.body,
        )
        arguments = {**source.arguments, ARGUMENT: str(webhook.id)}
        options = RunOptions(key=f"webhook:{source.pk}:{event}")
        run, is_new = requests.start(source.job, arguments, Actor(source.name, door=Door.WEBHOOK), options)
        if is_new:  # otherwise another process has just written both
            webhook.run = run
            webhook.save(force_insert=True)
    return UUID(str(run.id))


def _describing(headers: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The headers that describe the event. A signature could be used again, and others belong to proxies."""
    return ((name, value) for name, value in headers.items() if _describes(name.lower()))


def _describes(name: str) -> bool:
    return name.startswith(KEPT) and "signature" not in name


def _shown(text: str) -> str:
    return head(text, LONGEST_NAME)


def _note_refusal(source: WebhookSource, why: str, now: datetime, due: Q) -> None:
    """Note why a delivery was refused, and log it: at most once in `QUIET`, however many arrive."""
    if WebhookSource.objects.filter(due, pk=source.pk).update(refused_at=now, refused_reason=_shown(why)):
        extra = {"action": "webhook", "source": source.name}
        log.warning("A webhook of source %s was refused; %s", source.name, why, extra=extra)
