"""Is this a mail address, and may mail go there?

Its one rule: an address has one canonical form, and only that is compared, stored and used.
Limits: whether a mailbox exists is known only to its mail server.
"""

from contextlib import suppress

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.encoding import punycode

from jobs.models import LONGEST_ADDRESS
from jobs.secrets import storable


def deliverable(address: str) -> str:
    """The canonical address, if it is a valid mail address in one of MAIL_DOMAINS. Raises ValueError."""
    plain = canonical(address)
    try:
        validate_email(plain)
    except ValidationError:
        raise ValueError("this is not a mail address: write name@example.org") from None
    if '"' in plain or "=?" in plain:  # mail servers may turn a quoted or encoded address into another one
        raise ValueError("this address is quoted or encoded: write it plainly, as name@example.org")
    name, _, domain = plain.rpartition("@")
    if settings.MAIL_DOMAINS and set("%!") & set(name):  # a relay may send it on to the domain that the name holds
        raise ValueError("this address names another one before the @: write it plainly, as name@example.org")
    if settings.MAIL_DOMAINS and not any(_covers(allowed, domain) for allowed in settings.MAIL_DOMAINS):
        raise ValueError(f"jobs send no mail to {domain}: MAIL_DOMAINS allows {', '.join(settings.MAIL_DOMAINS)}")
    return plain


def _covers(allowed: str, domain: str) -> bool:
    return domain.endswith(allowed[1:]) if allowed.startswith("*.") else domain == allowed


def canonical(address: str) -> str:
    """The address without surrounding space, its domain in lower-case punycode."""
    name, at, domain = storable(address).strip().rpartition("@")
    with suppress(UnicodeError):  # an invalid domain: `deliverable` refuses it
        domain = punycode(domain)
    return f"{name}{at}{domain.lower()}"[:LONGEST_ADDRESS]


def masked(address: str) -> str:
    """The address as a log may show it: its first letter and its domain."""
    name, _, domain = address.rpartition("@")
    return f"{name[:1]}…@{domain}" if name else "…"
