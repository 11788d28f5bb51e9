"""How does a command show schedules? As lines, as properties, and as the JSON that the API has for them."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from django.db.models import Q, QuerySet
from django_celery_beat.models import PeriodicTask

from jobs.alerts import descriptions
from jobs.ledger.backfills import Preview
from jobs.management.terminal import shown
from jobs.models import KINDS, Run, database_now
from jobs.monitoring.progress import reason_of
from jobs.schedules import status
from jobs.web.api import schedule_shown

DUE = 5  # due moments of a schedule
COLUMNS = ("id", "name", "job", "timing", "status", "next due", "last run")
CONDITIONS = {
    "disabled": Q(enabled=False),
    **{name: status.CONDITIONS[name] for name in ("enabled", "paused", "flagged")},
}


def rows() -> QuerySet[Any]:
    """All schedules, with their timings and the id of the last run."""
    return status.with_last_run(PeriodicTask.objects.select_related("policy", "condition", *KINDS), "id")


def as_json(schedules: Iterable[Any], *, whole: bool = False) -> list[dict[str, Any]]:
    """The schedules as the API shows them."""
    found = list(schedules)
    runs, now = status.last_runs(found), database_now()
    shown = [schedule_shown.show(schedule, runs.get(schedule.last_run_id), now) for schedule in found]
    if whole:
        for each, schedule in zip(shown, found, strict=True):
            each["due"] = schedule_shown.show_due(schedule, DUE)
    return shown


def lines(schedules: Collection[Any]) -> Iterator[list[Any]]:
    runs, now = status.last_runs(schedules), database_now()
    for each in schedules:
        run = runs.get(each.last_run_id)
        policy = status.policy_of(each)
        due = policy and policy.next_due_at
        yield [
            each.pk,
            each.name,
            each.task,
            status.in_words(each, now),
            status.sentence(each, now),
            due,
            run and run.state,
        ]


def properties(schedule: Any) -> dict[str, Any]:
    """What a person wants to know about a schedule, in order."""
    now = database_now()
    due = [shown(at) + (f", skipped: {why}" if why else "") for at, why in status.upcoming(schedule, DUE)]
    return {
        "id": schedule.pk,
        "name": schedule.name,
        "status": status.sentence(schedule, now),
        "health": _health(schedule),
        "job": schedule.task,
        "timing": status.in_words(schedule, now),
        **{name: text for name in ("args", "kwargs") if (text := getattr(schedule, name)) not in {"", "[]", "{}"}},
        **{name: getattr(schedule, name) for name in ("queue", "priority", "description")},
        **{f"due {number}": moment for number, moment in enumerate(due, 1)},
    }


def _health(schedule: Any) -> str:
    found = descriptions.condition_of(schedule)
    said = f" since {shown(found.since)}: {found.sentence}" if found.sentence else ""
    return f"{descriptions.title(found.health)}{said}"


def run_line(run: Run) -> list[Any]:
    return [str(run.id)[-12:], run.state, run.due_at, run.duration, reason_of(run)]


def backfill_as_json(seen: Preview) -> dict[str, Any]:
    """What a backfill would create, as the API shows it."""
    pairs = zip(seen.moments, seen.starts, strict=True)
    moments = [{"due_at": moment, "window_start": start} for moment, start in pairs]
    return {"number": len(seen.moments), "moments": moments, "left_alone": seen.left_alone, "assumed": seen.assumed}
