"""Which schedules does the code define? Beat installs the entries of CELERY_BEAT_SCHEDULE when it starts.

Its one rule: each version of an entry is written once. Edits in the admin hold until the entry changes, and a changed
entry never enables, disables, pauses or resumes an existing schedule. An entry that cannot be installed stops no other
entry, and its schedule stays as it was installed last.

A schedule whose entry is gone is disabled, and deleted weeks later: if the entry returns, so does its policy. An entry
with a new name and the same job, timing and arguments is a rename. No project changes the schedules of another (the
setting PROJECT), and no beat those of a newer release while a beat of that release is there.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from celery import schedules
from celery.utils.time import delta_resolution
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import Error as DatabaseError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from jobs.messages import discovery
from jobs.messages.message import message_of
from jobs.models import KINDS, Node, Policy, PolicyQuerySet, Release, database_now
from jobs.rules.errors import Invalid
from jobs.rules.policies import MISSED_AFTER
from jobs.schedules import acts, calendar, timings
from jobs.schedules.entry import as_text, read, wall_zone_of

T = TypeVar("T")

log = logging.getLogger(__name__)

# An entry for it without arguments gives way to a schedule that operators make for it, or call so.
CLEAN_UP = "jobs.cleanup"
CLEAN_UP_OF_CELERY = "celery.backend_cleanup"  # one project's is enough for a database
KEPT_FOR = timedelta(days=30)  # a schedule whose entry is gone
# How long a beat waits for a newer one that may come back: one that stopped in order, and one that went silent.
STOPPED, SILENT = timedelta(seconds=30), timedelta(minutes=2)

# Errors from reading an entry that does not follow Celery's documentation.
UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many schedules were created, changed or removed, and for each entry that cannot run the reason."""

    changed: int
    refused: dict[str, str] = field(default_factory=dict)
    flagged: dict[str, str] = field(default_factory=dict)  # these are installed
    newer: tuple[str, ...] = ()  # beats of a newer release: the entries were left to them


class Known(NamedTuple):
    """An entry as it was installed last, and the state of its schedule."""

    pk: int
    name: str
    text: str
    owner: str
    wall_zone: str
    removed_at: datetime | None
    enabled_before: bool
    enabled: bool


def install(app: Any, release: Release | None = None) -> Outcome:
    """Write the entries that changed since the last time, and remove the schedules whose entry is gone.

    Two beats may do this at once: the second writes the same values again, or finds that the first has written them.
    `release` is that of this process, if the caller knows it.
    """
    if newer := newer_beats(release or release_of(app)):
        return Outcome(0, newer=newer)
    entries = _without_default(_entries(app))
    wanted, refused = _readable(entries, app)
    known = {row.name: row for row in _released(_known(), entries)}
    # A broken module may have added an entry that is missing now.
    gone = [] if discovery.broken(app) else [row for row in known.values() if _is_gone(row, entries)]
    renamed = _renamed(gone, wanted)
    changed = 0
    for name, columns in wanted.items():
        try:
            changed += _install(name, columns, known.get(name) or renamed.get(name))
        except (Invalid, ValidationError, DatabaseError, *UNREADABLE) as error:
            refused[name] = str(error) or repr(error)
    changed += _remove([row for row in gone if row not in renamed.values()])
    _delete_forgotten(known.values())
    _tell_of_strays(known.values(), entries)
    return Outcome(changed, refused, _flagged(refused))


# --- which beat may install -----------------------------------------------------------------------------------------


def release_of(app: Any) -> Release:
    """What this process knows of the entries. The first call of a release decides which releases are older."""
    wanted, refused = _readable(_entries(app), app)
    texts = {name: as_text(columns) for name, columns in wanted.items()} | dict.fromkeys(refused, "")
    digest = sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    release, _ = Release.objects.get_or_create(
        project=settings.PROJECT, version=settings.CODE_VERSION[:100], entries=digest
    )
    return release


def newer_beats(release: Release) -> tuple[str, ...]:
    """The beats of newer releases of this project that are there, or may come back in a moment."""
    there = Q(stopped_at=None, seen_at__gt=Now() - SILENT) | Q(stopped_at__gt=Now() - STOPPED)
    newer = Node.objects.filter(there, release__project=release.project, release__gt=release.pk)
    return tuple(newer.order_by("name").values_list("name", flat=True))


# --- definitions, and known schedules -----------------------------------------------------------------------------


def _entries(app: Any) -> dict[str, Mapping[str, Any]]:
    """All entries by name, with those of `add_periodic_task` and Celery's own entry that deletes old results."""
    discovery.load(app)
    app.finalize()
    entries = dict(app.conf.beat_schedule)
    if app.conf.result_expires and not app.backend.supports_autoexpire:
        cleanup = {"task": CLEAN_UP_OF_CELERY, "schedule": schedules.crontab("0", "4", "*")}
        entries.setdefault(CLEAN_UP_OF_CELERY, {**cleanup, "options": {"expires": 12 * 3600}})
    return entries


