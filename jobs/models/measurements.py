"""Numbers that `jobs.etl` has loaded. For each window, the table holds the rows of the source at the last load."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from django.db import connection, models, transaction

from jobs.models.clock import database_now

BATCH = 2_000  # rows in one statement


class MeasurementQuerySet(models.QuerySet["Measurement"]):
    @transaction.atomic
    def replace(self, dataset: str, start: str, end: str, rows: Iterator[dict[str, Any]]) -> tuple[int, int]:
        """Replace all rows of the window by these; returns how many were written, and how many removed."""
        now = _alone_with(dataset)
        new = (Measurement(dataset=dataset, loaded_at=now, **row) for row in rows)
        written = 0
        while batch := list(islice(new, BATCH)):
            unique = ["dataset", "at", "key", "column"]
            self.bulk_create(batch, update_conflicts=True, unique_fields=unique, update_fields=["value", "loaded_at"])
            written += len(batch)
        removed, _ = self.filter(dataset=dataset, at__gte=start, at__lt=end).exclude(loaded_at=now).delete()
        return written, removed


def _alone_with(dataset: str) -> datetime:
    """Lock the dataset until the transaction ends; returns the time. SQLite has only one writer anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"measurements {dataset}"])
    return database_now()


class Measurement(models.Model):
    """A number at a moment, loaded by `jobs.etl` from a column of its source."""

    dataset = models.CharField(max_length=200)
    key = models.CharField(max_length=200, help_text="The subject of the measurement: a station, a shop, a sensor.")
    at = models.DateTimeField()
    column = models.CharField(max_length=200, help_text="The column of the source that it comes from.")
    value = models.FloatField()
    loaded_at = models.DateTimeField(help_text="When the source last contained it.")

    objects = MeasurementQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["dataset", "at", "key", "column"], name="measurement_once")]

    def __str__(self) -> str:
        return f"{self.column} of {self.key} at {self.at:%Y-%m-%d %H:%M:%S}"
