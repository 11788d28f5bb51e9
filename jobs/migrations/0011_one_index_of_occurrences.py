"""One index instead of two finds the runs of a schedule, and keeps each of its due moments unique.

The table is locked while PostgreSQL builds the index: a few seconds for a million runs.
"""

from uuid import UUID

from django.db import migrations, models
from django.db.models import Case, Value, When

NAME = "run_one_per_occurrence"
OF_DUE_MOMENTS = models.UniqueConstraint(
    "schedule",
    "due_at",
    Case(When(trigger="schedule", then=Value(UUID(int=0))), default="id", output_field=models.UUIDField()),
    name=NAME,
)


class Migration(migrations.Migration):
    dependencies = [("jobs", "0010_longer_names_of_actors")]
    operations = [
        migrations.RemoveIndex("run", "run_recent"),
        migrations.RemoveConstraint("run", NAME),
        migrations.AddConstraint("run", OF_DUE_MOMENTS),
    ]
