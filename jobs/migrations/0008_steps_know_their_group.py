from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0007_plain_words")]

    operations = [
        migrations.AddField(
            model_name="step",
            name="group",
            field=models.CharField(
                blank=True, db_default="", help_text="The id of the group or chord that it belongs to.", max_length=255
            ),
        ),
    ]
