"""What time is it, and how long does a process own its run? The database's clock decides."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection
from django.utils import timezone


def database_now() -> datetime:
    """The database's clock, which decides; SQLite's is this machine's."""
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def lease() -> timedelta:
    """How long an executing process owns its run without a sign of life."""
    return timedelta(seconds=settings.LEASE_SECONDS)
