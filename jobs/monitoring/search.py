"""Which runs match? The filters of the ledger, the same ones through every door.

Its one rule: runs come newest first, by their ids, which sort by the time of creation. So a page continues after the
last run of the page before, and a range of time is a range of ids, at the cost of the rows it returns.
Limits: a filter that few runs match reads all runs of the range. So a search gives up after `PATIENCE`.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TypedDict, Unpack
from uuid import UUID

from django.db import OperationalError, connection, transaction

from jobs.models import Actor, Run, RunQuerySet
from jobs.rules.errors import Invalid

PATIENCE = timedelta(seconds=10)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_MILLISECONDS = 1 << 48  # in the id of a run
# Which column of a run a filter compares.
EQUAL = {
    "schedule": "schedule_id",
    "job": "task",
    "actor_name": "actor",
    "error": "error_class",
    **{name: name for name in ("queue", "node", "backfill", "parent")},
}


class Filters(TypedDict, total=False):
    """`since` and `until` bound the creation of a run; `until` itself is not included."""

    state: Collection[str]
    trigger: Collection[str]
    schedule: int | None
    job: str | None
    queue: str | None
    node: str | None
    actor_name: str | None
    error: str | None
    backfill: UUID | None
    parent: UUID | None
    since: datetime | None
    until: datetime | None


def find(actor: Actor, **filters: Unpack[Filters]) -> RunQuerySet:
    """The runs that match all of these filters and that the actor's token may see, newest first."""
    given = {name: value for name, value in filters.items() if value not in (None, "", ())}
    runs = Run.objects.filter(**{EQUAL[name]: value for name, value in given.items() if name in EQUAL})
    for name in ("state", "trigger"):
        if chosen := filters.get(name):
            runs = runs.filter(**{f"{name}__in": chosen})
    if since := filters.get("since"):
        runs = runs.filter(id__gte=first_id(since))
    if until := filters.get("until"):
        runs = runs.filter(id__lt=first_id(until))
    found: RunQuerySet = actor.limit(runs.order_by("-id"))  # type: ignore[assignment] # filters keep the class
    return found


def first_id(moment: datetime) -> UUID:
    """The smallest id of a run that is created at this moment, to the microsecond (see `new_run_id`)."""
    milliseconds, rest = divmod(moment - EPOCH, timedelta(milliseconds=1))
    fraction = rest * 4096 // timedelta(milliseconds=1)
    return UUID(int=max(0, min(milliseconds, MOST_MILLISECONDS - 1)) << 80 | 7 << 76 | fraction << 64)


@contextmanager
def patient() -> Iterator[None]:
    """A transaction whose queries give up after `PATIENCE`, on PostgreSQL. Raises `Invalid` then."""
    try:
        with transaction.atomic():
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{PATIENCE.total_seconds()}s"])
            yield
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != "57014":  # query_canceled
            raise
        raise Invalid("The search took too long: narrow it, for example with since.") from error
