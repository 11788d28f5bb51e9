"""Whose database is this? A copy of production's must not run production's jobs on a staging machine.

Its one rule: the first beat with a name (the setting INSTALLATION) adopts the database for that name. A process of
another name then claims, sends and starts nothing, until `manage.py take_over` gives the database to its own.

Limits: a process without a name refuses nothing; without a query it cannot know. A process notices another adopter
within `EVERY`. Name production first: a copy of a database that belongs to none is adopted by the first beat.
"""

import time

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

LONGEST = 100  # characters of a name
EVERY = 2.0  # seconds for which a process trusts what it has read


class Installation(models.Model):
    """The installation that has adopted this database: one row, or none."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    name = models.CharField(max_length=LONGEST)
    adopted_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="installation_only_one")]

    def __str__(self) -> str:
        return self.name


def own_name() -> str:
    """The name of this process's installation; empty if it has none."""
    return str(getattr(settings, "INSTALLATION", ""))


def adopter() -> str:
    """The name of the installation that this database belongs to; empty if it belongs to none."""
    return Installation.objects.values_list("name", flat=True).first() or ""


def adopt() -> None:
    """Adopt a database that belongs to no installation, if this process has a name."""
    if own_name():
        Installation.objects.bulk_create([Installation(name=own_name())], ignore_conflicts=True)
        _Known.until = 0.0


def take_over() -> None:
    """Give the database to the installation of this process."""
    row = Installation(name=own_name(), adopted_at=Now())
    columns = ["name", "adopted_at"]
    Installation.objects.bulk_create([row], update_conflicts=True, unique_fields=["id"], update_fields=columns)
    _Known.until = 0.0


def refusal() -> str:
    """Why this process does nothing with the runs of this database, and the command to change that; empty if it may."""
    mine = own_name()
    if not mine:
        return ""
    if time.monotonic() > _Known.until:
        _Known.adopter, _Known.until = adopter(), time.monotonic() + EVERY
    return "" if _Known.adopter in {"", mine} else sentence(_Known.adopter, mine)


def sentence(theirs: str, mine: str) -> str:
    return (
        f"This database belongs to the installation {theirs!r}, and this process to {mine!r}, so it runs nothing of it."
        f" If this is a copy for {mine!r}, call `manage.py take_over`: it cancels the unfinished runs of {theirs!r}."
    )


class _Known:
    """What this process has read last."""

    adopter = ""
    until = 0.0  # by the monotonic clock
