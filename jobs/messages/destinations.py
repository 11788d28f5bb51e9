"""Where may a secret go? To the hosts of SECRET_HOSTS_NAME, and only in the jobs of SECRET_JOBS_NAME.

Its one rule: a secret without hosts goes nowhere. SECRET_JOBS_NAME, if it is set, limits the secret to these jobs. Only
they may also use it without a host, such as for a database or an SDK. Every process knows these settings, so a form
refuses a destination that the worker would refuse. Only workers know the values.
"""

from typing import Any

import httpx
from django.conf import settings

from jobs import secrets
from jobs.rules import origins, restricted
from jobs.rules.errors import Invalid

NOWHERE = "The secret {0} may not go to any host: set SECRET_HOSTS_{0} for every process, such as api.example.org."


def check_known(name: str) -> None:
    """Refuse a name that occurs in no setting of secrets. Raises `Invalid`."""
    if not any(name in known for known in (settings.JOB_SECRETS, settings.SECRET_HOSTS, settings.SECRET_JOBS)):
        raise Invalid(
            f"No secret is named {name}: set JOB_SECRET_{name} for the workers, and SECRET_HOSTS_{name} for every"
            " process."
        )


def check_host(name: str, url: httpx.URL) -> None:
    """Refuse to send a secret to a host that its settings do not list. Raises `Invalid`."""
    check_known(name)
    hosts, origin = settings.SECRET_HOSTS.get(name), origins.Origin.of(url)
    if not hosts:
        raise Invalid(NOWHERE.format(name))
    if not origins.covers(hosts, origin):
        raise Invalid(f"The secret {name} may not go to {origin}: SECRET_HOSTS_{name} allows {', '.join(hosts)}.")


def check_job(name: str, job: str) -> None:
    """Refuse a job that may not use the secret. Raises `Invalid`."""
    jobs = settings.SECRET_JOBS.get(name)
    if jobs is not None and not any(restricted.fits(pattern, job) for pattern in jobs):
        raise Invalid(f"{job} may not use the secret {name}: SECRET_JOBS_{name} allows {', '.join(jobs) or 'none'}.")


def check_named(name: str, job: str) -> None:
    """Refuse a job that uses a secret without a host, unless SECRET_JOBS_NAME lists it. Raises `Invalid`."""
    check_known(name)
    if name not in settings.SECRET_JOBS:
        raise Invalid(
            f"{job} uses the secret {name} without a host: list the job in SECRET_JOBS_{name}, or give `reveal` the"
            " address that the secret goes to."
        )


def check_arguments(job: str, *arguments: Any) -> None:
    """Refuse arguments that name a secret which the job may not use. Raises `Invalid`."""
    if settings.SECRET_JOBS:  # most installations set none, and beat asks before every run
        for text in secrets.texts(arguments):
            for name in secrets.named(text):
                check_job(name, job)
