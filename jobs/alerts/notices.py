"""Which message does each channel get, and did it get it? It claims notices, builds messages, and notes the outcome.

Its one rule: a message is claimed before it is sent and marked afterwards. One whose process died in between is sent
again with the same id, so a receiver can tell. What a reader no longer needs is not sent: an alert that a later one
replaces, or a subject that is well again before its illness was told.

A channel has one unsent message at a time. While it fails, further alerts wait and become one message.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4, uuid5

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.urls import NoReverseMatch, reverse

from jobs.alerts import channels
from jobs.alerts.message import Item, Message, Ping
from jobs.alerts.outbound import DEADLINE
from jobs.models import Alert, Channel, Notice, Run, RunLog, Silence, database_now
from jobs.models.alerts import NoticeQuerySet
from jobs.rules.errors import error_of
from jobs.rules.health import Health
from jobs.secrets import mask

log = logging.getLogger(__name__)

CLAIMED_FOR = timedelta(seconds=90)  # more than a channel may take to send a message
HELD_FOR = timedelta(seconds=30)  # between looks at whether a silence or the quiet hours are over
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=15), timedelta(hours=1)  # before another try; doubles
MOST_TRIES = 30  # a day
DAY = 86_400.0  # seconds
MOST_AT_ONCE = 1000  # notices of a message
MOST_PINGS = 50  # of a claim
LOG_LINES, LOG_READ = 20, 10_000  # lines that a message shows, and characters that are read for them
REPLACED = "A later alert replaced it before it was sent."
LATE_START = "It could not be sent before the end of its run."
OVER = "It was well again before it was told."


@dataclass(frozen=True, slots=True)
class Parcel:
    """A claimed message, and the number of its try."""

    channel: Channel
    content: Message | Ping
    number: int

    @property
    def notices(self) -> NoticeQuerySet:
        return Notice.objects.filter(channel=self.channel, message=self.content.id, tries=self.number)


def waiting() -> list[int]:
    """The channels that have something to send now (index notice_to_send)."""
    due = Notice.objects.unsent().filter(not_before__lte=database_now())
    return list(due.order_by().values_list("channel", flat=True).distinct())


def deliver(channel: int) -> None:
    """Send what a channel is to be told now. Another process that is at it is left alone."""
    begun = time.monotonic()
    for parcel in claim(channel):
        if time.monotonic() - begun + DEADLINE > CLAIMED_FOR.total_seconds():
            return  # the rest may be claimed by another process before it is sent
        error = error_of(partial(channels.send, parcel.channel, parcel.content))
        if error is None:
            _note_success(parcel)
        elif isinstance(error, channels.ChannelError):
            _note_failure(parcel, str(error), error.retry_after, is_permanent=error.is_permanent)
        else:  # of the library that speaks to the service
            log.error("The channel %s could not send.", parcel.channel, exc_info=error)
            _note_failure(parcel, mask(f"The message could not be made: {error!r}"))


@transaction.atomic
def claim(key: int) -> list[Parcel]:
    """Take the messages of a channel to send now."""
    channel = Channel.objects.select_for_update(skip_locked=True).filter(pk=key).first()
    if channel is None:
        return []
    now = database_now()
    unsent = Notice.objects.unsent().filter(channel=channel).select_related("alert").order_by("id")
    if not channel.is_enabled:
        unsent.drop("The channel was disabled.")
        return []
    if channel.kind == Channel.Kind.PING:
        _drop_late_starts(channel, now)
        return [_parcel(channel, [each], now) for each in unsent.filter(not_before__lte=now)[:MOST_PINGS]]
    unsent.filter(run__isnull=False).drop("The channel no longer takes pings.")
    begun = list(unsent.filter(message__isnull=False))
    if not begun:
        begun = _chosen(channel, _news(unsent, now), now)
    is_due = bool(begun) and all(notice.not_before <= now for notice in begun)
    return [_parcel(channel, begun, now)] if is_due else []


def _parcel(channel: Channel, notices: Sequence[Notice], now: datetime) -> Parcel:
    first = notices[0]
    message, tries = first.message or uuid4(), first.tries + 1
    if first.run is not None:
        message = uuid5(first.run, f"{channel.pk} {first.event}")
    _these(notices).claim(message, tries, now + CLAIMED_FOR)
    return Parcel(channel, _content(channel, notices, message, now), tries)


def _drop_late_starts(channel: Channel, now: datetime) -> None:
    """A start that is told after the end would say that the run goes on. Pings that did not fail are in order."""
    ended = Notice.objects.filter(channel=channel, event__in=[Notice.Event.SUCCESS, Notice.Event.FAIL])
    failed = Notice.objects.unsent().filter(channel=channel, event=Notice.Event.START, tries__gt=0, not_before__lte=now)
    failed.filter(run__in=ended.values("run")).drop(LATE_START)


def _news(unsent: NoticeQuerySet, now: datetime) -> list[Notice]:
    """The notices to send now, with all others about the same subjects, even those that are held back for longer."""
    due = unsent.filter(not_before__lte=now).values_list("alert__subject", flat=True)[:MOST_AT_ONCE]
    return list(unsent.filter(alert__subject__in=set(due)))


def _chosen(channel: Channel, notices: Sequence[Notice], now: datetime) -> list[Notice]:
    """Those of these notices that make the next message. Others are held back, or dropped."""
    is_quiet, silences = channel.is_quiet(now), list(Silence.objects.filter(starts_at__lte=now, ends_at__gt=now))
    last = {notice.alert.subject: notice for notice in notices if notice.alert}
    told = _told(channel, list(last))
    over: set[str] = set()
    held, chosen = [], []
    for subject, notice in last.items():
        alert = notice.alert
        if alert and (is_quiet or any(silence.covers(alert) for silence in silences)):
            held.append(notice)
        elif alert and alert.health == told.get(subject, Health.OK):
            over.add(subject)
        else:
            chosen.append(notice)
    wanted = {notice.pk for notice in (*held, *chosen)}
    useless = [notice for notice in notices if notice.alert and notice.pk not in wanted]
    _these([notice for notice in useless if notice.alert and notice.alert.subject in over]).drop(OVER)
    _these([notice for notice in useless if notice.alert and notice.alert.subject not in over]).drop(REPLACED)
    _these(held).update(not_before=now + HELD_FOR)
    return chosen


def _told(channel: Channel, subjects: Sequence[str]) -> dict[str, str]:
    """The health of each subject as the channel knows it."""
    sent = Notice.objects.filter(channel=channel, state=Notice.State.SENT, alert__subject__in=subjects)
    return dict(sent.order_by("id").values_list("alert__subject", "alert__health"))


def _these(notices: Sequence[Notice]) -> NoticeQuerySet:
    return Notice.objects.filter(pk__in=[notice.pk for notice in notices])


def _note_success(parcel: Parcel) -> None:
    parcel.notices.note_sent()
    Channel.objects.filter(pk=parcel.channel.pk).update(sent_at=Now(), problem="", problem_since=None)


def _note_failure(parcel: Parcel, why: str, retry_after: float | None = None, *, is_permanent: bool = False) -> None:
    now = database_now()
    if is_permanent or parcel.number >= MOST_TRIES:
        parcel.notices.give_up(why)
    else:
        doubled = FIRST_WAIT * (1 << min(parcel.number - 1, 20))
        wait = min(max(doubled, timedelta(seconds=min(retry_after or 0.0, DAY))), LONGEST_WAIT)
        parcel.notices.put_off(now + wait, why)
    Channel.objects.filter(pk=parcel.channel.pk, problem_since=None).update(problem_since=now)
    Channel.objects.filter(pk=parcel.channel.pk).update(problem=why)


# --- the content of a message ----------------------------------------------------------------------------------------


def _content(channel: Channel, notices: Sequence[Notice], key: UUID, now: datetime) -> Message | Ping:
    first = notices[0]
    if first.run is not None:
        reason = Run.objects.filter(pk=first.run).values_list("reason", flat=True).first()
        return Ping(key, first.run, first.event, reason or "")
    return Message(key, now, channel.reader_zone, [_item(notice.alert) for notice in notices if notice.alert])


def _item(alert: Alert) -> Item:
    return Item(
        subject=alert.subject,
        name=alert.name,
        health=Health(alert.health),
        before=Health(alert.before),
        sentence=alert.sentence,
        expected=alert.expected,
        at=alert.at,
        since=alert.since,
        due_at=alert.due_at,
        count=alert.count,
        link=_link(alert.run, alert.schedule_id),
        log=_last_lines(alert.run),
    )


def _link(run: UUID | None, schedule: int | None) -> str:
    """The page of the run or the schedule; empty for a part of the system, or where this project has no admin."""
    try:
        if run is not None:
            return f"{settings.SITE_URL}{reverse('admin:jobs_run_change', args=[run])}"
        if schedule is not None:
            return f"{settings.SITE_URL}{reverse('admin:django_celery_beat_periodictask_change', args=[schedule])}"
    except NoReverseMatch:
        pass
    return ""


def _last_lines(run: UUID | None) -> list[str]:
    """The last lines of the run's log, which are masked."""
    if run is None:
        return []
    text = RunLog.objects.filter(run=run).order_by("-attempt").values_list("text", flat=True).first() or ""
    return text[-LOG_READ:].splitlines()[-LOG_LINES:]
