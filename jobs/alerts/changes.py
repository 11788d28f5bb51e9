"""Which changes of health are there, and who is to be told of each? It writes conditions, alerts and notices.

Its one rule: a change is written by the latest look only, in one transaction with its notices. A look that another one
has overtaken writes nothing, so two beats never report the same change, and an older look never undoes a newer one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django_celery_beat.models import PeriodicTask

from jobs.models import LONGEST_NAME, Alert, Channel, Condition, Notice, Run, State, Watch
from jobs.models.alerts import BAD_ENDS
from jobs.monitoring import health, system
from jobs.rules.health import Finding, Health, matches
from jobs.secrets import head, mask

LINGER = timedelta(seconds=5)  # for which a message waits, so that it tells all that happens at once
BATCH = 500  # rows per statement
WELL = Finding(Health.OK, "It is well again.")


@dataclass(frozen=True, slots=True)
class Seen:
    """A subject with its health. Parts of the system have neither schedule nor job."""

    subject: str
    name: str
    finding: Finding
    schedule: PeriodicTask | None = None


def of_schedules(found: Mapping[PeriodicTask, Finding]) -> list[Seen]:
    return [Seen(health.SUBJECT.format(each.pk), each.name, finding, each) for each, finding in found.items()]


def of_system(found: Mapping[str, Finding]) -> list[Seen]:
    """The parts that are down, and those that were and no longer are."""
    ill = Condition.objects.filter(schedule=None).values_list("subject", flat=True)
    return [Seen(each, system.title(each), found.get(each, WELL)) for each in sorted({*found, *ill})]


def record(look: Watch, seen: Iterable[Seen], now: datetime) -> list[Alert]:
    """Write down what has changed, and whom to tell; returns the changes. Nothing if another look has begun."""
    by_subject = {each.subject: each for each in seen}
    with transaction.atomic():
        if not by_subject or not look.hold():
            return []
        known = Condition.objects.in_bulk(list(by_subject))
        alerts = [
            _alert(each, known.get(subject), now)
            for subject, each in by_subject.items()
            if each.finding.health != (known[subject].health if subject in known else Health.OK)
        ]
        Alert.objects.bulk_create(alerts, BATCH)
        _remember(alerts)
        tell(alerts, now)
    return alerts


def tell(alerts: Sequence[Alert], now: datetime) -> None:
    """Write a notice of each alert for each channel whose rules choose it.

    Who was told of an illness is told of its end, too, even if the schedule has another name by then.
    """
    channels = Channel.objects.filter(is_enabled=True)
    well = [alert.subject for alert in alerts if alert.health == Health.OK]
    hearers = Notice.objects.filter(alert__subject__in=well).exclude(channel__kind=Channel.Kind.PING)
    told = set(hearers.values_list("channel", "alert__subject").distinct())
    notices = [
        Notice(channel=channel, alert=alert, not_before=now + LINGER)
        for channel in channels
        for alert in alerts
        if (channel.is_told_of(alert) or (channel.pk, alert.subject) in told)
        and alert.subject != f"channel:{channel.name}"
    ]
    Notice.objects.bulk_create(notices, BATCH)


def _alert(seen: Seen, before: Condition | None, now: datetime) -> Alert:
    finding = seen.finding
    since = before.since if before and finding.health is Health.OK else finding.since
    return Alert(
        subject=seen.subject,
        schedule=seen.schedule,
        name=head(seen.name, LONGEST_NAME),
        job=seen.schedule.task if seen.schedule else "",
        before=before.health if before else Health.OK.value,
        health=finding.health.value,
        at=now,
        since=since or now,
        expected=finding.expected,
        sentence=mask(finding.sentence),
        count=finding.count,
        due_at=finding.due_at,
        run=finding.run,
    )


def _remember(alerts: Iterable[Alert]) -> None:
    columns = ["schedule", "health", "sentence", "since", "run"]
    ill = [
        Condition(
            subject=alert.subject,
            schedule=alert.schedule,
            health=alert.health,
            sentence=alert.sentence,
            since=alert.since,
            run=alert.run,
        )
        for alert in alerts
        if alert.health != Health.OK
    ]
    Condition.objects.bulk_create(ill, BATCH, update_conflicts=True, unique_fields=["subject"], update_fields=columns)
    Condition.objects.filter(subject__in=[alert.subject for alert in alerts if alert.health == Health.OK]).delete()


def note_runs(since: datetime) -> None:
    """Write a notice of each start and end of a run since then, for the channels that are pinged about them."""
    channels = list(Channel.objects.filter(kind=Channel.Kind.PING, is_enabled=True))
    if not channels:
        return
    chosen = _chosen(channels)
    wanted = {schedule for schedules in chosen.values() for schedule in schedules}
    rows = [*_started(wanted, since), *_ended(wanted, since)]
    notices = [
        Notice(channel=channel, run=run, event=event, not_before=at)
        for schedule, run, event, at in rows
        for channel in channels
        if schedule in chosen[channel.pk] and at >= channel.created_at
    ]
    Notice.objects.bulk_create(notices, BATCH, ignore_conflicts=True)


Event = tuple[int | None, UUID, str, datetime]


def _chosen(channels: Iterable[Channel]) -> dict[int, set[int]]:
    """The schedules that each of these channels is about."""
    rows = list(PeriodicTask.objects.values_list("pk", "name", "task"))
    by_name: dict[str, set[int]] = {}
    for pk, name, task in rows:
        by_name.setdefault(name, set()).add(pk)
        by_name.setdefault(task, set()).add(pk)
    chosen = {}
    for channel in channels:
        plain = [each for each in channel.patterns if "*" not in each]
        chosen[channel.pk] = {pk for each in plain for pk in by_name.get(each, ())}
        if len(plain) < len(channel.patterns) or not channel.patterns:
            chosen[channel.pk] |= {pk for pk, name, task in rows if matches(channel.patterns, name, task)}
    return chosen


def _started(schedules: Iterable[int], since: datetime) -> list[Event]:
    running = Run.objects.active().filter(schedule__in=schedules, state=State.RUNNING, started_at__gt=since)
    ended = Run.objects.filter(schedule__in=schedules, finished_at__gt=since, started_at__gt=since)
    return [
        (schedule, run, Notice.Event.START.value, at)
        for runs in (running, ended)
        for schedule, run, at in runs.values_list("schedule_id", "id", "started_at")
        if at
    ]


def _ended(schedules: Iterable[int], since: datetime) -> list[Event]:
    ended = Run.objects.filter(schedule__in=schedules, finished_at__gt=since)
    told = ended.filter(state__in=[State.SUCCEEDED, *BAD_ENDS])
    return [
        (schedule, run, (Notice.Event.SUCCESS if state == State.SUCCEEDED else Notice.Event.FAIL).value, at)
        for schedule, run, state, at in told.values_list("schedule_id", "id", "state", "finished_at")
        if at
    ]
