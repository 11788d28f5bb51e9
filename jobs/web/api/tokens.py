"""Which tokens does the sender have, and how is one revoked? No token is made here: its secret would travel.

Its one rule: a token without permissions for tokens meets only itself, so a program can always end its own access. With
them, a user's own tokens; with the permission to change tokens, those of all users, as in the admin.
"""

from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from ninja import Field, Query, Router, Schema

from jobs.models import ApiToken, database_now
from jobs.rules.errors import Forbidden
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import MissingError, RowId, actor_of

OWN = ("jobs.view_apitoken", "jobs.add_apitoken")  # permissions to see one's own tokens
ALL = "jobs.change_apitoken"

router = Router(tags=["tokens"])


class TokenOut(Schema):
    id: int
    name: str
    user: str
    hint: str = Field(description="The first characters of its secret.")
    is_used: bool = Field(description="Whether this request came with it.")
    state: str = Field(description="usable, revoked, expired, or “its user is disabled”")
    scopes: list[str]
    jobs: list[str] = Field(description="Names and patterns that it is limited to.")
    schedules: list[int] = Field(description="Ids that it is limited to, besides the schedules of these jobs.")
    rate: int = Field(description="Requests per minute.")
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@router.get("", response=Page[TokenOut])
def list_tokens(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Tokens by name, without their secrets: this one, those of the user, or all, as the permissions allow."""
    used, now = actor_of(request).token, database_now()
    return page(request, _seen(request), paging, ["name"], lambda token: _token(token, used, now))


@router.post("/{token}/revoke", response=TokenOut)
def revoke_token(request: HttpRequest, token: RowId) -> Any:
    """Make a token useless, at once and for good. Also the token of this request."""
    actor = actor_of(request)
    chosen = _seen(request).filter(pk=token)
    if not chosen.exists():
        raise MissingError(f"There is no token {token}: list the tokens at /api/tokens.")
    ApiToken.objects.filter(pk=token).revoke(actor)
    return _token(chosen.get(), actor.token, database_now())


def _seen(request: HttpRequest) -> QuerySet[ApiToken]:
    """The tokens that the sender may know of. Raises `Forbidden`."""
    actor, tokens = actor_of(request), ApiToken.objects.select_related("user")
    if actor.may(ALL):
        return tokens
    if any(map(actor.may, OWN)):
        return tokens.filter(user=actor.user.pk)
    if actor.token is not None:
        return tokens.filter(pk=actor.token.pk)
    raise Forbidden(f"You may not list tokens. Ask an administrator for one of the permissions {', '.join(OWN)}.")


def _token(token: ApiToken, used: ApiToken | None, now: datetime) -> dict[str, Any]:
    names = TokenOut.model_fields.keys() - {"user", "state", "is_used"}
    return {
        **{name: getattr(token, name) for name in names},
        "user": token.user.get_username(),
        "state": token.problem_at(now) or "usable",
        "is_used": token == used,
    }
