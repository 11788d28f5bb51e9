"""The name of a user may have 254 characters. PostgreSQL only changes the types; SQLite copies the three tables."""

from django.db import migrations, models

REQUESTED = "Who requested it; empty: its schedule."


class Migration(migrations.Migration):
    dependencies = [("jobs", "0009_strangers")]
    operations = [
        migrations.AlterField("run", "actor", models.CharField(blank=True, help_text=REQUESTED, max_length=254)),
        migrations.AlterField("backfill", "actor", models.CharField(max_length=254)),
        migrations.AlterField("policy", "paused_by", models.CharField(default="", editable=False, max_length=254)),
    ]
