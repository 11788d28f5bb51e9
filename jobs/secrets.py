"""How do secrets get into jobs, and stay out of texts? Arguments name a secret; only the worker inserts its value.

    {"headers": {"Authorization": "Bearer secret:BILLING_TOKEN"}}

`secret:BILLING_TOKEN` stands for the value of the variable JOB_SECRET_BILLING_TOKEN (or the content of the file that
JOB_SECRET_BILLING_TOKEN_FILE names). Its one rule: a value is inserted where it is used, and never stored.
Schedules, runs and messages hold the name. `mask` hides the value in log lines and errors of jobs, also in the forms of
JSON, URLs, HTML, base64 and Python, in upper or lower case. Punctual masks a text before it cuts it. A job itself must
keep secrets out of its return value and everything else it writes.

Limits: a secret that is not a JOB_SECRET, without a word such as `password` next to it, looks like any other text.
`mask` misses a secret that a job compresses, encrypts or spells out letter by letter.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, wraps
from traceback import format_exception_only
from typing import Any
from urllib.parse import unquote

from django.conf import settings

from jobs.rules.errors import Invalid
from jobs.rules.signatures import PREFIX

SHORTEST = 8  # characters; `mask` also finds single lines and encoded parts of a secret, if they are at least this long
MARGIN = 100_000  # characters beyond the kept ones that are masked, too
EDGE = 10_000  # characters beside a cut that are dropped, because they may be half a secret
PLAIN = re.compile(r"[\w-]+", re.ASCII)  # characters that every form leaves unchanged
NO_TOKEN = re.compile(r"[a-z_-]{1,15}|[\w-]+(\.[\w-]+)+")  # parts of an address: `services`, `hooks.example.org`
BACKSLASH = "\\"
PARTS = re.compile(rf"{PLAIN.pattern}|\\+|.", re.ASCII | re.DOTALL)
NESTED = 15  # backslashes before a quote: four strings, each inside of the next

_WORDS = r"passw(?:or)?d|passphrase|secret|token|api[_-]?key|session[_-]?id|access[_-]?key|private[_-]?key|credentials?"
_KEY = rf"(?<![\w-])[\w-]{{0,60}}(?:{_WORDS})[\w-]{{0,60}}"
_NAME = r"(?-i:secret:[A-Z][A-Z0-9_]*)"  # `mask` shows the names of secrets
_IN_URL = re.compile(r"://[^\s:/?#@]{0,100}:[^\s/?#]{1,300}@")
_SECRETS = [
    # password=..., "api_key": "...", X-Auth-Token: ..., also with quotes that JSON or Python has escaped
    re.compile(
        rf"""(?i)((?!{_NAME}){_KEY}(?:\\*["'])?\s{{0,9}}[:=]\s{{0,9}})(?!\\*["']?{_NAME})"""
        r"""(?:b?(?:"[^"]*"|'[^']*')|\\+["'].*?\\+["']|[^\s,;&)\]}]+)"""
    ),
    re.compile(rf"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?!(?:\w+\s+)?{_NAME})(?:\w+\s+)?)[^\s\"',;]+"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"),
    re.compile(r"(://[^\s:/@]{0,100}:)(?!password@)[^\s/?#]{1,300}(?=@)"),
    re.compile(r"(\beyJ)[\w-]{10,}\.[\w-]{10,}\.[\w-]*"),  # a JSON web token
    re.compile(r"(\bpunctual_)[\w-]{43}\b"),  # a token of the API
]
_KEY_ALONE = re.compile(rf"(?i){_KEY}|authorization")

_NAMED = re.compile(r"\bsecret:([A-Za-z][A-Za-z0-9_]*)")


class UnknownNameError(LookupError):
    """No secret has this name. The message says how to set it. `mask` leaves it unchanged."""


def named(text: str) -> list[str]:
    """The names of the secrets in a text, each once."""
    return list(dict.fromkeys(_NAMED.findall(text)))


def reveal(text: str) -> str:
    """The text with each secret's name replaced by its value. Raises `UnknownNameError`.

    It checks no destination: jobs call `jobs.toolkit.reveal`, which does.
    """
    return _NAMED.sub(lambda found: _value(found[1]), text)


def _value(name: str) -> str:
    value = settings.JOB_SECRETS.get(name)
    if value is None:
        raise UnknownNameError(f"No secret is named {name}: set JOB_SECRET_{name} for the workers.")
    return str(value)


def mask(text: str) -> str:
    """The text with `***` for job secrets, values next to words such as `password`, and passwords in URLs."""
    needed, known, _ = _known()
    lowered = text.lower()
    if any(part in lowered for part in needed):  # a hundred times as fast as the pattern, which seldom matches
        text = known.sub("***", text)
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def refuse_passwords(*values: Any) -> None:
    """Refuse texts, and structures of texts, with a password in a URL: every viewer of the row could read it.

    Raises `Invalid`.
    """
    if any(map(_IN_URL.search, texts(values))):
        raise Invalid(
            "A URL contains a password that every viewer could read: set JOB_SECRET_NAME for the workers, and write"
            " secret:NAME in a header or a body."
        )


def texts(value: Any) -> Iterator[str]:
    """All texts in a structure of mappings and lists, keys included."""
    match value:
        case str():
            yield value
        case Mapping():
            yield from texts([*value.keys(), *value.values()])
        case list() | tuple():
            for part in value:
                yield from texts(part)


def masked(value: Any, mask: Callable[[str], str] = mask) -> Any:
    """A structure of mappings and lists with every text in it masked.

    For many structures of the same texts, pass `functools.cache(mask)`.
    """
    match value:
        case str():
            return mask(value)
        case bytes():
            return mask(value.decode(errors="backslashreplace")).encode()
        case Mapping():
            return {masked(key, mask): _masked_at(key, part, mask) for key, part in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(part, mask) for part in value]
    return value


def _masked_at(key: Any, part: Any, mask: Callable[[str], str]) -> Any:
    name = key.decode(errors="replace") if isinstance(key, bytes) else key
    can_be_secret = isinstance(part, (str, bytes, list, tuple, Mapping)) and part
    is_secret = can_be_secret and isinstance(name, str) and _KEY_ALONE.fullmatch(name)
    return "***" if is_secret else masked(part, mask)


def masking(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its result masked."""

    @wraps(function)
    def masked_function(*args: Any, **options: Any) -> Any:
        return masked(function(*args, **options))

    return masked_function


def head(text: str, longest: int) -> str:
    """The first `longest` characters of a text, masked and storable."""
    shown = mask(storable(text[: longest + MARGIN]))
    if len(text) > longest + MARGIN:  # half a secret may stand before the cut, after the last masked one
        shown = shown[: max(len(shown) - edge(), shown.rfind("***") + 3)]
    return shown[:longest]


def tail(text: str, longest: int) -> str:
    """The last `longest` characters of a text, masked and storable."""
    shown = mask(storable(text[-longest - MARGIN :]))
    if len(text) > longest + MARGIN:
        first = shown.find("***")
        shown = shown[edge() if first < 0 else min(first, edge()) :]
    return shown[-longest:]


def as_key(text: str, longest: int) -> str:
    """The text, or its digest if it is too long or holds a secret: cut or masked, two keys could become equal."""
    if len(text) <= longest and mask(text) == text:
        return text
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def in_one_line(error: BaseException, longest: int) -> str:
    """An error as the ledger shows it: its last line, masked. It also works for an error that cannot be printed."""
    return head(format_exception_only(error)[-1].strip(), longest)


def storable(text: str) -> str:
    """The text with NUL and lone surrogates escaped, which not every database can store."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def edge() -> int:
    """How many characters beside a cut may be half a secret."""
    return max(EDGE, _known()[2])


def _known() -> tuple[tuple[str, ...], re.Pattern[str], int]:
    if not settings.configured:  # in gunicorn's main process, which loads no code that it could not load anew
        return _patterns(())
    keys = getattr(settings, "MESSAGE_KEYS", ())
    of_hooks, of_channels = (getattr(settings, name, {}) for name in ("WEBHOOK_KEYS", "CHANNEL_KEYS"))
    lists = (*of_hooks.values(), *of_channels.values())
    bare = (key.removeprefix(PREFIX) for each in lists for key in each)  # some programs show a key without its prefix
    urls = (*getattr(settings, "CHANNEL_URLS", {}).values(), getattr(settings, "BEAT_PING_URL", ""))
    tokens = (token for url in urls for token in _tokens(url))
    scraping = getattr(settings, "METRICS_TOKEN", "")
    return _patterns((*settings.JOB_SECRETS.values(), settings.SECRET_KEY, scraping, *keys, *bare, *tokens))


@cache
def _tokens(url: str) -> tuple[str, ...]:
    """A secret address, and its parts that are no plain words: programs show an address in pieces."""
    pieces = [part.partition("=")[2] or part for part in re.split("[/?#&@:]+", url)]
    found = {text for piece in pieces for text in (piece, unquote(piece))}
    return tuple(sorted({url, *(text for text in found if len(text) >= SHORTEST and not NO_TOKEN.fullmatch(text))}))


@cache
def _patterns(secrets: tuple[str, ...]) -> tuple[tuple[str, ...], re.Pattern[str], int]:
    """For a search: texts of which a match contains one, in lower case; the pattern; and the length of the edge."""
    forms = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
    needed = {max(PLAIN.findall(form), key=len, default="").lower() for form in forms}
    pattern = "|".join("".join(map(_written, PARTS.findall(form))) for form in forms) or "(?!)"
    return tuple(needed), re.compile(pattern, re.IGNORECASE), 4 * max(map(len, forms), default=0)


def _forms(secret: str) -> Iterator[str]:
    """The secret as it is, its long lines, and as base64 and hex write it."""
    if not secret:
        return
    as_bytes = secret.encode()
    yield from (secret, as_bytes.hex())
    yield from (line for line in secret.splitlines() if len(line) >= SHORTEST)
    for before in range(3):  # base64 encodes three bytes as four characters, and other bytes may come before
        whole = base64.b64encode(bytes(before) + as_bytes).rstrip(b"=").decode()
        first, last = (0, 2, 3)[before], len(whole) - (len(whole) % 4 > 0)
        part = whole[first:last]  # without characters that mix in other bytes
        if len(part) >= SHORTEST:
            yield from (part, part.translate(_URL_SAFE))


def _written(part: str) -> str:
    """A pattern of a part of a secret as programs write it: plain, in quotes of Python or JSON, in a URL, in HTML."""
    if PLAIN.fullmatch(part):
        return part
    if part[0] == BACKSLASH:
        return rf"(?:{_slashes(len(part))}|(?:%5C){{{len(part)}}})"
    cases = {part, part.upper(), part.lower()}
    codes = {code for each in cases for code in (json.dumps(each)[1:-1], ascii(each)[1:-1], repr(each.encode())[2:-1])}
    codes -= {part}
    in_url = "".join(f"%{byte:02X}" for byte in part.encode())
    either = [rf"\\{{0,{NESTED}}}" + re.escape(part), re.escape(in_url), re.escape(html.escape(part))]
    either += [re.escape(code).replace(r"\\", _slashes(1)) for code in codes]
    return f"(?:{'|'.join([*either, '[+]'] if part == ' ' else either)})"


def _slashes(number: int) -> str:
    """A pattern of backslashes, each of which quotes may have doubled a few times. Bounded, or it could take hours."""
    return rf"\\{{{number},{number * (NESTED + 1)}}}"


_URL_SAFE = str.maketrans("+/", "-_")
