"""Who did what? The person or program that asks for something, and the note of what was done to a row."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model

from jobs.models.runs import LONGEST_ACTOR, LONGEST_NAME


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: by name in the ledger, and by user in the history of a row where it is one."""

    name: str
    user_id: int | None = None

    @classmethod
    def of(cls, asking: "Actor | str") -> "Actor":
        """An actor, also of a plain name, as the ledger can hold it."""
        return asking if isinstance(asking, Actor) else cls(asking[:LONGEST_ACTOR])

    @classmethod
    def of_user(cls, user: Any) -> "Actor":
        """The user of a request."""
        return cls(user.get_username()[:LONGEST_ACTOR], user.pk)


def note(actor: Actor, model: type[Model], rows: Iterable[tuple[Any, str]], what: str) -> None:
    """Write a sentence into the history of these rows, each a primary key and a name. Only users have a history."""
    if actor.user_id is None:
        return
    kind = {
        "user_id": actor.user_id,
        "content_type": ContentType.objects.get_for_model(model, for_concrete_model=False),
    }
    LogEntry.objects.bulk_create(
        LogEntry(**kind, action_flag=CHANGE, object_id=key, object_repr=name[:LONGEST_NAME], change_message=what)
        for key, name in rows
    )
