"""What travels with a run from the code that starts it? Headers of its messages, such as the id of a web request.

    register(headers_of_now, "traceparent", "tracestate")

Its one rule: a new run gets the headers of the moment it is created in. They stand in its options, so each message of
it has them, whichever process sends it and however often. A step gets those of the moment it is sent in. A run that
repeats another one inherits none of its headers.
Limit: every program that may write to the broker can forge a header. Check what you read.
"""

from collections.abc import Callable, Mapping
from typing import Any

Provider = Callable[[], Mapping[str, str]]

_providers: dict[Provider, frozenset[str]] = {}


def register(provider: Provider, *names: str) -> None:
    """Ask this provider for the headers with these names; where there are none now, it returns an empty mapping."""
    _providers[provider] = frozenset(names)


def unregister(provider: Provider) -> None:
    """Ask this provider no more."""
    _providers.pop(provider, None)


def headers_now() -> dict[str, str]:
    """The headers for a run that is created now, or a step that is sent now."""
    return {name: value for provider in _providers for name, value in provider().items()}


def with_headers(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a message with the headers of now in place of those of another run."""
    own = options.get("headers") or {}
    kept = {name: value for name, value in own.items() if not any(name in names for names in _providers.values())}
    headers = kept | headers_now()
    if headers == own:
        return options
    others = {name: value for name, value in options.items() if name != "headers"}
    return {**others, "headers": headers} if headers else others
