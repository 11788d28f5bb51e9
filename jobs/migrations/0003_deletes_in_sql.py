"""Let PostgreSQL itself follow the deletion of a schedule: rows deleted by plain SQL, past Django, are no error then.

SQLite cannot change a constraint of a table; there such a DELETE is refused.
"""

from django.db import migrations

FOLLOWING = [
    ("Policy", "schedule", "CASCADE"),
    ("Backfill", "schedule", "CASCADE"),
    ("Run", "schedule", "SET NULL"),
    ("Run", "backfill", "SET NULL"),
]


def follow(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    quote = schema_editor.quote_name
    for model_name, field_name, action in FOLLOWING:
        model = apps.get_model("jobs", model_name)
        field = model._meta.get_field(field_name)
        target = field.related_model._meta
        (name,) = schema_editor._constraint_names(model, [field.column], foreign_key=True)
        table = f"ALTER TABLE {quote(model._meta.db_table)}"
        schema_editor.execute(f"{table} DROP CONSTRAINT {quote(name)}")
        schema_editor.execute(
            f"{table} ADD CONSTRAINT {quote(name)} FOREIGN KEY ({quote(field.column)})"
            f" REFERENCES {quote(target.db_table)} ({quote(target.pk.column)})"
            f" ON DELETE {action} DEFERRABLE INITIALLY DEFERRED"
        )


class Migration(migrations.Migration):
    dependencies = [("jobs", "0002_schedules_that_can_be_trusted")]
    operations = [migrations.RunPython(follow, migrations.RunPython.noop)]
