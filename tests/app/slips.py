"""A task that leaks a secret in every way in which a job can: it prints, logs, raises, reports and stores it."""

import base64
import html
import json
import logging
import sys
from typing import Any
from urllib.parse import quote, quote_plus

from celery import shared_task
from django.core.files.base import ContentFile

from jobs.models import StoredFile
from jobs.secrets import reveal
from jobs.toolkit import files
from jobs.toolkit.current import once, progress

log = logging.getLogger(__name__)


class SlipError(Exception):
    """Any error, with any arguments."""


def forms(secret: str) -> list[str]:
    """The secret in the forms that programs write."""
    as_bytes = secret.encode()
    encoded = [base64.b64encode(b"ada:"[:before] + as_bytes).decode() for before in range(4)]
    quoted = [quote(secret), quote(secret, safe="").lower(), quote_plus(secret), html.escape(secret)]
    in_json = [json.dumps(secret), json.dumps(json.dumps({"k": secret})), json.dumps({secret: secret})]
    in_python = [repr(secret), repr(as_bytes), repr({"k": secret}), repr([repr(secret)])]
    cases = [secret.upper(), secret.lower(), as_bytes.hex()]
    return [secret, *encoded, *quoted, *in_json, *in_python, *cases]


@shared_task(name="tests.slip", ignore_result=False)
def slip(how: str) -> None:
    """Leak the secret CANARY in the given way."""
    secret = reveal("secret:CANARY")
    if how.startswith("printed"):
        _print(how, secret)
    elif how == "logged":
        for form in forms(secret):
            log.warning("It is %s.", form)
        log.warning("%s%s%s", "x" * 20_000, secret, "y" * 9_990)
    elif how == "reported":
        progress(1, 2, "x" * 150 + secret)
        once(f"charge {secret}")
        files.keep(f"{secret}.txt", ContentFile(b""), StoredFile.Kind.REPORT)
    elif how == "exit":
        sys.exit(f"no access with {secret}")
    else:
        raise SlipError(*_arguments(how, secret))


def _print(how: str, secret: str) -> None:
    if how == "printed":
        for form in forms(secret):
            print(form)  # noqa: T201 - a job may
            print(form, file=sys.stderr)  # noqa: T201
        sys.stdout.writelines(["it is ", secret, "\n"])
    elif how == "printed in pieces":
        print("password:", "hunter2-piece")  # noqa: T201
        print("api_key", end="=")  # noqa: T201
        print("hunter2-piece", end="")  # noqa: T201
    elif how == "printed in one long line":
        print("x" * 15_000, end="")  # noqa: T201
        for character in secret:
            print(character, end="")  # noqa: T201
        print("y" * 30_000)  # noqa: T201


def _arguments(how: str, secret: str) -> list[Any]:
    return {
        "text": forms(secret),
        "long": ["x" * 150 + secret],
        "longer": ["x" * 450 + secret + "y" * 90_000],
        "bytes": [secret.encode(), {secret.encode(): secret.encode()}],
        "dict": [{"headers": {"Authorization": f"Bearer {secret}"}, secret: [secret, {secret}]}],
        "words": [{"password": "hunter2-piece", "api_key": b"hunter2-piece"}],
    }[how]
