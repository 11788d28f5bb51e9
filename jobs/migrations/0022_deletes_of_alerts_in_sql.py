"""Let PostgreSQL itself delete what belongs to a deleted schedule, alert or channel."""

from django.db import migrations

FOLLOWING = [
    ("Condition", "schedule", "CASCADE"),
    ("UsualRuntime", "schedule", "CASCADE"),
    ("Silence", "schedule", "CASCADE"),
    ("Alert", "schedule", "SET NULL"),
    ("Notice", "alert", "CASCADE"),
    ("Notice", "channel", "CASCADE"),
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
    dependencies = [("jobs", "0021_watchful")]
    operations = [migrations.RunPython(follow, migrations.RunPython.noop)]
