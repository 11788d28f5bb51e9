"""What can people do to channels and silences? Save, delete, test and end them: one function each.

Its one rule: an act gets the actor, checks the permission, locks, changes and notes who did it, in one transaction. It
refuses a channel or silence that says nothing clear, with a sentence. A test message is sent outside of a transaction.
A token that is limited to schedules acts on silences of these alone, and on no channel: a channel tells of all of them.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask

from jobs.alerts import channels
from jobs.alerts.message import Message
from jobs.models import LONGEST_NAME, LONGEST_REASON, Act, Actor, Channel, Kind, Silence, database_now
from jobs.models.audit import Changed, note
from jobs.rules.crontab import zone_of
from jobs.rules.errors import Conflict, Forbidden, Invalid
from jobs.rules.health import Health
from jobs.secrets import mask

MOST_PATTERNS = 100  # of a channel or silence
MOST_ADDRESSES = 50  # of a channel
LONGEST_SILENCE = timedelta(days=366)
LONGEST_REPORT = 300  # characters of an error in an audit entry
URL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
HEALTHS = tuple(each.value for each in Health if each != Health.OK)  # that a channel may choose: all hear of recoveries
COLUMNS = {
    Kind.CHANNEL: (
        *("name", "kind", "addresses", "url", "is_enabled", "patterns", "healths", "of_system"),
        *("zone", "quiet_from", "quiet_until"),
    ),
    Kind.SILENCE: ("schedule_id", "patterns", "starts_at", "ends_at", "reason"),
}


def save_channel(channel: Channel, actor: Actor | str) -> None:
    """Save a new or changed channel. Raises `Invalid` for one that could tell nothing, and `Forbidden`."""
    actor = Actor.of(actor)
    _check(actor, Kind.CHANNEL, Act.ADD if channel.pk is None else Act.CHANGE)
    check_channel(channel)
    _save(channel, Kind.CHANNEL, actor)


def change_channels(chosen: QuerySet[Channel], columns: Mapping[str, Any], actor: Actor | str) -> int:
    """Change these columns of these channels; returns how many there are. Raises as `save_channel` does."""
    with transaction.atomic():
        rows = _locked(chosen)
        for channel in rows:
            for name, value in columns.items():
                setattr(channel, name, value)
            save_channel(channel, actor)
    return len(rows)


def delete_channels(chosen: QuerySet[Channel], actor: Actor | str) -> int:
    """Delete these channels, with what they were to be told; returns how many there were."""
    return _delete(chosen, Kind.CHANNEL, Actor.of(actor))


def test_channel(channel: Channel, actor: Actor | str) -> None:
    """Send a test message now; it waits up to 20 s. Call it outside of a transaction. Raises `Invalid` if it failed."""
    actor = Actor.of(actor)
    _check(actor, Kind.CHANNEL, Act.TEST)
    message = Message.test(actor.name, database_now(), channel.reader_zone)
    try:
        channels.send(channel, message)
    except channels.ChannelError as error:
        why = mask(str(error))
        _note_test(channel, actor, f"The test message was not sent: {why[:LONGEST_REPORT]}")
        raise Invalid(why) from error
    _note_test(channel, actor, "Sent a test message.")


def save_silence(silence: Silence, actor: Actor | str) -> None:
    """Save a new or changed silence; one without a start begins now. Raises `Invalid` and `Forbidden`."""
    actor, now = Actor.of(actor), database_now()
    is_new = silence.pk is None
    _check(actor, Kind.SILENCE, Act.ADD if is_new else Act.CHANGE, [silence])
    if not isinstance(silence.starts_at, datetime):
        silence.starts_at = now
    check_silence(silence, now)
    if is_new:
        silence.created_by = actor.name
    _save(silence, Kind.SILENCE, actor)


def end_silences(chosen: QuerySet[Silence], actor: Actor | str) -> int:
    """End these silences now, and delete those that have not begun; returns how many were not over yet."""
    actor = Actor.of(actor)
    _check(actor, Kind.SILENCE, Act.CHANGE)
    with transaction.atomic():
        rows, now = _locked(chosen), database_now()
        current = [row for row in rows if row.starts_at < now < row.ends_at]
        upcoming = [row for row in rows if row.starts_at >= now]
        _check(actor, Kind.SILENCE, Act.CHANGE, current)
        for row in current:
            before, row.ends_at = _columns(row, Kind.SILENCE), now
            row.save(update_fields=["ends_at"])
            note(actor, Kind.SILENCE, Act.CHANGE, [_changed(row, Kind.SILENCE, before)], "Ended.")
        if upcoming:
            delete_silences(Silence.objects.filter(pk__in=[row.pk for row in upcoming]), actor)
    return len(current) + len(upcoming)


def delete_silences(chosen: QuerySet[Silence], actor: Actor | str) -> int:
    """Delete these silences; returns how many there were."""
    return _delete(chosen, Kind.SILENCE, Actor.of(actor))


# --- refusals --------------------------------------------------------------------------------------------------------


def check_channel(channel: Channel) -> None:
    """Refuse columns that contradict each other, or that mean nothing. Raises `Invalid`."""
    for check in (_check_name, _check_target, _check_patterns, _check_healths, _check_hours):
        check(channel)


def check_silence(silence: Silence, now: datetime) -> None:
    """Refuse a silence about nothing clear, or of no good length. Raises `Invalid`."""
    _check_patterns(silence)
    if silence.schedule_id is not None and silence.patterns:
        raise Invalid("Choose a schedule or write patterns, not both.")
    if silence.ends_at <= max(silence.starts_at, now):
        raise Invalid("The silence must end after it starts, and in the future: choose a later end.")
    if silence.ends_at - silence.starts_at > LONGEST_SILENCE:
        raise Invalid(f"The silence lasts longer than {LONGEST_SILENCE.days} days: choose an earlier end.")
    if len(silence.reason) > LONGEST_REASON or not silence.reason.isprintable():
        raise Invalid(f"Write the reason in one line of at most {LONGEST_REASON} characters.")


def _check_name(channel: Channel) -> None:
    if not channel.name.strip() or not channel.name.isprintable():
        raise Invalid("Give the channel a name, in one line.")


def _check_target(channel: Channel) -> None:
    """Where its messages go."""
    if channel.kind not in Channel.Kind.values:
        raise Invalid(f"There is no kind of channel {channel.kind!r}: choose from {', '.join(Channel.Kind.values)}.")
    is_mail = channel.kind == Channel.Kind.MAIL
    if is_mail and channel.url:
        raise Invalid("A mail channel has addresses and no variable: leave the variable empty.")
    if not is_mail and channel.addresses:
        raise Invalid("Only a mail channel has addresses: leave them empty, and name the variable with its address.")
    if is_mail:
        _check_addresses(channel)
    elif not URL_NAME.fullmatch(channel.url):
        raise Invalid(
            "Write the NAME of the variable CHANNEL_URL_NAME that holds the address: a letter, then letters, digits or"
            " _. The address itself is a secret, and belongs in no form."
        )


def _check_addresses(channel: Channel) -> None:
    found = _texts(channel.addresses, "addresses", MOST_ADDRESSES)
    if not found:
        raise Invalid("Enter at least one mail address.")
    for address in found:
        try:
            validate_email(address)
        except ValidationError:
            raise Invalid(f"{address!r} is not a mail address: write name@example.org.") from None
    if why := channels.why_not(channel):  # such as a domain that MAIL_DOMAINS leaves out
        raise Invalid(why)


def _check_patterns(row: Channel | Silence) -> None:
    _texts(row.patterns, "patterns", MOST_PATTERNS)


def _check_healths(channel: Channel) -> None:
    for each in _texts(channel.healths, "healths", len(HEALTHS)):
        if each not in HEALTHS:
            raise Invalid(f"There is no health {each!r} to choose: choose from {', '.join(HEALTHS)}.")


def _check_hours(channel: Channel) -> None:
    if channel.zone:
        zone_of(channel.zone)
    start, end = channel.quiet_from, channel.quiet_until
    if (start is None) != (end is None):
        raise Invalid("Enter the start and the end of the quiet hours, or leave both empty.")
    if getattr(start, "tzinfo", None) or getattr(end, "tzinfo", None):
        raise Invalid("Write the quiet hours without an offset: they are of the time zone of the channel.")
    if start is not None and start == end:
        raise Invalid("The quiet hours end when they start: choose another end, or leave both empty.")


def _texts(values: Any, name: str, most: int) -> list[str]:
    """A list of lines, as bounded as a form would have it."""
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise Invalid(f"The {name} must be a list of texts.")
    if len(values) > most:
        raise Invalid(f"There are more than {most} {name}: write fewer.")
    for each in values:
        if not each.strip() or len(each) > LONGEST_NAME or not each.isprintable():
            raise Invalid(f"Write each of the {name} in one line of 1 to {LONGEST_NAME} characters.")
    return values


# --- rows ------------------------------------------------------------------------------------------------------------


def _check(actor: Actor, kind: Kind, act: Act, silences: Iterable[Silence] = ()) -> None:
    """Refuse an actor without the permission, or whose token is limited to other schedules. Raises `Forbidden`."""
    actor.check_act(kind, act)
    if actor.token is None or not actor.token.is_limited:
        return
    if kind == Kind.CHANNEL:
        raise Forbidden(f"The token “{actor.token.name}” is limited, and a channel tells of all schedules.")
    of = {silence.schedule_id for silence in silences}
    seen = actor.limit(PeriodicTask.objects.filter(pk__in=of - {None}))
    if None in of or seen.count() < len(of):
        raise Forbidden(f"The token “{actor.token.name}” is limited to other schedules than this silence.")


def _save(row: Any, kind: Kind, actor: Actor) -> None:
    """Write the row, and its audit entry unless nothing has changed. Raises `Invalid`."""
    with transaction.atomic():
        _keep_schedule(row)
        _clean(row)
        stored = _locked(type(row).objects.filter(pk=row.pk))
        if not stored and row.pk is not None:
            raise Invalid(f"The {kind} was deleted meanwhile.")
        act = Act.CHANGE if stored else Act.ADD
        _check(actor, kind, act, stored if kind == Kind.SILENCE else ())
        before = _columns(stored[0], kind) if stored else None
        _write(row, COLUMNS[kind] if stored else None)
        changed = _changed(row, kind, before)
        if changed.after != before:
            note(actor, kind, act, [changed])


def _keep_schedule(row: Any) -> None:
    """Let no other process delete the schedule of a silence before the silence is there."""
    if isinstance(row, Silence):
        PeriodicTask.objects.select_for_update(no_key=True).filter(pk=row.schedule_id).first()


def _write(row: Any, columns: Iterable[str] | None) -> None:
    try:
        with transaction.atomic():
            row.save(update_fields=columns)
    except IntegrityError as error:  # another request has taken the name meanwhile
        raise Conflict(f"The channel “{row}” already exists: choose another name.") from error


def _clean(row: Any) -> None:
    """Refuse what the columns do not allow. Raises `Invalid`."""
    try:
        row.full_clean(exclude={"created_by"}, validate_unique=False)  # `_write` finds a name that is taken
    except ValidationError as error:
        raise Invalid(" ".join(f"{name}: {' '.join(text)}" for name, text in error.message_dict.items())) from error


def _delete(chosen: QuerySet[Any], kind: Kind, actor: Actor) -> int:
    _check(actor, kind, Act.DELETE)
    with transaction.atomic():
        rows = _locked(chosen)
        _check(actor, kind, Act.DELETE, rows if kind == Kind.SILENCE else ())
        note(actor, kind, Act.DELETE, [Changed(row.pk, str(row), _columns(row, kind)) for row in rows])
        chosen.model._default_manager.filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)


def _note_test(channel: Channel, actor: Actor, summary: str) -> None:
    note(actor, Kind.CHANNEL, Act.TEST, [Changed(channel.pk, channel.name)], summary)


def _locked(rows: QuerySet[Any]) -> list[Any]:
    """The rows, locked in a fixed order, so that two acts on the same rows cannot deadlock."""
    chosen = rows.model._default_manager.filter(pk__in=list(rows.values_list("pk", flat=True)))
    return list(chosen.select_for_update().order_by("pk"))


def _changed(row: Any, kind: Kind, before: dict[str, Any] | None) -> Changed:
    return Changed(row.pk, str(row), before, _columns(row, kind))


def _columns(row: Any, kind: Kind) -> dict[str, Any]:
    """The columns that people set, as plain JSON."""
    return {name: _plain(getattr(row, name)) for name in COLUMNS[kind]}


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat()
        case time():
            return value.isoformat()
    return value
