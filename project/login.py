"""How often may a client try to log in? django-axes counts the failures; this module sets the limits.

Its one rule: a client can choose neither its address nor the user whose failures a login resets. A few wrong passwords
for one name lock that name for that address; failures with many names lock the address.
Limits: a lock is for one address, so many addresses may try one name. Simultaneous requests may each try once.
"""

import ipaddress
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from django.conf import settings
from django.contrib.auth.backends import RemoteUserBackend
from django.contrib.auth.middleware import RemoteUserMiddleware
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

FAILURES_OF_ADDRESS = 30  # with any names, until the address is locked; AXES_FAILURE_LIMIT is for one name
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NETWORK = 64  # bits of an IPv6 address that identify its owner, who may use all addresses of this network


def address_of(request: HttpRequest) -> str | None:
    """The client's address, or its network for IPv6."""
    address = client_of(request)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), NETWORK), strict=False).network_address)
    return str(address) if address else None


def client_of(request: HttpRequest) -> Address | None:
    """The client's address. Of X-Forwarded-For only the last entry counts, the proxy's."""
    sender = request.META.get("REMOTE_ADDR", "")
    named = request.META.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip() if settings.BEHIND_PROXY else ""
    return _parsed(named) or _parsed(sender)


def _parsed(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(_without_port(text))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(text: str) -> str:
    """Some proxies add the client's port: 203.0.113.1:50123, [2001:db8::1]:50123."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


class Throttle(AxesDatabaseHandler):  # type: ignore[misc] # django-axes has no type hints
    """Counts failures of a name from an address, and all failures from the address in proportion to their own limit.

    A user whom the proxy names has no password to guess, and shares the proxy's address with others: no limit applies.
    """

    def is_locked(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> bool:
        return not _is_by_proxy(credentials) and super().is_locked(request, credentials)

    def user_login_failed(self, sender: Any, credentials: Any, request: Any = None, **options: Any) -> None:
        if not _is_by_proxy(credentials):
            super().user_login_failed(sender, credentials, request, **options)

    def get_failures(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        pair, address = (
            attempts.aggregate(number=Sum("failures_since_start"))["number"] or 0
            for attempts in self.get_user_attempts(request, credentials)
        )
        return int(max(pair, address * settings.AXES_FAILURE_LIMIT // FAILURES_OF_ADDRESS))

    def reset_user_attempts(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        """Delete the failures of the name that has logged in, but not those of other names from its address."""
        number, _ = self.filter_user_attempts(request, credentials)[0].delete()
        return int(number)


def _is_by_proxy(credentials: dict[str, Any] | None) -> bool:
    return "remote_user" in (credentials or {})  # only ProxyLogin authenticates so


def locked_out(request: HttpRequest, *_: Any) -> HttpResponse:
    """The page of a lock. It is the same for a right password, a wrong one and an unknown name."""
    seconds = int(settings.AXES_COOLOFF_TIME.total_seconds())
    page = render(request, "locked_out.html", {"minutes": seconds // 60}, status=429)
    page["Retry-After"] = str(seconds)
    return page


# --- Users whom a proxy has logged in -------------------------------------------------------------------------------


class ProxyLogin(RemoteUserMiddleware):
    """Logs in the user whom the proxy names in SSO_HEADER, and logs the user out when the proxy names none."""

    @property
    def header(self) -> str:  # type: ignore[override] # Django's is a constant
        return f"HTTP_{settings.SSO_HEADER.upper().replace('-', '_')}"


class ProxyBackend(RemoteUserBackend):
    """Creates a user for a new name: without a password, and without any right until an admin user gives one."""

    def authenticate(self, request: Any, remote_user: str | None) -> Any:  # type: ignore[override]
        """The user, or None for a name that no user may have."""
        name = User._meta.get_field("username")
        try:
            name.run_validators(remote_user or "")
        except ValidationError:
            return None
        return super().authenticate(request, remote_user) if remote_user else None

    def configure_user(self, request: Any, user: Any, created: bool = True) -> Any:  # noqa: ARG002
        if created:
            user.set_unusable_password()
            user.save(update_fields=["password"])
        return user
