"""Which origins does an entry such as `*.example.org` cover? Compares parsed schemes, hosts and ports, never texts.

An entry is `[scheme://]host[:port]`, by default with HTTPS and the default port of the scheme. `*.example.org` covers
all subdomains of example.org, but not example.org itself; `*` covers every origin. Case, a trailing dot, Unicode or
punycode, and the zeros of an IPv6 address make no difference.
"""

import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import httpx

PORTS = {"http": 80, "https": 443}
# A name in ASCII, or an IPv6 address without a zone.
HOST = re.compile(r"[a-z0-9_-][a-z0-9._-]*|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")
ANY = "*"
BELOW = "*."


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port in their canonical form."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> "Origin":
        """The origin of an http or https address. Raises ValueError."""
        host = url.raw_host.decode("ascii").lower().removesuffix(".")
        with suppress(ValueError):
            host = str(ipaddress.ip_address(host))
        if url.scheme not in PORTS or not host or url.userinfo:
            raise ValueError("This is not an http or https address with a host, or it has a user name.")
        return cls(url.scheme, host, url.port or PORTS[url.scheme])

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port != PORTS[self.scheme] else "")


@lru_cache(maxsize=1024)
def parse(entry: str) -> tuple[bool, Origin | None]:
    """Whether an entry covers subdomains, and its origin, which is None for `*`. Raises ValueError."""
    if entry == ANY:
        return True, None
    scheme, _, rest = entry.rpartition("://")
    try:
        url = httpx.URL(f"{scheme or 'https'}://{rest.removeprefix(BELOW)}")
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    if url.raw_path != b"/" or url.fragment or not HOST.fullmatch(url.raw_host.decode()) or (url.port or 1) > 65535:
        raise ValueError("An entry has neither a path, nor a * inside, nor a port above 65535.")
    return rest.startswith(BELOW), Origin.of(url)


def covers(entries: Iterable[str], origin: Origin) -> bool:
    """Whether one of these entries covers the origin."""
    return any(_covers(*parse(entry), origin) for entry in entries)


def _covers(subdomains: bool, own: Origin | None, origin: Origin) -> bool:
    if own is None:
        return True
    is_host = origin.host.endswith(f".{own.host}") if subdomains else origin.host == own.host
    return is_host and (origin.scheme, origin.port) == (own.scheme, own.port)
