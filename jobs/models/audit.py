"""Who did what, through which door, and may they? The actor of an act, and the row that records the act.

Its one rule: the act itself checks its actor and writes its row, in its own transaction, so no door can forget either.
A row holds the changed columns before and after, with secrets masked. Code that starts a run writes no row here: the
run names it.
"""

import getpass
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from django.db import models
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Now

from jobs.models import bulk, rights
from jobs.models.runs import LONGEST_ACTOR, LONGEST_NAME, LONGEST_REASON
from jobs.rules.errors import Forbidden
from jobs.secrets import head, mask, masked, storable

M = TypeVar("M", bound=Model)


class Door(models.TextChoices):
    ADMIN = "admin"
    API = "api", "API"
    SHELL = "shell"
    WEBHOOK = "webhook"
    CODE = "code"


class Act(models.TextChoices):
    ADD = "add"
    CHANGE = "change"
    DELETE = "delete"
    ENABLE = "enable"
    DISABLE = "disable"
    PAUSE = "pause"
    RESUME = "resume"
    SKIP = "skip"
    RETIME = "retime"
    RUN = "run"
    BACKFILL = "backfill"
    START = "start"
    RETRY = "retry"
    CANCEL = "cancel"
    INVALIDATE = "invalidate"
    UPLOAD = "upload"
    REVOKE = "revoke"
    TEST = "test"


class Kind(models.TextChoices):
    """What an act is done to."""

    SCHEDULE = "schedule"
    TIMING = "timing"
    RUN = "run"
    RESOURCE = "resource"
    FILE = "file"
    TOKEN = "token"  # noqa: S105 - a kind of row
    SOURCE = "webhook source", "Webhook source"
    CHANNEL = "channel"
    SILENCE = "silence"


SCHEDULES, RUNS = "django_celery_beat.{}_periodictask", "jobs.{}_run"
# The permission that a user needs for an act on a kind of row. Every door asks for the same one.
NEEDED = {
    **{(Kind.SCHEDULE, act): SCHEDULES.format(act) for act in (Act.ADD, Act.DELETE)},
    **dict.fromkeys(
        [
            *((Kind.SCHEDULE, act) for act in (Act.CHANGE, Act.ENABLE, Act.DISABLE, Act.PAUSE, Act.RESUME)),
            *((Kind.SCHEDULE, act) for act in (Act.SKIP, Act.RETIME, Act.RUN, Act.BACKFILL)),
        ],
        SCHEDULES.format("change"),
    ),
    (Kind.RUN, Act.START): RUNS.format("add"),
    **dict.fromkeys([(Kind.RUN, Act.RETRY), (Kind.RUN, Act.CANCEL)], RUNS.format("change")),
    (Kind.RESOURCE, Act.INVALIDATE): "jobs.change_resourceversion",
    (Kind.FILE, Act.UPLOAD): "jobs.add_storedfile",
    (Kind.FILE, Act.DELETE): "jobs.delete_storedfile",
    (Kind.TOKEN, Act.ADD): "jobs.add_apitoken",
    (Kind.TOKEN, Act.REVOKE): "jobs.change_apitoken",
    (Kind.TOKEN, Act.DELETE): "jobs.delete_apitoken",
    **{(Kind.SOURCE, act): f"jobs.{act}_webhooksource" for act in (Act.ADD, Act.CHANGE, Act.DELETE)},
    **{(Kind.CHANNEL, act): f"jobs.{act}_channel" for act in (Act.ADD, Act.CHANGE, Act.DELETE)},
    (Kind.CHANNEL, Act.TEST): "jobs.change_channel",
    **{(Kind.SILENCE, act): f"jobs.{act}_silence" for act in (Act.ADD, Act.CHANGE, Act.DELETE)},
}


