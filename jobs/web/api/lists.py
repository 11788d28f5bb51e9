"""How does a client read a long list? Page by page: each names the address of the next one.

Its one rule: a page costs the same wherever it lies. A cursor holds the place of the last row, so no query counts rows
or skips them, and rows that come or go meanwhile neither repeat nor hide others.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Generic, TypeVar

from django.core import signing
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from ninja import Field, Schema

from jobs.rules.errors import Invalid

LARGEST_PAGE = 200
LONGEST_CURSOR = 4000  # characters: it may hold a name of 200, each of them written in twelve and then in base 64
SALT = "jobs.web.api.lists"
T = TypeVar("T")


class Page(Schema, Generic[T]):
    items: list[T]
    next: str | None = Field(description="The address of the next page; null on the last one.")


class Paging(Schema):
    limit: int = Field(50, ge=1, le=LARGEST_PAGE, description="How many rows a page has at most.")
    cursor: str | None = Field(
        None, max_length=LONGEST_CURSOR, description="From the address in “next”; every page needs the same filters."
    )


def page(
    request: HttpRequest, rows: QuerySet[Any], paging: Paging, order: Sequence[str], show: Callable[[Any], Any]
) -> dict[str, Any]:
    """A page of the rows. `order` names columns that are unique together, all with or all without `-`."""
    names = [name.removeprefix("-") for name in order]
    if paging.cursor is not None:
        rows = rows.filter(_beyond(names, _read(request, rows.model, names, paging.cursor), order[0].startswith("-")))
    found = list(rows.order_by(*order)[: paging.limit + 1])
    shown = found[: paging.limit]
    following = _address(request, [getattr(shown[-1], name) for name in names]) if len(found) > len(shown) else None
    return {"items": [show(row) for row in shown], "next": following}


def _beyond(names: Sequence[str], values: Sequence[Any], is_descending: bool) -> Q:
    """The rows after the one with these values."""
    after = "lt" if is_descending else "gt"
    places = range(len(names))
    equal = [Q(**dict(zip(names[:place], values[:place], strict=True))) for place in places]
    return reduce(Q.__or__, (equal[place] & Q(**{f"{names[place]}__{after}": values[place]}) for place in places))


def _address(request: HttpRequest, values: Sequence[Any]) -> str:
    query = request.GET.copy()
    query["cursor"] = signing.dumps([str(value) for value in values], salt=f"{SALT} {request.path}")
    return f"{request.path}?{query.urlencode()}"


def _read(request: HttpRequest, model: type[Model], names: Sequence[str], cursor: str) -> list[Any]:
    try:
        texts = signing.loads(cursor, salt=f"{SALT} {request.path}")
    except signing.BadSignature:
        raise Invalid("This cursor is not one of this list: take the address of a page from “next”.") from None
    columns: list[Any] = [model._meta.get_field(name) for name in names]
    return [column.to_python(text) for column, text in zip(columns, texts, strict=True)]
