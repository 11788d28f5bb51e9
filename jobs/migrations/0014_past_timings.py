"""Keep the timings that were in force, and the data windows of requested runs.

A schedule counts as known since its timing took effect; before that, its first timing counts. On PostgreSQL no table is
rewritten; SQLite copies the runs.
"""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0013_exact_time")]
    operations = [
        migrations.AddField(
            "policy",
            "known_since",
            models.DateTimeField(
                editable=False,
                help_text="Since when its timings are known; before that, the first one counts.",
                null=True,
            ),
        ),
        migrations.AddField(
            "run",
            "window_start",
            models.DateTimeField(
                help_text="The start of its data window; year 2: it has none. Empty: it follows from the runs before.",
                null=True,
            ),
        ),
        migrations.CreateModel(
            "PastTiming",
            [
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("timing", models.TextField(help_text="As a Spec.")),
                ("since", models.DateTimeField()),
                ("until", models.DateTimeField()),
                (
                    "schedule",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="past_timings",
                        to="django_celery_beat.periodictask",
                    ),
                ),
            ],
            options={"indexes": [models.Index("schedule", "since", name="past_timing_of_schedule")]},
        ),
    ]
