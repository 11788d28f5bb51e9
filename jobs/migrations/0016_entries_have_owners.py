"""Entries of the settings have an owner, beats a release, and relative days a zone."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0015_deletes_of_timings_in_sql'),
    ]

    operations = [
        migrations.AddField(
            model_name='policy',
            name='enabled_before',
            field=models.BooleanField(db_default=True, default=True, editable=False, help_text='Whether it was enabled when its entry went.'),
        ),
        migrations.AddField(
            model_name='policy',
            name='owner',
            field=models.CharField(db_default='', default='', editable=False, help_text='The project whose settings define its entry; empty if an earlier version of Punctual installed it.', max_length=100),
        ),
        migrations.AddField(
            model_name='policy',
            name='removed_at',
            field=models.DateTimeField(editable=False, help_text='When its entry was found gone from the settings.', null=True),
        ),
        migrations.AddField(
            model_name='policy',
            name='wall_zone',
            field=models.CharField(db_default='', default='', editable=False, help_text='An interval of days keeps the time of day of this zone; empty: a day is 24 hours.', max_length=63),
        ),
        migrations.CreateModel(
            name='Release',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('project', models.CharField(max_length=100)),
                ('version', models.CharField(blank=True, help_text='The version of its code, as CODE_VERSION says.', max_length=100)),
                ('entries', models.CharField(help_text='A hash of its entries.', max_length=64)),
                ('first_seen_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('project', 'version', 'entries'), name='release_known_once')],
            },
        ),
        migrations.AddField(
            model_name='node',
            name='release',
            field=models.ForeignKey(editable=False, help_text='The entries that a beat knows.', null=True, on_delete=django.db.models.deletion.SET_NULL, to='jobs.release'),
        ),
        # Beat computes flagged schedules again: it reads more crontabs than the former version did.
        migrations.RunSQL("UPDATE jobs_policy SET fingerprint = '' WHERE invalid_reason <> ''", migrations.RunSQL.noop),
    ]
