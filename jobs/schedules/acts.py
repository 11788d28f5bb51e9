"""What can people do to schedules? Enable, disable, pause, resume, skip, retime: one function each, for every door.

Its one rule: an act gets the actor, then checks, locks, changes and records, in one transaction; a door checks the
permission, parses, calls and renders. No act starts a run: only a due moment does. If the actor lacks the right for one
of the jobs, an act raises `Forbidden` and changes nothing.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.dispatch import Signal
from django_celery_beat.models import PeriodicTask

from jobs.models import KINDS, Policy, PolicyQuerySet, database_now
from jobs.models.audit import Actor, note
from jobs.rules.errors import Invalid
from jobs.rules.policies import CatchUp
from jobs.schedules import calendar

LONGEST_PAUSE = timedelta(days=36525)  # a longer pause should have no end
LONGEST_REASON = 500  # characters
MOST_SKIPPED = 10_000  # due moments

Schedules = QuerySet[PeriodicTask]

acted = Signal()  # sent after an act on schedules is committed


def enable(schedules: Schedules, actor: Actor | str) -> int:
    """Enable these schedules from now on; returns how many there are."""
    return _switch(schedules, actor, enabled=True)


def disable(schedules: Schedules, actor: Actor | str) -> int:
    """Disable these schedules; returns how many there are. Their unfinished runs continue."""
    return _switch(schedules, actor, enabled=False)


def pause(
    schedules: Schedules,
    actor: Actor | str,
    reason: str = "",
    until: datetime | None = None,
    catch_up: str = CatchUp.NONE.value,
) -> int:
    """Pause these schedules until a moment, or until they are resumed; returns how many there are.

    Pausing again replaces the reason, the end and the catch-up. Raises `Invalid`.
    """
    if until and not timedelta(0) < until - database_now() < LONGEST_PAUSE:
        raise Invalid("Choose a moment in the next hundred years, or none.")
    if len(reason) > LONGEST_REASON or not reason.isprintable():
        raise Invalid(f"Write the reason in one line of at most {LONGEST_REASON} characters.")
    if catch_up not in set(CatchUp):
        raise Invalid(f"There is no catch-up {catch_up!r}: choose from {', '.join(CatchUp)}.")
    name = Actor.of(actor).name
    return _change(schedules, actor, "Paused.", lambda policies: policies.pause(name, reason, until, catch_up))


def resume(schedules: Schedules, actor: Actor | str) -> int:
    """Resume the paused ones among these schedules; returns how many were paused."""
    paused = schedules.filter(policy__in=Policy.objects.paused())
    return _change(paused, actor, "Resumed.", PolicyQuerySet.resume)


def skip_next(schedules: Schedules, actor: Actor | str, moments: int) -> int:
    """Skip this many of the next due moments, replacing an earlier choice; returns how many schedules there are.

    Raises `Invalid`.
    """
    if not 0 <= moments <= MOST_SKIPPED:
        raise Invalid(f"Choose from 0 to {MOST_SKIPPED:,} due moments to skip.")
    sentence = f"Told to skip {moments:,} due moment{'' if moments == 1 else 's'}."
    return _change(schedules, actor, sentence, lambda policies: policies.skip(moments))


def retime(schedules: Schedules, actor: Actor | str, timing: Any) -> int:
    """Make these schedules due by `timing`, a row of one of `KINDS`; returns how many there are."""
    chosen = _chosen(schedules)
    kinds = {kind: timing if isinstance(timing, model) else None for kind, model in KINDS.items()}
    with transaction.atomic():
        number = _lock(chosen.select_for_update(no_key=True))
        Actor.of(actor).check_rows(chosen)
        chosen.update(**kinds)
        _note(chosen, actor, f"Given a timing of its own: {timing}.")
        transaction.on_commit(partial(calendar.refresh, chosen))
    return number


def _switch(schedules: Schedules, actor: Actor | str, *, enabled: bool) -> int:
    """Lock the schedules alone, and let the calendar have their policies after the commit."""
    chosen = _chosen(schedules)
    with transaction.atomic():
        number = _lock(chosen.select_for_update(no_key=True))
        Actor.of(actor).check_rows(chosen)
        chosen.update(enabled=enabled)
        _note(chosen, actor, "Enabled." if enabled else "Disabled.")
        transaction.on_commit(partial(calendar.refresh, chosen))
    return number


def _change(schedules: Schedules, actor: Actor | str, sentence: str, change: Callable[[PolicyQuerySet], object]) -> int:
    """Lock and change the policies alone."""
    chosen = _chosen(schedules)
    calendar.refresh(chosen)  # a schedule that was created a moment ago may have no policy yet
    policies = Policy.objects.filter(pk__in=chosen.values("pk"))
    with transaction.atomic():
        number = _lock(policies.select_for_update())
        Actor.of(actor).check_rows(chosen)
        change(policies)
        _note(chosen, actor, sentence)
    return number


def _chosen(schedules: Schedules) -> Schedules:
    """The same schedules, selected by keys that the act does not change."""
    chosen: Schedules = PeriodicTask.objects.filter(pk__in=list(schedules.values_list("pk", flat=True)))
    return chosen


def _lock(rows: QuerySet[Any]) -> int:
    """Lock the rows in a fixed order, so that two acts on the same rows cannot deadlock; returns how many there are."""
    return len(list(rows.order_by("pk").values_list("pk", flat=True)))


def _note(chosen: Schedules, actor: Actor | str, sentence: str) -> None:
    note(Actor.of(actor), PeriodicTask, chosen.values_list("pk", "name"), sentence)
    transaction.on_commit(_tell)


def _tell() -> None:
    acted.send_robust(sender=PeriodicTask)
