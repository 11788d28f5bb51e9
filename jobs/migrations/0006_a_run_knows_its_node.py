"""The worker of a run, attempt or step becomes two columns: its node and the process.

Before it was one text, "node (pid)", which was parsed back by its beginning.
"""

from django.db import migrations, models

TABLES = ("run", "attempt", "step")
POSTGRESQL = r"""
UPDATE {table} SET node = substring(node FROM '^(.*) \(\d+\)$'), pid = substring(node FROM '\((\d+)\)$')::integer
WHERE node ~ '^.* \(\d{{1,9}}\)$'
"""
# SQLite has no regular expressions: what is left of "node (pid)" without its last ")" and digits ends in " (".
SQLITE = """
UPDATE {table} SET
    pid = CAST(rtrim(substr(node, length(rtrim(rtrim(node, ')'), '0123456789')) + 1), ')') AS INTEGER),
    node = substr(node, 1, length(rtrim(rtrim(node, ')'), '0123456789')) - 2)
WHERE node GLOB '* ([0-9]*)' AND rtrim(rtrim(node, ')'), '0123456789') LIKE '% ('
"""
TOGETHER = "UPDATE {table} SET node = node || ' (' || pid || ')' WHERE pid IS NOT NULL"


def take_apart(apps, schema_editor):
    _update(apps, schema_editor, POSTGRESQL if schema_editor.connection.vendor == "postgresql" else SQLITE)


def put_together(apps, schema_editor):
    _update(apps, schema_editor, TOGETHER)


def _update(apps, schema_editor, statement):
    for name in TABLES:
        table = apps.get_model("jobs", name)._meta.db_table
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(statement.format(table=schema_editor.quote_name(table)))


def columns(name):
    node = models.CharField(blank=True, help_text="The worker.", max_length=200)
    pid = models.PositiveIntegerField(help_text="Its process.", null=True)
    return [
        migrations.RenameField(name, "worker", "node"),
        migrations.AlterField(name, "node", node),
        migrations.AddField(name, "pid", pid),
    ]


class Migration(migrations.Migration):
    dependencies = [("jobs", "0005_jobs_worth_scheduling")]
    operations = [
        *(operation for name in TABLES for operation in columns(name)),
        migrations.RunPython(take_apart, put_together),
    ]
