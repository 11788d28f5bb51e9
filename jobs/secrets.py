"""How do secrets get into jobs, and stay out of texts? Arguments name a secret, and only the worker puts the value in.

    {"headers": {"Authorization": "Bearer secret:BILLING_TOKEN"}}

The value of `secret:BILLING_TOKEN` is that of the variable JOB_SECRET_BILLING_TOKEN (or of the file that
JOB_SECRET_BILLING_TOKEN_FILE names). Its one rule: values are revealed where they are used, and never stored.
Schedules, runs and messages hold the name; `mask` hides the value wherever a job logs it or fails with it. What
a job returns or writes elsewhere is its own to keep clean.
"""

import re

from django.conf import settings

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
