"""How is a variable of the environment read? As one of `kinds`, or with an error that names the variable.

Its one rule: no error shows a value.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import environ
from celery.app.backends import BACKEND_ALIASES
from django.core.exceptions import ImproperlyConfigured

from jobs.rules import origins, queues, signatures

env = environ.FileAwareEnv().ENVIRON
required = environ.Env.NOTSET


def truth(text: str) -> bool:
    """Stricter than django-environ, which reads every unknown word as false."""
    if text.lower() not in {"true", "yes", "on", "1", "false", "no", "off", "0"}:
        raise ValueError
    return text.lower() in {"true", "yes", "on", "1"}


def zone(text: str) -> str:
    return ZoneInfo(text).key


def level(text: str) -> str:
    return {name: name for name in ("DEBUG", "INFO", "WARNING", "ERROR")}[text.upper()]


def log_format(text: str) -> str:
    return {name: name for name in ("text", "json")}[text.lower()]


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def lifetime(text: str) -> int | None:
    return None if text.lower() == "never" else count(text)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def patterns(text: str) -> list[str]:
    """Names of jobs, or prefixes of names followed by `*`."""
    if not all(word.isprintable() and len(word) <= 200 and "*" not in word[:-1] for word in words(text)):
        raise ValueError
    return words(text)


def hosts(text: str) -> list[str]:
    for word in words(text):
        origins.parse(word)
    return words(text)


def domains(text: str) -> list[str]:
    """Domains in the form that `jobs.mail` compares: lower-case punycode."""
    found = [word.encode("idna").decode().lower() if word.isprintable() else "" for word in words(text)]
    if not all(re.fullmatch(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*", domain) for domain in found):
        raise ValueError
    return found


def networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(word) for word in words(text)]


def site(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError
    return text.rstrip("/")


def email_url(text: str) -> dict[str, Any]:
    """Stricter than django-environ, which ignores unknown options: mail meant for TLS would go out unencrypted."""
    config: dict[str, Any] = environ.Env.email_url_config(text)
    if config.pop("OPTIONS", None):
        raise ValueError
    return config


def secret(text: str) -> str:
    """A text long enough to be masked everywhere, and encodable as UTF-8."""
    if len(text.encode()) < 8:
        raise ValueError
    return text


def signing_keys(text: str) -> list[str]:
    found = words(text)
    if not all(len(key.encode()) >= 32 for key in found):
        raise ValueError
    return found


def webhook_keys(text: str) -> list[str]:
    """Keys of senders of webhooks, as long as `jobs.rules.signatures` wants them."""
    found = words(text)
    if not found or not all(len(key.encode()) >= signatures.SHORTEST_KEY for key in found):
        raise ValueError
    return found


def channel_keys(text: str) -> list[str]:
    """Keys of Standard Webhooks, as the receiver shows them."""
    found = words(text)
    if not found:
        raise ValueError
    for key in found:
        signatures.signing_key("standard", key)
    return found


def channel_url(text: str) -> str:
    """An address with a scheme: https://host/path, or one of Apprise."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]\S*", text) or not text.isprintable():
        raise ValueError
    if text.lower().startswith(("http:", "https:")):
        site(text)
    return secret(text)


def ping_url(text: str) -> str:
    return secret(site(text))


def remote_control(text: str) -> str:
    return {name: name for name in ("inspect", "full", "off")}[text.lower()]


def short_name(text: str) -> str:
    if len(text) > 100 or not text.isprintable():
        raise ValueError
    return text


def queue_names(text: str) -> list[str]:
    if any(not queues.PLAIN.fullmatch(name) or queues.reserved(name) for name in words(text)):
        raise ValueError
    return words(text)


def result_backend(text: str) -> str:
    """A backend that Celery knows by name, or a class of an installed module."""
    name = text.partition("://")[0].partition("+")[0]
    known = {*BACKEND_ALIASES, *entry_points(group="celery.result_backends").names}
    module, colon, _ = name.partition(":")
    if name not in known and not (colon and find_spec(module)):
        raise ValueError
    return text


