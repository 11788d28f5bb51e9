"""What can people do to schedules? Enable, disable, pause, resume, skip: one function each, for every door.

Its one rule: an act gets the actor, then checks, locks, changes and records, in one transaction; a door checks the
permission, parses, calls and renders. No act starts a run: only a due moment does.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from django.db import transaction
from django.db.models import QuerySet
from django.dispatch import Signal
from django_celery_beat.models import PeriodicTask

from jobs.models import Policy, PolicyQuerySet, database_now
from jobs.models.audit import Actor, note
from jobs.rules.errors import Invalid
from jobs.rules.policies import CatchUp
from jobs.schedules import calendar

LONGEST_PAUSE = timedelta(days=36525)  # a longer pause should have no end
LONGEST_REASON = 500  # characters
MOST_SKIPPED = 10_000  # due moments

Schedules = QuerySet[PeriodicTask]

acted = Signal()  # sent after an act on schedules is committed


def enable(schedules: Schedules, actor: Actor) -> int:
    """Enable these schedules from now on; returns how many there are."""
    return _act(schedules, actor, "enabled", partial(_switch, enabled=True))


def disable(schedules: Schedules, actor: Actor) -> int:
    """Disable these schedules; returns how many there are. Their unfinished runs continue."""
    return _act(schedules, actor, "disabled", partial(_switch, enabled=False))


def pause(
    schedules: Schedules,
    actor: Actor,
    reason: str = "",
    until: datetime | None = None,
    catch_up: str = CatchUp.NONE.value,
) -> int:
    """Pause these schedules until a moment, or until they are resumed; returns how many there are.

    Pausing again replaces the reason, the end and the catch-up. Raises `Invalid`.
    """
    if until and not timedelta(0) < until - database_now() < LONGEST_PAUSE:
        raise Invalid("Choose a moment in the next hundred years, or none.")
    if len(reason) > LONGEST_REASON:
        raise Invalid(f"The reason is longer than {LONGEST_REASON} characters: shorten it.")
    if catch_up not in set(CatchUp):
        raise Invalid(f"There is no catch-up {catch_up!r}: choose from {', '.join(CatchUp)}.")
    return _act(schedules, actor, "paused", lambda chosen: _policies(chosen).pause(actor.name, reason, until, catch_up))


def resume(schedules: Schedules, actor: Actor) -> int:
    """Resume the paused ones among these schedules; returns how many were paused."""
    paused = schedules.filter(policy__in=Policy.objects.paused())
    return _act(paused, actor, "resumed", lambda chosen: _policies(chosen).resume())


def skip_next(schedules: Schedules, actor: Actor, moments: int) -> int:
    """Skip this many of the next due moments, replacing an earlier choice; returns how many schedules there are.

    Raises `Invalid`.
    """
    if not 0 <= moments <= MOST_SKIPPED:
        raise Invalid(f"Choose from 0 to {MOST_SKIPPED:,} due moments to skip.")
    what = f"told to skip {moments:,} due moment{'' if moments == 1 else 's'}"
    return _act(schedules, actor, what, lambda chosen: _policies(chosen).update(skip_next=moments))


def _act(schedules: Schedules, actor: Actor, what: str, change: Callable[[Schedules], object]) -> int:
    chosen: Schedules = PeriodicTask.objects.filter(pk__in=list(schedules.values_list("pk", flat=True)))
    calendar.refresh(chosen)  # a schedule that was created a moment ago may have no policy yet
    with transaction.atomic():
        # Locked in a fixed order, so that two acts on the same rows cannot deadlock.
        number = len(list(chosen.select_for_update().order_by("pk").values_list("pk", flat=True)))
        change(chosen)
        note(actor, PeriodicTask, chosen.values_list("pk", "name"), f"{what[0].upper()}{what[1:]}.")
        transaction.on_commit(_tell)
    return number


def _switch(chosen: Schedules, *, enabled: bool) -> None:
    chosen.update(enabled=enabled)
    calendar.refresh(chosen)


def _tell() -> None:
    acted.send(sender=PeriodicTask)


def _policies(chosen: Schedules) -> PolicyQuerySet:
    return Policy.objects.filter(schedule__in=chosen)
