"""What may people ask the database? The functions that `@query` registers under a name; never their own SQL.

    from jobs.toolkit.queries import Table, query

    @query("new customers")
    def new_customers(start: datetime | None, end: datetime) -> Table:
        found = Customer.objects.filter(joined_at__gte=start or FIRST_DAY, joined_at__lt=end)
        return Table(["email", "country"], found.values_list("email", "country").iterator())

Every process finds queries in the `tasks.py` of an app. Its one rule: rows are given one by one, so a million of them
need little memory. `start` and `end` are the data window of the run. Without a `start`, it is everything until `end`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from django.db.models import Avg, F, Max, QuerySet, Sum
from django.utils.timezone import localtime
from pydantic import AfterValidator, Field

from jobs.models import Run, State, database_now
from jobs.toolkit.current import current_run


class UnknownQueryError(ValueError):
    """The query does not exist, or has no such column. The message says which exist."""


@dataclass(frozen=True)
class Table:
    """The columns and rows that a query returns."""

    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]  # each with a value for every column

    def column(self, name: str) -> Iterator[Any]:
        """The values of one column. Raises UnknownQueryError."""
        if name not in self.columns:
            raise UnknownQueryError(f"The query needs a column {name!r}, but has {', '.join(self.columns)}.")
        place = list(self.columns).index(name)
        return (row[place] for row in self.rows)


@dataclass(frozen=True)
class Window:
    """The time that a query covers: of a run, from the previous due moment of its schedule to its own."""

    start: datetime | None
    end: datetime

    def __str__(self) -> str:
        start, end = (f"{localtime(each):%Y-%m-%d %H:%M}" if each else "" for each in (self.start, self.end))
        return f"from {start} until {end}" if start else f"until {end}"


NAME = re.compile(r"[A-Za-z0-9 -]{1,60}")  # it becomes part of file names
Query = Callable[[datetime | None, datetime], Table]
_queries: dict[str, Query] = {}


def query(name: str) -> Callable[[Query], Query]:
    """Offer this function to users under that name, which their schedules then store."""

    def register(function: Query) -> Query:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid name: use 1 to 60 ASCII letters, digits, spaces and hyphens.")
        if name in _queries:
            raise ValueError(f"Two queries are named {name!r}: rename one.")
        _queries[name] = function
        return function

    return register


def names() -> list[str]:
    return sorted(_queries)


def check_name(name: str) -> str:
    """The name, if a query has it. Raises UnknownQueryError."""
    if name in _queries:
        return name
    close = difflib.get_close_matches(name, _queries, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(map(repr, names()))}"
    raise UnknownQueryError(f"no query is named {name!r}; {hint}")


def window() -> Window:
    """The window of the current run; outside a run, everything until now."""
    run = current_run()
    return Window(run.window_start, run.window_end) if run else Window(None, database_now())


def execute(name: str, window: Window) -> Table:
    """Run the query for that window. Raises UnknownQueryError."""
    return _queries[check_name(name)](window.start, window.end)


def _add_choices(schema: dict[str, Any]) -> None:
    schema["enum"] = names()


# For a job's argument that names a query; the form offers the queries that are registered by then.
QueryName = Annotated[str, AfterValidator(check_name), Field(json_schema_extra=_add_choices)]


# --- About the ledger: runs that ended in the window (index run_finished) -------------------------------------------


@query("runs by outcome")
def runs_by_outcome(start: datetime | None, end: datetime) -> Table:
    """How many runs of each schedule ended in each state, and how long they took."""
    length = F("finished_at") - F("started_at")
    groups = _ended(start, end).order_by("schedule_name", "state").values_list("schedule_name", "state")
    found = groups.annotate(Sum("count"), average=Avg(length), longest=Max(length)).iterator()
    columns = ["schedule", "state", "runs", "average seconds", "longest seconds"]
    return Table(columns, ([*row, _seconds(average), _seconds(longest)] for *row, average, longest in found))


@query("failed runs")
def failed_runs(start: datetime | None, end: datetime) -> Table:
    """The runs that failed or were lost, and why."""
    found = _ended(start, end).filter(state__in=[State.FAILED, State.LOST]).order_by("finished_at")
    values = ["schedule_name", "due_at", "state", "attempt", "reason"]
    return Table(["schedule", "due at", "state", "attempts", "reason"], found.values_list(*values).iterator())


def _ended(start: datetime | None, end: datetime) -> QuerySet[Run]:
    ended = Run.objects.filter(finished_at__lt=end)
    return ended.filter(finished_at__gte=start) if start else ended


def _seconds(length: timedelta | None) -> float | None:
    return round(length.total_seconds(), 3) if length is not None else None