def _without_default(entries: dict[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Leave out a clean-up for which an operator or another project has a schedule."""
    theirs = Q(policy__removed_at=None) & ~Q(policy__owner__in=("", settings.PROJECT))
    for task, others in ((CLEAN_UP, Q(policy__entry="") | theirs), (CLEAN_UP_OF_CELERY, theirs)):
        names = {name for name, each in entries.items() if each.get("task") == task and not each.get("kwargs")}
        if names and PeriodicTask.objects.filter(Q(task=task) | Q(name__in=names), others).exists():
            entries = {name: entry for name, entry in entries.items() if name not in names}
    return entries


def _readable(entries: Mapping[str, Any], app: Any) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The columns of each entry, and for each one that cannot be read or is never due the reason."""
    wanted, refused = {}, {}
    for name, entry in entries.items():
        try:
            wanted[name] = read(name, entry, app)
        except (Invalid, *UNREADABLE) as error:
            refused[name] = str(error) or repr(error)
    return wanted, refused


def _known() -> list[Known]:
    columns = (
        *("pk", "schedule__name", "entry", "owner", "wall_zone"),
        *("removed_at", "enabled_before", "schedule__enabled"),
    )
    return [Known(*row) for row in Policy.objects.exclude(entry="").values_list(*columns)]


def _is_gone(row: Known, entries: Mapping[str, Any]) -> bool:
    return row.owner == settings.PROJECT and row.name not in entries and row.removed_at is None


def _renamed(gone: list[Known], wanted: Mapping[str, dict[str, Any]]) -> dict[str, Known]:
    """The schedules that new entries rename, by the new name. Where several would fit, none is renamed."""
    if not gone:
        return {}
    taken = set(PeriodicTask.objects.filter(name__in=wanted).values_list("name", flat=True))
    new = _by_work((name, as_text(columns)) for name, columns in wanted.items() if name not in taken)
    old = _by_work((row, row.text) for row in gone)
    return {new[work][0]: old[work][0] for work in new.keys() & old.keys() if len(new[work]) == len(old[work]) == 1}


def _by_work(entries: Iterable[tuple[T, str]]) -> dict[str, list[T]]:
    """Group entries by what a rename keeps: the job, the timing and the arguments."""
    found: dict[str, list[T]] = {}
    for each, text in entries:
        columns = _columns(text)
        schedule = columns.get("schedule", {})
        work = [columns.get("timing"), *(schedule.get(name) for name in ("task", "args", "kwargs"))]
        found.setdefault(json.dumps(work), []).append(each)
    return found


def _columns(text: str) -> dict[str, Any]:
    """The columns of an entry that was installed before; none if it cannot be read."""
    try:
        columns = json.loads(text)
    except ValueError:
        return {}
    return columns if isinstance(columns, dict) else {}


# --- writing --------------------------------------------------------------------------------------------------------


def _install(name: str, columns: dict[str, Any], row: Known | None) -> bool:
    """Write an entry if it changed; returns whether it did."""
    text = as_text(columns)
    if row is not None and (row.name, row.text) == (name, text):
        return _keep(row, wall_zone_of(columns))
    try:
        with transaction.atomic():
            _write(name, columns, text, row)
    except (IntegrityError, ValidationError):
        if not Policy.objects.filter(schedule__name=name, entry=text).exists():  # else another beat was faster
            raise
        return False
    return True


def _check_owner(policies: PolicyQuerySet) -> None:
    """Refuse to change an entry that another project defines."""
    others = policies.filter(removed_at=None).exclude(owner__in=("", settings.PROJECT))
    if owner := others.values_list("owner", flat=True).first():
        raise Invalid(
            f"the project {owner!r} has installed an entry of this name in the same database; choose another name. If"
            f" both are one project, set PROJECT={owner} (here it is {settings.PROJECT!r})."
        )


def _keep(row: Known, wall_zone: str) -> bool:
    """Own an entry of an earlier version, and bring back one that had been gone; returns whether it had."""
    if (row.owner, row.wall_zone, row.removed_at) == (settings.PROJECT, wall_zone, None):
        return False
    this, policies = PeriodicTask.objects.filter(pk=row.pk), Policy.objects.filter(pk=row.pk)
    _check_owner(policies)
    policies.update(owner=settings.PROJECT, wall_zone=wall_zone, removed_at=None)
    if row.removed_at and row.enabled_before:
        acts.enable(this, "Punctual")
    calendar.refresh(this)
    return row.removed_at is not None


def _write(name: str, columns: dict[str, Any], text: str, row: Known | None) -> None:
    schedule = PeriodicTask.objects.select_for_update(no_key=True).filter(Q(pk=row.pk) if row else Q(name=name)).first()
    if schedule is not None:
        _check_owner(Policy.objects.filter(pk=schedule.pk))
    kind, timing = columns["timing"]
    values = {**columns["schedule"], "name": name, **timings.columns(timings.saved(KINDS[kind](**timing)))}
    if schedule is None:
        schedule = PeriodicTask()
    else:  # only users decide whether it is enabled
        values["enabled"] = row.enabled_before if row and row.removed_at else schedule.enabled
    for column, value in values.items():
        setattr(schedule, column, value)
    schedule.start_time = _start_of(columns, row, schedule.start_time)
    schedule.clean_fields()
    schedule.save()
    own = {"entry": text, "owner": settings.PROJECT, "removed_at": None, "wall_zone": wall_zone_of(columns)}
    Policy.objects.filter(schedule=schedule).update(**own, **columns["policy"])
    calendar.refresh(PeriodicTask.objects.filter(pk=schedule.pk))


def _start_of(columns: dict[str, Any], row: Known | None, former: datetime | None) -> datetime | None:
    """Where the grid of a relative interval begins, in the past; it stays while the timing does."""
    kind, timing = columns["timing"]
    if not columns["relative"] or kind != "interval":  # crontabs follow the clock anyway
        return None
    before = _columns(row.text) if row else {}
    now = json.loads(as_text(columns))
    if former and all(before.get(name) == now[name] for name in ("timing", "relative", "zone")):
        return former
    return _aligned(timing, columns["zone"])


def _aligned(interval: dict[str, Any], zone: Any) -> datetime:
    """A start of a day, hour, minute or second, the unit of the interval, in the app's time zone.

    It lies so far in the past that it is not due itself: a schedule's start time on time would be.
    """
    period, every = interval["period"], timedelta(**{interval["period"]: interval["every"]})
    now = database_now().astimezone(zone)
    start = delta_resolution(now, timedelta(**{period: 1}))
    start = start if period == "days" else start.astimezone(UTC)  # days by the wall clock, others by elapsed time
    while now - start <= MISSED_AFTER or (period == "days" and _is_skipped(start)):
        start -= every
    return start


def _is_skipped(midnight: datetime) -> bool:
    """Whether the clocks of its zone skip this midnight, so that it says nothing about those after it."""
    return datetime.fromtimestamp(midnight.timestamp(), midnight.tzinfo).hour != 0


# --- removing -------------------------------------------------------------------------------------------------------


def _remove(gone: list[Known]) -> int:
    """Disable the schedules whose entry is gone; returns how many."""
    if not gone:
        return 0
    # By name, too: another beat may have renamed one of them meanwhile.
    rows = PeriodicTask.objects.filter(pk__in=[row.pk for row in gone], name__in=[row.name for row in gone])
    with transaction.atomic():
        enabled = dict(rows.select_for_update(no_key=True).order_by("pk").values_list("pk", "enabled"))
        acts.disable(rows, "Punctual")
        policies = Policy.objects.filter(pk__in=enabled, removed_at=None)  # another beat may have been faster
        for before in (True, False):
            those = [pk for pk, was_enabled in enabled.items() if was_enabled is before]
            policies.filter(pk__in=those).update(removed_at=Now(), enabled_before=before)
    for row in gone:
        log.warning(
            "The entry %r of project %s is gone: its schedule is disabled, and deleted after %d days.",
            *(row.name, settings.PROJECT, KEPT_FOR.days),
        )
    return len(enabled)


def _released(known: list[Known], entries: Collection[str]) -> list[Known]:
    """A schedule without entry that a user has enabled again is the user's; returns the others."""
    users = {row.pk for row in known if _was_removed_here(row) and row.enabled and row.name not in entries}
    if users:
        Policy.objects.filter(pk__in=users).update(entry="", owner="", removed_at=None, wall_zone="")
    return [row for row in known if row.pk not in users]


def _was_removed_here(row: Known) -> bool:
    return row.owner == settings.PROJECT and row.removed_at is not None


def _delete_forgotten(known: Iterable[Known]) -> None:
    """Delete schedules whose entry has been gone for long, unless it has returned."""
    if removed := [row.pk for row in known if _was_removed_here(row)]:
        forgotten = Policy.objects.filter(pk__in=removed, removed_at__lt=Now() - KEPT_FOR)
        acts.delete(PeriodicTask.objects.filter(policy__in=forgotten, enabled=False), "Punctual")


def _tell_of_strays(known: Iterable[Known], entries: Collection[str]) -> None:
    """An earlier version of Punctual did not say which project installed an entry."""
    for row in known:
        if row.owner == "" and row.name not in entries:
            log.warning("No entry here defines the schedule %r: delete it, unless another project does.", row.name)


# --- what cannot run ------------------------------------------------------------------------------------------------


def _flagged(refused: Collection[str]) -> dict[str, str]:
    """The reasons of schedules of this project that are installed and enabled, but cannot run."""
    own = PeriodicTask.objects.filter(policy__owner=settings.PROJECT, enabled=True).exclude(policy__entry="")
    reasons = {each.name: _why_not(each) for each in own.exclude(name__in=refused).select_related("policy")}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_not(schedule: Any) -> str:
    try:
        message_of(schedule, schedule.policy)
    except Invalid as error:
        return str(error)
    return str(schedule.policy.invalid_reason)
