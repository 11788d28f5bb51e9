"""How do secrets get into jobs, and stay out of texts? Arguments name a secret; only the worker inserts its value.

    {"headers": {"Authorization": "Bearer secret:BILLING_TOKEN"}}

`secret:BILLING_TOKEN` stands for the value of the variable JOB_SECRET_BILLING_TOKEN (or the content of the file that
JOB_SECRET_BILLING_TOKEN_FILE names). Its one rule: a value is inserted where it is used, and never stored.
Schedules, runs and messages hold the name. `mask` hides the value in log lines and errors of jobs. A job itself must
keep secrets out of its return value and everything else it writes.

Limits: a secret that is no JOB_SECRET, without a word such as `password` next to it, looks like any other text.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from traceback import format_exception_only
from typing import Any
from urllib.parse import quote

from django.conf import settings

SHORTEST = 8  # characters; `mask` also finds single lines of a secret, if they are at least this long

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
    """No secret has this name. The message says how to set it. `mask` leaves it unchanged."""


def reveal(text: str) -> str:
    """The text with each secret's name replaced by its value. Raises `UnknownNameError`."""
    return _NAMED.sub(lambda found: _value(found[1]), text)


def _value(name: str) -> str:
    value = settings.JOB_SECRETS.get(name)
    if value is None:
        raise UnknownNameError(f"No secret is named {name}: set JOB_SECRET_{name} for the workers.")
    return str(value)


def mask(text: str) -> str:
    """The text with `***` for job secrets, values next to words such as `password`, and passwords in URLs."""
    if known := _any_of(tuple(settings.JOB_SECRETS.values())):
        text = known.sub("***", text)
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def masked(value: Any) -> Any:
    """A structure of mappings and lists with every text in it masked."""
    match value:
        case str():
            return mask(value)
        case Mapping():
            return {key: masked(part) for key, part in value.items()}
        case list() | tuple():
            return [masked(part) for part in value]
    return value


def head(text: str, longest: int) -> str:
    """The first `longest` characters of a text, masked and storable."""
    # Masked before the cut, because `mask` finds no half secrets; the margin allows for characters that it removes.
    return mask(storable(text[: 2 * longest]))[:longest]


def tail(text: str, longest: int) -> str:
    """The last `longest` characters of a text, masked and storable."""
    return mask(storable(text[-2 * longest :]))[-longest:]


def in_one_line(error: BaseException, longest: int) -> str:
    """An error as the ledger shows it: its last line, masked. It also works for an error that cannot be printed."""
    return head(format_exception_only(error)[-1].strip(), longest)


def storable(text: str) -> str:
    """The text with NUL and lone surrogates escaped, which not every database can store."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


@cache
def _any_of(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern for these secrets: as they are, as Python, JSON and URLs quote them, and each of their long lines."""
    forms = set()
    for value in values:
        forms |= {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
        forms |= {line for line in value.splitlines() if len(line) >= SHORTEST}
    longest_first = sorted(forms, key=len, reverse=True)  # one may be a prefix of another
    return re.compile("|".join(map(re.escape, longest_first))) if forms else None