@dataclass(frozen=True, slots=True)
class Actor:
    """The requester, and the door that the request came through.

    Code, the shell and webhooks have only a name and may do everything. A user needs the permission for each act, and
    the right for a restricted job. With a token, the user may do only what the token includes, too.
    """

    name: str
    user: Any = field(default=None, repr=False)  # of any user model
    door: Door = Door.CODE
    token: Any = field(default=None, repr=False)  # an ApiToken

    def __post_init__(self) -> None:
        """Write the name as the ledger can hold it: in one line, and with a mark where it is cut."""
        name = "".join(map(_visible, mask(storable(str(self.name))))) or "unknown"
        object.__setattr__(self, "name", name if len(name) <= LONGEST_ACTOR else f"{name[: LONGEST_ACTOR - 1]}…")

    @classmethod
    def of(cls, actor: "Actor | str") -> "Actor":
        """An actor, made from a plain name where that is given."""
        if not isinstance(actor, (Actor, str)):  # a user as plain text would be code, which may do everything
            raise TypeError("The actor is a name or an Actor: for a user, write Actor.of_user(user).")
        return actor if isinstance(actor, Actor) else cls(actor)

    @classmethod
    def of_user(cls, user: Any, door: Door = Door.CODE, token: Any = None) -> "Actor":
        """The user of a request."""
        return cls(user.get_username(), user, door, token)

    @classmethod
    def of_shell(cls) -> "Actor":
        """The user of the operating system who runs a command."""
        try:
            return cls(getpass.getuser(), door=Door.SHELL)
        except (OSError, KeyError):  # a container may run as a user without a name
            return cls("shell", door=Door.SHELL)

    def may(self, permission: str) -> bool:
        """Whether the actor has a permission, and the token includes it."""
        return not self._missing(permission)

    def check(self, permission: str) -> None:
        """Refuse an actor without this permission. Raises `Forbidden`."""
        if why := self._missing(permission):
            raise Forbidden(why)

    def check_act(self, kind: Kind, act: Act) -> None:
        """Refuse an actor without the permission for an act. Raises `Forbidden`."""
        self.check(NEEDED[kind, act])

    def _missing(self, permission: str) -> str:
        if self.user is None:
            return ""
        asked = getattr(self.user, "has_perm", None)  # a user model without permissions has none
        if not (asked and asked(permission)):
            return f"{self.name} lacks the permission {permission}: ask an administrator for it."
        if self.token is not None and permission not in self.token.scopes:
            return f"The token “{self.token.name}” does not include {permission}: make one that does."
        return ""

    def why_not(self, job: str, schedule: int | None = None) -> str:
        """Why this actor may not schedule, change or start a job, as a sentence; empty if the actor may.

        `schedule` is the schedule that the act concerns, which the actor's token may name instead of the job.
        """
        if self.user is None:
            return ""
        if self.token is not None and not self.token.covers(job, schedule):
            return f"The token “{self.token.name}” is limited to other schedules and jobs than {job}."
        entry = rights.entry_of(job)
        if entry is None or (rights.has(self.user, entry) and self._includes(entry)):
            return ""
        if rights.has(self.user, entry):
            return f"The token “{self.token.name}” does not include the permission “{rights.title_of(entry)}”."
        return (
            f"Without the permission “{rights.title_of(entry)}”, {self.name} may not change or start {job}. Ask an"
            " administrator for it."
        )

    def _includes(self, entry: str) -> bool:
        return self.token is None or f"jobs.{rights.codename_of(entry)}" in self.token.scopes

    def check_may(self, *jobs: str, schedule: int | None = None) -> None:
        """Refuse an actor that may not schedule, change or start each of these jobs. Raises `Forbidden`."""
        for job in jobs:
            if why := self.why_not(job, schedule):
                raise Forbidden(why)

    def check_rows(self, rows: QuerySet[Any]) -> None:
        """Like `check_may`, for the jobs of schedules or runs, in one query. Raises `Forbidden`."""
        if self.user is None:
            return
        if self.token is None:
            self.check_may(*rows.order_by().values_list("task", flat=True).distinct())
            return
        for job, schedule in rows.order_by().values_list("task", _schedule_of(rows)).distinct():
            self.check_may(job, schedule=schedule)

    def limit(self, rows: QuerySet[M]) -> QuerySet[M]:
        """The schedules, runs or sources of webhooks among these rows that the actor's token may see.

        All without a token or its limits. A source belongs to no schedule.
        """
        if self.token is None or not self.token.is_limited:
            return rows
        is_source = rows.model._meta.model_name == "webhooksource"
        job = "job" if is_source else "task"
        among = Q(pk__in=[]) if is_source else Q(**{f"{_schedule_of(rows)}__in": self.token.schedules})
        for entry in self.token.jobs:
            among |= Q(**{f"{job}__startswith": entry[:-1]} if entry.endswith("*") else {job: entry})
        return rows.filter(among)


