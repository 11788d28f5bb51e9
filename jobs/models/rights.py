"""Which jobs need a right of their own, and who has it? RESTRICTED_JOBS lists the jobs; each entry is a permission.

Its one rule: a user without the right for a job may view its schedules and runs, but neither change nor start them. The
most specific entry decides: the exact name, otherwise the longest pattern. `billing.*` covers all names that begin with
`billing.`. Superusers have every right. A job that no entry covers needs only the permissions for schedules and runs.

`manage.py migrate` creates the permissions, and deletes those of removed entries. Until then only superusers have a new
permission. Limit: a schedule continues to run when its author loses the right.
"""

import hashlib
from typing import Any

from django.apps import apps as installed_apps
from django.conf import settings
from django.db import router

from jobs.rules import restricted

PREFIX = "start:"  # of the codenames; no other permission of runs begins so
LONGEST_CODENAME = 100


def entry_of(job: str) -> str | None:
    """The entry of RESTRICTED_JOBS that decides about a job; None if the job needs no right of its own."""
    return restricted.entry_of(job, settings.RESTRICTED_JOBS)


def title_of(entry: str) -> str:
    """The name of the entry's permission, as the admin shows it."""
    return f"Can schedule and start {entry}"


def codename_of(entry: str) -> str:
    """The codename of the entry's permission; a long one ends in a digest."""
    name = f"{PREFIX}{entry}"
    digest = hashlib.sha256(entry.encode()).hexdigest()[:32]
    return name if len(name) <= LONGEST_CODENAME else f"{name[: LONGEST_CODENAME - 33]}~{digest}"


def has(user: Any, entry: str) -> bool:
    """Whether a user has the right of an entry. Works for every user model."""
    asked = getattr(user, "has_perm", None)  # a user model without permissions has none
    return bool(asked and asked(f"jobs.{codename_of(entry)}"))


def make_permissions(using: str = "default", apps: Any = installed_apps, **_: Any) -> None:
    """After a migration, create the missing permissions of entries, and delete those of removed entries."""
    try:
        run = apps.get_model("jobs", "Run")
        permissions = apps.get_model("auth", "Permission").objects.using(using)
        content_types = apps.get_model("contenttypes", "ContentType").objects.db_manager(using)
    except LookupError:
        return  # this project has no users, or the tables do not exist yet
    if not router.allow_migrate_model(using, run):
        return
    ours = {"content_type": content_types.get_for_model(run)}
    wanted = {codename_of(entry): title_of(entry) for entry in settings.RESTRICTED_JOBS}
    permissions.filter(**ours, codename__startswith=PREFIX).exclude(codename__in=wanted).delete()
    known = set(permissions.filter(**ours, codename__in=wanted).values_list("codename", flat=True))
    permissions.bulk_create(
        permissions.model(**ours, codename=codename, name=name)
        for codename, name in wanted.items()
        if codename not in known
    )
