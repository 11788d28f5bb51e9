"""Tokens of the API, audit entries, webhooks."""

import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0018_messages_set_aside'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AlterField(
            model_name='run',
            name='trigger',
            field=models.CharField(choices=[('schedule', 'Schedule'), ('manual', 'Manual'), ('api', 'API'), ('webhook', 'Webhook'), ('code', 'Code'), ('backfill', 'Backfill'), ('retry', 'Retry')], default='schedule', max_length=20),
        ),
        migrations.CreateModel(
            name='ApiToken',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(help_text='The program that uses it.', max_length=100, unique=True)),
                ('digest', models.CharField(editable=False, help_text='The SHA-256 of its secret.', max_length=64, unique=True)),
                ('hint', models.CharField(editable=False, help_text='The first characters of its secret.', max_length=20)),
                ('scopes', models.JSONField(default=list, help_text='The permissions that it includes.')),
                ('jobs', models.JSONField(blank=True, default=list, help_text='Names, or patterns such as billing.*; empty: all.')),
                ('schedules', models.JSONField(blank=True, default=list, help_text='The ids of schedules; empty: all.')),
                ('rate', models.PositiveIntegerField(default=600, help_text='Requests per minute.', validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(60000)])),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('created_by', models.CharField(editable=False, max_length=254)),
                ('expires_at', models.DateTimeField(blank=True, help_text='Empty: never.', null=True)),
                ('revoked_at', models.DateTimeField(editable=False, null=True)),
                ('last_used_at', models.DateTimeField(editable=False, null=True)),
                ('next_free_at', models.DateTimeField(editable=False, help_text='When all requests so far are paid for at its rate.', null=True)),
                ('user', models.ForeignKey(help_text='It never allows more than this user may do.', on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'verbose_name': 'API token',
            },
        ),
        migrations.CreateModel(
            name='AuditEntry',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('actor', models.CharField(help_text='Who did it.', max_length=254)),
                ('user_key', models.CharField(blank=True, help_text='The primary key of the user.', max_length=200)),
                ('door', models.CharField(choices=[('admin', 'Admin'), ('api', 'API'), ('shell', 'Shell'), ('webhook', 'Webhook'), ('code', 'Code')], max_length=10)),
                ('token', models.CharField(blank=True, help_text='The name of the API token.', max_length=200)),
                ('act', models.CharField(choices=[('add', 'Add'), ('change', 'Change'), ('delete', 'Delete'), ('enable', 'Enable'), ('disable', 'Disable'), ('pause', 'Pause'), ('resume', 'Resume'), ('skip', 'Skip'), ('retime', 'Retime'), ('run', 'Run'), ('backfill', 'Backfill'), ('start', 'Start'), ('retry', 'Retry'), ('cancel', 'Cancel'), ('invalidate', 'Invalidate'), ('upload', 'Upload'), ('revoke', 'Revoke')], max_length=10)),
                ('kind', models.CharField(choices=[('schedule', 'Schedule'), ('timing', 'Timing'), ('run', 'Run'), ('resource', 'Resource'), ('file', 'File'), ('token', 'Token'), ('webhook source', 'Webhook source')], help_text='What it was done to.', max_length=20)),
                ('key', models.CharField(help_text='The primary key of the row.', max_length=200)),
                ('name', models.CharField(help_text='The name of the row then.', max_length=200)),
                ('summary', models.TextField(blank=True, help_text='What was done, in one sentence.')),
                ('before', models.JSONField(help_text='The changed columns before; empty for a new row.', null=True)),
                ('after', models.JSONField(help_text='The changed columns after; empty for a deleted row.', null=True)),
            ],
            options={
                'verbose_name_plural': 'audit entries',
                'indexes': [models.Index(models.F('kind'), models.F('key'), models.F('id'), name='audit_of_row'), models.Index(models.F('actor'), models.F('id'), name='audit_of_actor'), models.Index(models.F('at'), name='audit_at')],
            },
        ),
        migrations.CreateModel(
            name='WebhookSource',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.SlugField(help_text='The end of its address: /hooks/NAME.', unique=True)),
                ('form', models.CharField(choices=[('standard', 'Standard Webhooks'), ('github', 'GitHub'), ('stripe', 'Stripe')], default='standard', help_text='How it signs.', max_length=10)),
                ('keys', models.CharField(help_text='The NAME of the variable WEBHOOK_KEYS_NAME that holds its keys, separated by commas.', max_length=100)),
                ('job', models.CharField(help_text='The job that each webhook starts.', max_length=200)),
                ('arguments', models.JSONField(blank=True, default=dict, help_text='Arguments of the job besides `webhook`, which is the id of what was sent.')),
                ('is_enabled', models.BooleanField(default=True, verbose_name='enabled')),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('refused_at', models.DateTimeField(editable=False, help_text='When it last sent an invalid request.', null=True)),
                ('refused_reason', models.CharField(blank=True, editable=False, max_length=200)),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('form__in', ['standard', 'github', 'stripe'])), name='webhook_source_form_known')],
            },
        ),
        migrations.CreateModel(
            name='Webhook',
            fields=[
                ('id', models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ('source_name', models.CharField(max_length=50)),
                ('event', models.CharField(help_text='Its identity: the same one starts nothing again.', max_length=200)),
                ('content_type', models.CharField(blank=True, max_length=200)),
                ('headers', models.JSONField(default=dict)),
                ('body', models.BinaryField()),
                ('received_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('run', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name='webhook', to='jobs.run')),
                ('source', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='webhooks', to='jobs.webhooksource')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('source', 'event'), name='webhook_once')],
            },
        ),
    ]
