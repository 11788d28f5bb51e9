"""What time is it, and how long does a process own its run? The database's clock decides."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection
from django.utils import timezone


def database_now() -> datetime:
    """The time of the database's clock; with SQLite, of this machine's clock."""
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def lease() -> timedelta:
    """How long a process owns the run that it executes, unless it renews the lease."""
    return timedelta(seconds=settings.LEASE_SECONDS)
