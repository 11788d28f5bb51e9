"""Who did what? The user or program that requests a change, and the sentence noted about the changed row."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.db.models import Model

from jobs.models.runs import LONGEST_ACTOR
from jobs.secrets import storable


@dataclass(frozen=True, slots=True)
class Actor:
    """The requester: shown by name in the ledger, and as a user in the history of a row if it is one."""

    name: str
    user_id: Any = None  # of whichever type the user model has

    def __post_init__(self) -> None:
        """Write the name as the ledger can hold it: in one line, and with a mark where it is cut."""
        name = "".join(map(_visible, storable(str(self.name)))) or "unknown"
        object.__setattr__(self, "name", name if len(name) <= LONGEST_ACTOR else f"{name[: LONGEST_ACTOR - 1]}…")

    @classmethod
    def of(cls, actor: "Actor | str") -> "Actor":
        """An actor, made from a plain name where that is given."""
        return actor if isinstance(actor, Actor) else cls(actor)

    @classmethod
    def of_user(cls, user: Any) -> "Actor":
        """The user of a request."""
        return cls(user.get_username(), user.pk)


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
