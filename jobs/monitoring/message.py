"""What does a message about alerts say? The facts that every channel is given, and their text for people.

Its one rule: a message holds nothing secret. All of its texts have passed `mask`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from jobs.rules.health import Health


@dataclass(frozen=True, slots=True)
class Item:
    """An alert as a reader gets it."""

    subject: str  # such as `schedule:7`: the same for all alerts about it
    name: str
    health: Health
    before: Health
    sentence: str  # what happened
    expected: str
    at: datetime
    since: datetime
    due_at: datetime | None = None
    count: int = 1  # how often in a row
    link: str = ""  # to the run, or the schedule
    log: Sequence[str] = field(default=())  # the last lines of the run's log


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel is told at once. A repeated message has the same id."""

    id: UUID
    at: datetime
    zone: str  # of its readers
    items: Sequence[Item]
    is_test: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """An event of a run, for channels that count them. `event` is start, success or fail."""

    id: UUID
    run: UUID
    event: str
    sentence: str = ""
