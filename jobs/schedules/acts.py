"""What can people do to schedules? Save, delete, enable, disable, pause, resume, skip, retime: one function each.

Its one rule: an act gets the actor, then checks the permission and the right for the job, locks, changes and notes who
did it, in one transaction; a door parses, calls one function and renders. No act starts a run: only a due moment does.
An act that raises `Invalid`, or `Forbidden`, has changed nothing.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.dispatch import Signal
from django_celery_beat.models import PeriodicTask

from jobs.models import KINDS, Act, Actor, Kind, Policy, PolicyQuerySet, database_now
from jobs.models.audit import Changed, note
from jobs.models.refusals import refusal, sole
from jobs.rules.errors import Invalid
from jobs.rules.policies import CatchUp
from jobs.schedules import calendar, snapshot, timings
from jobs.schedules.check import TIMING, check, problem_of_policy

LONGEST_PAUSE = timedelta(days=36525)  # a longer pause should have no end
LONGEST_REASON = 500  # characters
MOST_SKIPPED = 10_000  # due moments

Schedules = QuerySet[PeriodicTask]

acted = Signal()  # sent after an act on schedules is committed


@contextmanager
def saving(schedule: PeriodicTask, actor: Actor | str) -> Iterator[None]:
    """Around the statements that save a schedule, new or changed, with its policy: check the actor, note the act."""
    actor, is_new = Actor.of(actor), schedule.pk is None
    act = Act.ADD if is_new else Act.CHANGE
    actor.check_act(Kind.SCHEDULE, act)
    with transaction.atomic():
        stored = PeriodicTask.objects.filter(pk=schedule.pk)
        if not is_new:
            if not _lock(stored.select_for_update(no_key=True)):
                raise Invalid("The schedule was deleted meanwhile.")
            actor.check_rows(stored)
        has_job = stored.filter(task=schedule.task).exists()
        actor.check_may(schedule.task, schedule=schedule.pk if has_job else None)  # which a token may be limited to
        before = {} if is_new else snapshot.of(stored)
        with sole(schedule, "schedule"):
            yield
        after = snapshot.of(PeriodicTask.objects.filter(pk=schedule.pk))
        if after != before:
            note(actor, Kind.SCHEDULE, act, snapshot.changed(before, after))
        transaction.on_commit(_tell)


def save(
    schedule: PeriodicTask, policy: dict[str, Any], actor: Actor | str, columns: Collection[str] | None = None
) -> None:
    """Save a schedule, new or changed, and these columns of its policy. `columns` are those to write; None: all.

    Raises `Invalid` with a sentence that says what to change if it could not be computed or sent, or would never run,
    and `Conflict` for a name in use.
    """
    actor = Actor.of(actor)
    if schedule.pk is not None and columns is not None and not (columns or policy):
        _check_change(schedule, actor)
        return
    with saving(schedule, actor):
        former = PeriodicTask.objects.select_related("policy").filter(pk=schedule.pk).first()
        if former and columns is not None:
            _renew(schedule, former, columns)
        stored: Policy = getattr(former, "policy", None) or Policy()
        if former and stored.entry and former.name != schedule.name:
            raise Invalid("A schedule from the settings keeps its name: rename its entry in CELERY_BEAT_SCHEDULE.")
        _set(stored, policy)
        _clean(schedule, stored, policy)
        if problem := problem_of_policy(vars(stored), policy):
            raise Invalid(": ".join(problem))
        timing_changed = any(getattr(former, name, None) != getattr(schedule, name) for name in TIMING)
        check(schedule, stored, database_now(), timing_changed=timing_changed, actor=actor)
        _write(schedule, policy, columns)


def _renew(schedule: PeriodicTask, stored: PeriodicTask, columns: Collection[str]) -> None:
    """Give the schedule the stored values of all other columns, so that it is checked as it will be."""
    for field in PeriodicTask._meta.concrete_fields:
        if field.name not in columns:
            setattr(schedule, field.attname, getattr(stored, field.attname))


def _check_change(schedule: PeriodicTask, actor: Actor) -> None:
    """Refuse an actor that may not change the schedule, also where there is nothing to write and so to note."""
    actor.check_act(Kind.SCHEDULE, Act.CHANGE)
    actor.check_may(schedule.task, schedule=schedule.pk)


def _set(policy: Policy, columns: dict[str, Any]) -> None:
    if unknown := sorted(columns.keys() - snapshot.EDITED):
        raise Invalid(f"A policy has no column {', '.join(unknown)}: choose from {', '.join(sorted(snapshot.EDITED))}.")
    for name, value in columns.items():
        setattr(policy, name, value)


def _clean(schedule: PeriodicTask, policy: Policy, given: Collection[str]) -> None:
    """Refuse what the columns do not allow. Raises `Invalid`."""
    fields = Policy._meta.fields
    unset = {field.name for field in fields if field.null and getattr(policy, field.attname) is None}
    try:
        policy.clean_fields(exclude={field.name for field in fields} - ({*given} - unset))
        schedule.full_clean(exclude={"args", "kwargs", "headers"})  # `check` reads these
    except ValidationError as error:
        raise refusal(error) from error


def _write(schedule: PeriodicTask, policy: dict[str, Any], columns: Collection[str] | None) -> None:
    """Write these columns alone: beat may have moved the others meanwhile."""
    written = columns if columns is None or schedule.pk is None else {*columns, "date_changed"}
    if written and "enabled" in written:
        written = {*written, "last_run_at"}  # saving a disabled schedule resets it
    try:
        schedule.save(update_fields=written)
    except ValidationError as error:  # of columns that exclude each other, which only `save` checks
        raise refusal(error) from error
    calendar.refresh(PeriodicTask.objects.filter(pk=schedule.pk))  # a schedule that SQL created may have no policy yet
    policies, others = Policy.objects.filter(pk=schedule.pk), {**policy}
    moments = others.pop("skip_next", None)
    if others:
        policies.update(**others)
    if moments is not None:
        policies.skip(moments)


def delete(schedules: Schedules, actor: Actor | str) -> int:
    """Delete these schedules; returns how many there were. Their runs stay in the ledger."""
    chosen, actor = _chosen(schedules), Actor.of(actor)
    actor.check_act(Kind.SCHEDULE, Act.DELETE)
    with transaction.atomic():
        _lock(chosen.select_for_update(no_key=True))  # first the schedules, as a save does
        _lock(Policy.objects.filter(pk__in=chosen.values("pk")).select_for_update())
        actor.check_rows(chosen)
        before = snapshot.of(chosen)
        chosen.delete()
        note(actor, Kind.SCHEDULE, Act.DELETE, snapshot.changed(before, {}))
        transaction.on_commit(_tell)
    return len(before)


def enable(schedules: Schedules, actor: Actor | str) -> int:
    """Enable these schedules from now on; returns how many there are."""
    return _update(schedules, actor, Act.ENABLE, "Enabled.", enabled=True)


def disable(schedules: Schedules, actor: Actor | str) -> int:
    """Disable these schedules; returns how many there are. Their unfinished runs continue."""
    return _update(schedules, actor, Act.DISABLE, "Disabled.", enabled=False)


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
    return _change(
        schedules, actor, Act.PAUSE, "Paused.", lambda policies: policies.pause(name, reason, until, catch_up)
    )


def resume(schedules: Schedules, actor: Actor | str) -> int:
    """Resume the paused ones among these schedules; returns how many were paused."""
    with transaction.atomic():
        _lock(Policy.objects.filter(pk__in=schedules.values("pk")).select_for_update())  # another user may resume them
        paused = schedules.filter(policy__in=Policy.objects.paused())
        return _change(paused, actor, Act.RESUME, "Resumed.", PolicyQuerySet.resume)


def skip_next(schedules: Schedules, actor: Actor | str, moments: int) -> int:
    """Skip this many of the next due moments, replacing an earlier choice; returns how many schedules there are.

    Raises `Invalid`.
    """
    if not 0 <= moments <= MOST_SKIPPED:
        raise Invalid(f"Choose from 0 to {MOST_SKIPPED:,} due moments to skip.")
    sentence = f"Told to skip {moments:,} due moment{'' if moments == 1 else 's'}."
    return _change(schedules, actor, Act.SKIP, sentence, lambda policies: policies.skip(moments))


def retime(schedules: Schedules, actor: Actor | str, timing: Any) -> int:
    """Make these schedules due by `timing`, a row of one of `KINDS`; returns how many there are."""
    if getattr(timing, "pk", None) is None or not isinstance(timing, tuple(KINDS.values())):
        raise Invalid("The new timing is a saved crontab, interval, clocked moment or event of the sun.")
    columns = timings.columns(timing)
    return _update(schedules, actor, Act.RETIME, f"Given a timing of its own: {timing}.", **columns)


def save_timing(row: Any, actor: Actor | str) -> None:
    """Save a row of one of `KINDS`, new or changed. Beat computes the schedules that use it."""
    actor, is_new = Actor.of(actor), row.pk is None
    act = Act.ADD if is_new else Act.CHANGE
    actor.check(f"django_celery_beat.{act}_{row._meta.model_name}")
    with transaction.atomic():
        stored = type(row).objects.filter(pk=row.pk)
        if not _lock(stored.select_for_update(no_key=True)) and not is_new:
            raise Invalid("The timing was deleted meanwhile.")
        actor.check_rows(_using(stored))
        before = snapshot.of_timing(stored.first())
        row.save()
        after = snapshot.of_timing(row)
        if after != before:
            note(actor, Kind.TIMING, act, [Changed(snapshot.key_of(row), str(row), before, after)])


def delete_timings(rows: QuerySet[Any], actor: Actor | str) -> int:
    """Delete rows of one of `KINDS`, and the schedules that use them; returns how many rows there were."""
    actor = Actor.of(actor)
    actor.check(f"django_celery_beat.{Act.DELETE}_{rows.model._meta.model_name}")
    with transaction.atomic():
        _lock(rows.select_for_update())  # from now on no schedule can be given one of them
        chosen = list(rows)
        using = _using(rows)
        if using.exists():
            delete(using, actor)
        gone = [Changed(snapshot.key_of(row), str(row), snapshot.of_timing(row)) for row in chosen]
        rows.model._default_manager.filter(pk__in=[row.pk for row in chosen]).delete()
        note(actor, Kind.TIMING, Act.DELETE, gone)
    return len(chosen)


def _using(rows: QuerySet[Any]) -> Schedules:
    kind = timings.kind_of(rows.model)
    using: Schedules = PeriodicTask.objects.filter(**{f"{kind}__in": list(rows.values_list("pk", flat=True))})
    return using


def _update(schedules: Schedules, actor: Actor | str, act: Act, sentence: str, **columns: Any) -> int:
    """Lock the schedules alone, and let the calendar have their policies after the commit."""
    chosen = _chosen(schedules)
    with _noted(chosen, chosen.select_for_update(no_key=True), Actor.of(actor), act, sentence) as number:
        chosen.update(**columns)
        transaction.on_commit(partial(_refresh, chosen))
    return number


def _refresh(chosen: Schedules) -> None:
    """Let the calendar compute the schedules slice by slice: each of its queries names all of those it is given."""
    keys = list(chosen.order_by("pk").values_list("pk", flat=True))
    for start in range(0, len(keys), calendar.SLICE):
        calendar.refresh(PeriodicTask.objects.filter(pk__in=keys[start : start + calendar.SLICE]))


def _change(
    schedules: Schedules, actor: Actor | str, act: Act, sentence: str, change: Callable[[PolicyQuerySet], object]
) -> int:
    """Lock and change the policies alone."""
    chosen = _chosen(schedules)
    calendar.refresh(chosen)  # a schedule that was created a moment ago may have no policy yet
    policies = Policy.objects.filter(pk__in=chosen.values("pk"))
    with _noted(chosen, policies.select_for_update(), Actor.of(actor), act, sentence) as number:
        change(policies)
    return number


@contextmanager
def _noted(chosen: Schedules, rows: QuerySet[Any], actor: Actor, act: Act, sentence: str) -> Iterator[int]:
    """Check the actor, lock the rows, and note what the block changes; yields how many rows there are."""
    actor.check_act(Kind.SCHEDULE, act)
    with transaction.atomic():
        number = _lock(rows)
        actor.check_rows(chosen)
        before = snapshot.of(chosen)
        yield number
        note(actor, Kind.SCHEDULE, act, snapshot.changed(before, snapshot.of(chosen)), sentence)
        transaction.on_commit(_tell)


def _chosen(schedules: Schedules) -> Schedules:
    """The same schedules, selected by keys that the act does not change."""
    chosen: Schedules = PeriodicTask.objects.filter(pk__in=list(schedules.values_list("pk", flat=True)))
    return chosen


def _lock(rows: QuerySet[Any]) -> int:
    """Lock the rows in a fixed order, so that two acts on the same rows cannot deadlock; returns how many there are."""
    return len(list(rows.order_by("pk").values_list("pk", flat=True)))


def _tell() -> None:
    acted.send_robust(sender=PeriodicTask)
