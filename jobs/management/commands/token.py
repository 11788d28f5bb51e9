"""`manage.py token create|list|revoke|delete`: programs with access to the API."""

from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError, CommandParser

from jobs.management import reading
from jobs.management.terminal import FAILED, MissingError, ShellCommand
from jobs.models import Actor, ApiToken, database_now
from jobs.models.tokens import MOST_RATE, USUAL_RATE, ApiTokenQuerySet, is_scope

COLUMNS = ("name", "user", "secret", "scopes", "state", "expires", "last used")


class Command(ShellCommand):
    help = (
        "Makes, lists, revokes and deletes tokens of the API. A token is of a user, and never allows more than the user"
        " may do."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
        self._add_create(self.act(acts, "create", self.create, "Make a token, and print its secret, only this once."))
        self.act(acts, "list", self.list, "List all tokens.")
        revoke = self.act(acts, "revoke", self.revoke, "Make tokens useless, at once and for good.")
        delete = self.act(acts, "delete", self.delete, "Revoke and delete tokens, which frees their names.")
        for each in (revoke, delete):
            each.add_argument("names", nargs="+", metavar="name", help="the name of a token")

    def _add_create(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the program that uses it")
        parser.add_argument("--user", required=True, metavar="NAME", help="whose permissions it includes")
        scopes = parser.add_mutually_exclusive_group(required=True)
        scopes.add_argument("--scope", action="append", metavar="PERMISSION", help="such as jobs.view_run; repeatable")
        scopes.add_argument("--all-scopes", action="store_true", help="all that the user has now and the API asks for")
        limits = (("job", "PATTERN", "only these jobs, such as billing.*"), ("schedule", "NAME", "and these schedules"))
        for option, of, does in limits:
            parser.add_argument(f"--{option}", action="append", dest=f"{option}s", metavar=of, default=[], help=does)
        expires = parser.add_argument("--expires", type=reading.coming, dest="expires_at", metavar="MOMENT")
        expires.help = "such as '90 days' or 2027-12-31; default: never"
        rate = parser.add_argument("--rate", type=reading.between(1, MOST_RATE), default=USUAL_RATE, metavar="N")
        rate.help = "requests per minute"
        parser.add_argument("--quiet", action="store_true", help="print only the secret")

    def create(self, *, name: str, user: str, scope: Sequence[str] | None, quiet: bool, **limits: Any) -> None:
        owner = user_of(user)
        scopes = scopes_of(owner) if limits.pop("all_scopes") else scope or ()
        limits["schedules"] = [reading.schedule_of(each).pk for each in limits["schedules"]]
        token, secret = ApiToken.objects.issue(name, owner, scopes, Actor.of_shell(), **limits)
        if self.terminal.as_json:
            self.terminal.json({**shown(token), "secret": secret})
        self.terminal.say(secret)
        if not (quiet or self.terminal.as_json):
            self.terminal.note(
                "Keep this secret, which is stored nowhere. Send it in the header Authorization, after `Bearer`."
            )

    def list(self) -> None:
        tokens = list(ApiToken.objects.select_related("user").order_by("name"))
        if self.terminal.as_json:
            self.terminal.json([shown(token) for token in tokens])
        elif tokens:
            now = database_now()
            self.terminal.table(COLUMNS, [line(token, now) for token in tokens])
        else:
            self.terminal.note("There is no token.")

    def revoke(self, *, names: Sequence[str]) -> None:
        number = tokens_of(names).revoke(Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"revoked": number})
        self.terminal.say(f"Revoked: {number}. Requests with these tokens are refused from now on.")

    def delete(self, *, names: Sequence[str]) -> None:
        number = tokens_of(names).remove(Actor.of_shell())
        if self.terminal.as_json:
            self.terminal.json({"deleted": number})
        self.terminal.say(f"Deleted: {number}. Requests with these tokens are refused from now on.")


def tokens_of(names: Sequence[str]) -> ApiTokenQuerySet:
    """The tokens of these names. Raises `MissingError` if one does not exist."""
    tokens = ApiToken.objects.filter(name__in=names)
    if unknown := sorted(set(names) - set(tokens.values_list("name", flat=True))):
        raise MissingError(f"There is no token {unknown[0]!r}: `manage.py token list` shows all.")
    return tokens


def user_of(name: str) -> Any:
    """The user of this name, of any user model. Raises `MissingError`."""
    model = get_user_model()
    found = model._default_manager.filter(**{model.USERNAME_FIELD: name}).first()
    if found is None:
        raise MissingError(f"There is no user {name!r}: create one with `manage.py createsuperuser` or in the admin.")
    return found


def scopes_of(user: Any) -> list[str]:
    """The permissions of a user that mean something to the API. Raises CommandError without any."""
    held = user.get_all_permissions() if hasattr(user, "get_all_permissions") else ()
    scopes = sorted(filter(is_scope, held))
    if not scopes:
        raise CommandError(f"{user.get_username()} has no permission that the API asks for.", returncode=FAILED)
    return scopes


def shown(token: ApiToken) -> dict[str, Any]:
    """A token in JSON, without its secret."""
    moments = ("created_at", "expires_at", "revoked_at", "last_used_at")
    return {"name": token.name, **token.columns(), **{name: getattr(token, name) for name in moments}}


def line(token: ApiToken, now: datetime) -> list[Any]:
    state = token.problem_at(now) or "ok"
    scopes = token.scopes[0] if len(token.scopes) == 1 else f"{len(token.scopes)} permissions"
    expires, used = token.expires_at, token.last_used_at
    return [token.name, token.user.get_username(), f"{token.hint}…", scopes, state, expires, used]