def path(text: str) -> str:
    """A path of this site, with a slash only at its end."""
    inner = text.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*(/[A-Za-z0-9][\w-]*)*", inner, re.ASCII):
        raise ValueError
    if inner.partition("/")[0] in {"api", "files", "hooks", "livez", "metrics", "readyz", "static", "statistics"}:
        raise ValueError
    return f"{inner}/"


def header(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", text):
        raise ValueError
    return text


# How to read each kind of value, and how an error describes it.
kinds: dict[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "text"),
    "name": (short_name, "one line of at most 100 characters"),
    "bool": (truth, "true or false"),
    "count": (count, "a whole number above 0"),
    "lifetime": (lifetime, "a whole number above 0, or never"),
    "float": (positive, "a number above 0"),
    "list": (words, "a list separated by commas"),
    "queues": (queue_names, f"names of at most {queues.LONGEST} letters, digits, _ . -, none of Celery's own"),
    "patterns": (patterns, "a list of jobs separated by commas, such as jobs.report, billing.* or *"),
    "hosts": (hosts, "a list of hosts separated by commas: api.example.org, *.example.org, http://host:8080 or *"),
    "domains": (domains, "a list of domains separated by commas, such as example.org, *.example.org"),
    "networks": (networks, "networks separated by commas, such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"),
    "site": (site, "the address of a site, such as https://punctual.example"),
    "path": (path, "a path such as admin/ or office/console/ that no other page uses"),
    "header": (header, "the name of a header, such as X-Remote-User"),
    "zone": (zone, "an IANA time zone such as Europe/Berlin"),
    "level": (level, "DEBUG, INFO, WARNING or ERROR"),
    "log_format": (log_format, "text or json"),
    "signing_keys": (signing_keys, "keys of at least 32 bytes each, separated by commas"),
    "webhook_keys": (webhook_keys, f"keys of at least {signatures.SHORTEST_KEY} bytes each, separated by commas"),
    "channel_keys": (
        channel_keys,
        f"whsec_ and base64 of at least {signatures.SHORTEST_KEY} bytes, or several such keys separated by commas",
    ),
    "channel_url": (channel_url, "an address without spaces, such as https://host/path or slack://TOKEN/TOKEN/TOKEN"),
    "ping_url": (ping_url, "an address such as https://host/path"),
    "remote_control": (remote_control, "inspect, full or off"),
    "secret": (secret, "UTF-8 text of at least 8 bytes"),
    "result_backend": (result_backend, "django-db, redis://host:6379/0 or another backend that Celery knows"),
    "email_url": (email_url, "like smtp+tls://user:password@host:587 (smtp+ssl://, smtp://) or consolemail://"),
}


def read(kind: str, name: str, default: Any = required) -> Any:
    """The value of variable `name` as one of `kinds`. An unset or empty one gives the default. Errors never show it."""
    function, description = kinds[kind]
    try:
        text = env.get(name, "").strip()  # the value in a file may end in a newline
    except (OSError, UnicodeDecodeError):
        raise ImproperlyConfigured(
            f"{name}_FILE names a file that cannot be read: check its path and permissions."
        ) from None
    if not text and default is required:
        raise ImproperlyConfigured(f"{name} is not set. Set it (or {name}_FILE), or set DEBUG=true for development.")
    try:
        return function(text) if text else default
    except (ValueError, LookupError, OSError, ImportError, ImproperlyConfigured):
        raise ImproperlyConfigured(f"{name} is invalid: it must be {description}.") from None


def read_all(kind: str, prefix: str) -> dict[str, Any]:
    """The values of all variables with this prefix, by the rest of the variable's name: the name of the secret."""
    found = {}
    for variable in filter(lambda name: name.startswith(prefix), os.environ):
        name = variable.removeprefix(prefix).removesuffix("_FILE")
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
            raise ImproperlyConfigured(
                f"{variable} does not name a secret; after {prefix}, write a letter, then letters, digits or _."
            )
        if (value := read(kind, f"{prefix}{name}", None)) is not None:
            found[name] = value
    return found
