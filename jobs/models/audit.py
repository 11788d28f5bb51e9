"""Who did what? The actor behind a request, and the entry in a row's history."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model

from jobs.models.runs import LONGEST_ACTOR, LONGEST_NAME


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or program behind a request. The ledger records the name; the history of a row needs a user."""

    name: str
    user_id: int | None = None

    @classmethod
    def of(cls, asking: "Actor | str") -> "Actor":
        """The actor itself, or one made of a plain name, cut to the ledger's length."""
        return asking if isinstance(asking, Actor) else cls(asking[:LONGEST_ACTOR])

    @classmethod
    def of_user(cls, user: Any) -> "Actor":
        """The user of an HTTP request as an actor."""
        return cls(user.get_username()[:LONGEST_ACTOR], user.pk)


def note(actor: Actor, model: type[Model], rows: Iterable[tuple[Any, str]], what: str) -> None:
    """Add a sentence to the history of these rows, each a primary key and a name. Without a user, do nothing."""
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
