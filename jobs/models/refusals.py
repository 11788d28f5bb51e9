"""Why does Django or the database refuse a row? Its columns do not allow a value, or another row has the name.

Its one rule: a name in use is a `Conflict`, whether Django's check finds it or another request takes it meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Model

from jobs.rules.errors import Conflict, Invalid

TAKEN = {"unique", "unique_together"}  # Django's codes


def refusal(error: ValidationError) -> Invalid:
    """The errors of a row as sentences with the names of their columns."""
    found = ValidationError(error.update_error_dict({}))  # an error of the whole row has no columns
    texts = ((name, " ".join(text)) for name, text in found.message_dict.items())
    sentence = " ".join(text if name == NON_FIELD_ERRORS else f"{name}: {text}" for name, text in texts)
    codes = {each.code for errors in found.error_dict.values() for each in errors}
    return Conflict(sentence) if codes <= TAKEN else Invalid(sentence)


@contextmanager
def sole(row: Model, what: str) -> Iterator[None]:
    """Around the statements that write a row with a unique name. Raises `Conflict` if another row has its name."""
    try:
        with transaction.atomic():
            yield
    except (IntegrityError, ValidationError) as error:
        others = type(row)._default_manager.filter(name=row.name).exclude(pk=row.pk)  # type: ignore[attr-defined]
        if not others.exists():
            raise
        raise Conflict(f"There is a {what} “{row.name}” already: choose another name.") from error  # type: ignore[attr-defined]