def _schedule_of(rows: QuerySet[Any]) -> str:
    """The column with the schedule: a run names it, and a schedule is it."""
    return "schedule_id" if rows.model._meta.model_name == "run" else "pk"


def _visible(character: str) -> str:
    """A character that could end a line, or hide a part of the name, as Python writes it."""
    return character if character.isprintable() else repr(character)[1:-1]


class Changed(NamedTuple):
    """A row that an act concerned, with its columns before and after: those that differ are recorded."""

    key: Any
    name: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class AuditEntry(models.Model):
    """One act on one row. It refers to nothing by a foreign key: it outlives the row, the user and the token."""

    at = models.DateTimeField(db_default=Now())
    actor = models.CharField(max_length=LONGEST_ACTOR, help_text="Who did it.")
    user_key = models.CharField(max_length=LONGEST_NAME, blank=True, help_text="The primary key of the user.")
    door = models.CharField(max_length=10, choices=Door.choices)
    token = models.CharField(max_length=LONGEST_NAME, blank=True, help_text="The name of the API token.")
    act = models.CharField(max_length=10, choices=Act.choices)
    kind = models.CharField(max_length=20, choices=Kind.choices, help_text="What it was done to.")
    key = models.CharField(max_length=LONGEST_NAME, help_text="The primary key of the row.")
    name = models.CharField(max_length=LONGEST_NAME, help_text="The name of the row then.")
    summary = models.TextField(blank=True, help_text="What was done, in one sentence.")
    before = models.JSONField(null=True, help_text="The changed columns before; empty for a new row.")
    after = models.JSONField(null=True, help_text="The changed columns after; empty for a deleted row.")

    class Meta:
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index("kind", "key", "id", name="audit_of_row"),
            models.Index("actor", "id", name="audit_of_actor"),
            models.Index("at", name="audit_at"),
        ]

    def __str__(self) -> str:
        return f"{self.actor} ({self.get_door_display()}): {self.act} {self.kind} “{self.name}”"


# The columns that an act gives; the database gives the others.
WRITTEN = {field.name for field in AuditEntry._meta.concrete_fields} - {"id", "at"}
BATCH = 1_000  # entries


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The columns whose values differ as JSON, where 1 and true do, in alphabetical order."""
    return sorted(name for name in before.keys() | after.keys() if _differ(before.get(name), after.get(name)))


def _differ(one: Any, other: Any) -> bool:
    are_nested = isinstance(one, (dict, list)) and one == other  # to Python, [1] equals [True]
    return one != other or (are_nested and json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True))


def note(actor: Actor, kind: Kind, act: Act, rows: Iterable[Changed], summary: str = "") -> None:
    """Write the row of an act for each of these rows. Call it in the transaction of the act."""
    if actor.door == Door.CODE and act == Act.START:
        return
    of_actor = {
        "actor": actor.name,
        "user_key": "" if actor.user is None else str(actor.user.pk)[:LONGEST_NAME],
        "door": actor.door.value,
        "token": "" if actor.token is None else actor.token.name,
    }
    mask_once = cache(mask)  # the same texts stand in thousands of rows
    summary = head(summary, LONGEST_REASON)
    entries = [
        SimpleNamespace(
            **of_actor,
            kind=kind.value,
            act=act.value,
            key=str(row.key),
            name=head(str(row.name), LONGEST_NAME),
            summary=summary,
            **_difference(row, mask_once),
        )
        for row in rows
    ]
    for start in range(0, len(entries), BATCH):
        bulk.insert(AuditEntry, entries[start : start + BATCH], WRITTEN)


def _difference(row: Changed, mask_once: Callable[[str], str]) -> dict[str, Any]:
    before, after = row.before, row.after
    if before is not None and after is not None:
        names = differing(before, after)
        before, after = ({name: columns.get(name) for name in names} for columns in (before, after))
    return {"before": masked(before, mask_once), "after": masked(after, mask_once)}
