"""How do secrets get into jobs, and stay out of texts? Arguments name a secret, and only the worker puts the value in.

    {"headers": {"Authorization": "Bearer secret:BILLING_TOKEN"}}

The value of `secret:BILLING_TOKEN` is that of the variable JOB_SECRET_BILLING_TOKEN (or of the file that
JOB_SECRET_BILLING_TOKEN_FILE names). Its one rule: values are revealed where they are used, and never stored.
Schedules, runs and messages hold the name; `mask` hides the value wherever a job logs it or fails with it. What
a job returns or writes elsewhere is its own to keep clean.

Limits: a secret that stands alone, without a word such as `password` beside it, cannot be told from other text.
"""

import json
import re
from functools import cache
from traceback import format_exception_only
from urllib.parse import quote

from django.conf import settings

SHORTEST = 8  # characters of a line of a secret that is masked by itself

_WORDS = r"passw(?:or)?d|passphrase|secret|token|api[_-]?key|session[_-]?id|access[_-]?key|private[_-]?key|credentials?"
_SECRETS = [
    # password=..., "api_key": "...", X-Auth-Token: ...
    re.compile(
        rf"""(?i)((?<![\w-])[\w-]{{0,60}}(?:{_WORDS})[\w-]{{0,60}}["']?\s{{0,9}}[:=]\s{{0,9}})(?:"[^"]*"|'[^']*'|[^\s,;&)\]}}]+)"""
    ),
    re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[^\s\"',;]+"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"),
    re.compile(r"(://[^\s:/@]{0,100}:)[^\s/]{1,300}(?=@)"),
]

_NAMED = re.compile(r"\bsecret:([A-Za-z][A-Za-z0-9_]*)")


class UnknownNameError(LookupError):
    """There is no such secret. The message says how to give it, and passes through `mask` unharmed."""


def reveal(text: str) -> str:
    """The text with the value of each secret in place of its name. Raises `UnknownNameError`."""
    return _NAMED.sub(lambda found: _value(found[1]), text)


def _value(name: str) -> str:
    value = settings.JOB_SECRETS.get(name)
    if value is None:
        raise UnknownNameError(f"No secret is named {name}: set JOB_SECRET_{name} for the workers.")
    return str(value)


def mask(text: str) -> str:
    """The text with `***` for each secret of jobs, what stands beside a word for one, and passwords in addresses."""
    if known := _any_of(tuple(settings.JOB_SECRETS.values())):
        text = known.sub("***", text)
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def head(text: str, longest: int) -> str:
    """The beginning of a text, masked and as every database can store it."""
    # Masked before it is cut: a half of a secret would not be known. The margin is what masking may take away.
    return mask(storable(text[: 2 * longest]))[:longest]


def tail(text: str, longest: int) -> str:
    """The same of its end."""
    return mask(storable(text[-2 * longest :]))[-longest:]


def in_one_line(error: BaseException, longest: int) -> str:
    """An error as the ledger shows it, masked; also one whose own text cannot be made."""
    return head(format_exception_only(error)[-1].strip(), longest)


def storable(text: str) -> str:
    """What every database can store of a text that a task brought forth."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


@cache
def _any_of(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds these secrets: as they are, as Python, JSON and addresses quote them, and each long line of them."""
    forms = set()
    for value in values:
        forms |= {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
        forms |= {line for line in value.splitlines() if len(line) >= SHORTEST}
    longest_first = sorted(forms, key=len, reverse=True)  # one may be the beginning of another
    return re.compile("|".join(map(re.escape, longest_first))) if forms else None
