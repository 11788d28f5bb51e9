"""Programs that call the API: with a token, as Django's test client, and the form of every answer checked."""

import json
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

from jobs.models.audit import Actor
from jobs.models.tokens import ApiToken


def permissions(*names: str) -> list[Permission]:
    found = []
    for name in names:
        app, codename = name.split(".")
        found.append(Permission.objects.get(content_type__app_label=app, codename=codename))
    return found


def make_user(name: str, *rights: str) -> User:
    user = User.objects.create_user(name)
    user.user_permissions.set(permissions(*rights))
    return user


def make_token(user: User, *scopes: str, **options: Any) -> str:
    """The secret of a new token."""
    _, secret = ApiToken.objects.issue(
        f"{user.username} {ApiToken.objects.count()}", user, list(scopes), Actor("test"), **options
    )
    return secret


def make_caller(name: str, *rights: str, **options: Any) -> "Caller":
    """A program with a token of a new user, who has the rights that the token has."""
    user = make_user(name, *rights)
    return Caller(make_token(user, *rights, **options), user)


class Caller:
    """Sends requests with a token."""

    def __init__(self, secret: str, user: User | None = None) -> None:
        self.secret, self.user = secret, user
        self.client = Client(enforce_csrf_checks=True, headers={"Authorization": f"Bearer {secret}"})

    def get(self, path: str, status: int = 200, **headers: str) -> Any:
        return checked(self.client.get(path, headers=headers), status)

    def post(self, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        return checked(self.client.post(path, body, "application/json", headers=headers), status)

    def patch(self, path: str, body: Any, status: int = 200) -> Any:
        return checked(self.client.patch(path, body, "application/json"), status)

    def delete(self, path: str, status: int = 204) -> Any:
        return checked(self.client.delete(path), status)

    def upload(self, fields: dict[str, Any], status: int = 202, **headers: str) -> Any:
        return checked(self.client.post("/api/uploads", fields, headers=headers), status)


def checked(answer: Any, status: int) -> Any:
    """The content of an answer with this status: a problem document from 400 on."""
    assert answer.status_code == status, (answer.status_code, answer.content)
    assert "no-store" in answer["Cache-Control"]
    if status >= 400:
        return problem_of(answer)
    return json.loads(answer.content) if answer.content else None


def problem_of(answer: Any) -> dict[str, Any]:
    """The problem document of an answer."""
    assert answer["Content-Type"] == "application/problem+json", answer.content
    found: dict[str, Any] = json.loads(answer.content)
    assert found["type"] == "about:blank"
    assert found["title"]
    assert found["status"] == answer.status_code
    assert found["detail"].strip()[-1] in ".:`”>)" or len(found["detail"]) > 20, found
    return found
