"""Which jobs need a right of their own, and who has it? RESTRICTED_JOBS lists the jobs; each entry is a permission.

Its one rule: a user without the right for a job sees its schedules and runs, and changes and starts nothing of them.
The most specific entry decides: the exact name, else the longest pattern. `billing.*` covers all names that begin so.
Superusers have every right. A job that no entry names needs only the permissions for schedules and runs.

`manage.py migrate` makes the permissions, and deletes those whose entry is gone. Until then only superusers have a new
one. Limit: rights say who may change and start a job. A schedule goes on whatever becomes of its author's rights.
"""

import hashlib
from typing import Any

from django.apps import apps as installed_apps
from django.conf import settings
from django.db import router

PREFIX = "start:"  # of the codenames, which no other permission of runs has
LONGEST_CODENAME = 100


def entry_of(job: str) -> str | None:
    """The entry of RESTRICTED_JOBS that governs a job; None if the job needs no right of its own."""
    entries = settings.RESTRICTED_JOBS
    if job in entries:
        return job
    return max((entry for entry in entries if fits(entry, job)), key=len, default=None)


def fits(pattern: str, job: str) -> bool:
    """Whether a name, or a pattern with `*` at its end, covers this job."""
    return job.startswith(pattern[:-1]) if pattern.endswith("*") else job == pattern


def title_of(entry: str) -> str:
    """The name of the entry's permission, as the admin shows it."""
    return f"Can schedule and start {entry}"


def codename_of(entry: str) -> str:
    """The codename of the entry's permission; a long one ends in a digest."""
    name = f"{PREFIX}{entry}"
    digest = hashlib.sha256(entry.encode()).hexdigest()[:32]
    return name if len(name) <= LONGEST_CODENAME else f"{name[: LONGEST_CODENAME - 33]}~{digest}"


def has(user: Any, entry: str) -> bool:
    """Whether a user of any user model has the right of an entry."""
    asked = getattr(user, "has_perm", None)  # a user model without permissions has none
    return bool(asked and asked(f"jobs.{codename_of(entry)}"))


def make_permissions(using: str = "default", apps: Any = installed_apps, **_: Any) -> None:
    """After a migration: a permission for each entry, and none for entries that are gone."""
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
