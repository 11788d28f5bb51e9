from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0007_plain_words")]

    operations = [
        migrations.AddField(
            model_name="step",
            name="task_id",
            field=models.CharField(
                blank=True, db_default="", help_text="The id of its Celery task.", max_length=255
            ),
        ),
        migrations.AlterField(
            model_name="step",
            name="id",
            field=models.CharField(
                help_text="The id of its Celery task, unless an earlier step has that.",
                max_length=255,
                primary_key=True,
                serialize=False,
            ),
        ),
        migrations.AddField(
            model_name="step",
            name="group",
            field=models.CharField(
                blank=True, db_default="", help_text="The id of the group or chord that it belongs to.", max_length=255
            ),
        ),
    ]
