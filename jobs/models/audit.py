"""Who did what, and may they? The user or program that requests a change, and the sentence noted about the row."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db.models import Model, QuerySet

from jobs.models import rights
from jobs.models.runs import LONGEST_ACTOR
from jobs.rules.errors import Forbidden
from jobs.secrets import mask, storable


@dataclass(frozen=True, slots=True)
class Actor:
    """The requester. The ledger shows the name; the history of a row also shows the user, if there is one.

    Code and the shell have only a name and may do everything. A user needs the right for a restricted job.
    """

    name: str
    user: Any = field(default=None, repr=False)  # of any user model

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
    def of_user(cls, user: Any) -> "Actor":
        """The user of a request."""
        return cls(user.get_username(), user)

    @property
    def user_id(self) -> Any:
        return None if self.user is None else self.user.pk

    def why_not(self, job: str) -> str:
        """Why this actor may not schedule, change or start a job, as a sentence; empty if the actor may."""
        entry = None if self.user is None else rights.entry_of(job)
        if entry is None or rights.has(self.user, entry):
            return ""
        return (
            f"Without the permission “{rights.title_of(entry)}”, {self.name} may not change or start {job}. Ask an"
            " administrator for it."
        )

    def check_may(self, *jobs: str) -> None:
        """Refuse an actor that may not schedule, change or start each of these jobs. Raises `Forbidden`."""
        for why in filter(None, map(self.why_not, jobs)):
            raise Forbidden(why)

    def check_rows(self, rows: QuerySet[Any]) -> None:
        """Like `check_may`, for the jobs of schedules or runs, in one query. Raises `Forbidden`."""
        if self.user is not None:
            self.check_may(*rows.order_by().values_list("task", flat=True).distinct())


def _visible(character: str) -> str:
    """A character that could end a line, or hide a part of the name, as Python writes it."""
    return character if character.isprintable() else repr(character)[1:-1]


def note(actor: Actor, model: type[Model], rows: Iterable[tuple[Any, str]], what: str) -> None:
    """Write a sentence into the admin's history of these rows, each a primary key and a name. Only users have one."""
    if actor.user_id is None or not apps.is_installed("django.contrib.admin"):
        return
    from django.contrib.admin.models import CHANGE, LogEntry  # late: a project may run without the admin
    from django.contrib.contenttypes.models import ContentType

    content_type = ContentType.objects.get_for_model(model, for_concrete_model=False)
    kind = {"user_id": actor.user_id, "content_type": content_type, "action_flag": CHANGE, "change_message": what}
    LogEntry.objects.bulk_create(LogEntry(**kind, object_id=key, object_repr=name) for key, name in rows)
