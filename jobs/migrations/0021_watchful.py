"""Health of schedules, alerts and channels, silences; figures for metrics."""

import datetime
import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('django_celery_beat', '0019_alter_periodictasks_options'),
        ('jobs', '0020_deletes_of_webhooks_in_sql'),
    ]

    operations = [
        migrations.CreateModel(
            name='UsualRuntime',
            fields=[
                ('schedule', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='usual_runtime', serialize=False, to='django_celery_beat.periodictask')),
                ('runs', models.PositiveIntegerField(help_text='How many runs were measured.')),
                ('shortest', models.DurationField(help_text='A shorter run is suspicious.', null=True)),
                ('longest', models.DurationField(help_text='A longer run is suspicious.', null=True)),
                ('computed_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
        migrations.AddField(
            model_name='policy',
            name='failures_allowed',
            field=models.PositiveSmallIntegerField(db_default=0, default=0, help_text='It counts as failing after more failed runs in a row than these.', validators=[django.core.validators.MaxValueValidator(99)]),
        ),
        migrations.AddField(
            model_name='policy',
            name='late_after',
            field=models.DurationField(db_default=datetime.timedelta(seconds=300), default=datetime.timedelta(seconds=300), help_text='It counts as late if it has not started by then after it is due (hh:mm:ss).', validators=[django.core.validators.MinValueValidator(datetime.timedelta(seconds=1)), django.core.validators.MaxValueValidator(datetime.timedelta(days=3650))]),
        ),
        migrations.AddField(
            model_name='policy',
            name='longest_pause',
            field=models.DurationField(blank=True, db_default=datetime.timedelta(days=7), default=datetime.timedelta(days=7), help_text='A longer pause is reported (days hh:mm:ss). Empty: never.', null=True, validators=[django.core.validators.MinValueValidator(datetime.timedelta(seconds=60)), django.core.validators.MaxValueValidator(datetime.timedelta(days=3650))]),
        ),
        migrations.AddField(
            model_name='policy',
            name='longest_runtime',
            field=models.DurationField(blank=True, help_text='A run that takes longer is too long (hh:mm:ss). Empty: far longer than usual.', null=True, validators=[django.core.validators.MinValueValidator(datetime.timedelta(seconds=1)), django.core.validators.MaxValueValidator(datetime.timedelta(days=3650))]),
        ),
        migrations.AddField(
            model_name='policy',
            name='shortest_runtime',
            field=models.DurationField(blank=True, help_text='A run that succeeds sooner is suspicious (hh:mm:ss). Empty: far sooner than usual.', null=True, validators=[django.core.validators.MinValueValidator(datetime.timedelta(0)), django.core.validators.MaxValueValidator(datetime.timedelta(days=3650))]),
        ),
        migrations.AlterField(
            model_name='auditentry',
            name='act',
            field=models.CharField(choices=[('add', 'Add'), ('change', 'Change'), ('delete', 'Delete'), ('enable', 'Enable'), ('disable', 'Disable'), ('pause', 'Pause'), ('resume', 'Resume'), ('skip', 'Skip'), ('retime', 'Retime'), ('run', 'Run'), ('backfill', 'Backfill'), ('start', 'Start'), ('retry', 'Retry'), ('cancel', 'Cancel'), ('invalidate', 'Invalidate'), ('upload', 'Upload'), ('revoke', 'Revoke'), ('test', 'Test')], max_length=10),
        ),
        migrations.AlterField(
            model_name='auditentry',
            name='kind',
            field=models.CharField(choices=[('schedule', 'Schedule'), ('timing', 'Timing'), ('run', 'Run'), ('resource', 'Resource'), ('file', 'File'), ('token', 'Token'), ('webhook source', 'Webhook source'), ('channel', 'Channel'), ('silence', 'Silence')], help_text='What it was done to.', max_length=20),
        ),
        migrations.CreateModel(
            name='Alert',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('subject', models.CharField(max_length=200)),
                ('name', models.CharField(help_text='The name of the schedule then, or of the part.', max_length=200)),
                ('job', models.CharField(blank=True, max_length=200)),
                ('before', models.CharField(choices=[('ok', 'ok'), ('blocked', 'blocked'), ('failing', 'failing'), ('late', 'late'), ('slow', 'slow'), ('short', 'short'), ('paused', 'paused'), ('down', 'down')], max_length=12)),
                ('health', models.CharField(choices=[('ok', 'ok'), ('blocked', 'blocked'), ('failing', 'failing'), ('late', 'late'), ('slow', 'slow'), ('short', 'short'), ('paused', 'paused'), ('down', 'down')], max_length=12)),
                ('at', models.DateTimeField(help_text='When the change was seen.')),
                ('since', models.DateTimeField(help_text='Since when it is so; of a recovery: since when it was ill.')),
                ('expected', models.TextField(blank=True, help_text='What was expected.')),
                ('sentence', models.TextField(help_text='What happened.')),
                ('count', models.PositiveIntegerField(default=1, help_text='How often in a row.')),
                ('due_at', models.DateTimeField(help_text='When that run was due.', null=True)),
                ('run', models.UUIDField(help_text='The id of the run that shows it.', null=True)),
                ('schedule', models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='alerts', to='django_celery_beat.periodictask')),
            ],
        ),
        migrations.CreateModel(
            name='Channel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=100, unique=True)),
                ('kind', models.CharField(choices=[('mail', 'Mail'), ('webhook', 'signed webhook'), ('apprise', 'Slack, Teams, Discord, ntfy, PagerDuty and others (Apprise)'), ('ping', 'ping for each run (as for healthchecks)')], default='mail', max_length=10)),
                ('addresses', models.JSONField(blank=True, default=list, help_text='Of a mail channel: the addresses.')),
                ('url', models.CharField(blank=True, help_text='Of other channels: the NAME of the variable CHANNEL_URL_NAME that holds its address.', max_length=100)),
                ('is_enabled', models.BooleanField(default=True, verbose_name='enabled')),
                ('patterns', models.JSONField(blank=True, default=list, help_text='Names of schedules or jobs, or patterns such as Invoices* or billing.*. Empty: all.')),
                ('healths', models.JSONField(blank=True, default=list, help_text='Which changes it is told about. Empty: all.')),
                ('of_system', models.BooleanField(default=True, help_text='Whether it is told about beats, workers, queues, the broker and channels.', verbose_name='system')),
                ('zone', models.CharField(blank=True, help_text='The time zone of its readers. Empty: that of the site.', max_length=63)),
                ('quiet_from', models.TimeField(blank=True, help_text='The start of its quiet hours, in its time zone.', null=True)),
                ('quiet_until', models.TimeField(blank=True, help_text='Messages of its quiet hours are sent then.', null=True)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('sent_at', models.DateTimeField(editable=False, help_text='When its last message was sent.', null=True)),
                ('problem', models.TextField(blank=True, editable=False, help_text='Why its last message could not be sent.')),
                ('problem_since', models.DateTimeField(editable=False, null=True)),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('kind__in', ['mail', 'webhook', 'apprise', 'ping'])), name='channel_kind_known'), models.CheckConstraint(condition=models.Q(models.Q(('quiet_from', None), ('quiet_until', None)), models.Q(('quiet_from__isnull', False), ('quiet_until__isnull', False)), _connector='OR'), name='channel_quiet_hours_whole')],
            },
        ),
        migrations.CreateModel(
            name='Condition',
            fields=[
                ('subject', models.CharField(help_text='Such as `schedule:7`.', max_length=200, primary_key=True, serialize=False)),
                ('health', models.CharField(choices=[('ok', 'ok'), ('blocked', 'blocked'), ('failing', 'failing'), ('late', 'late'), ('slow', 'slow'), ('short', 'short'), ('paused', 'paused'), ('down', 'down')], max_length=12)),
                ('sentence', models.TextField(help_text='What happened.')),
                ('since', models.DateTimeField()),
                ('run', models.UUIDField(help_text='The id of the run that shows it.', null=True)),
                ('schedule', models.OneToOneField(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='condition', to='django_celery_beat.periodictask')),
            ],
        ),
        migrations.CreateModel(
            name='Notice',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('run', models.UUIDField(null=True)),
                ('event', models.CharField(blank=True, choices=[('start', 'Start'), ('success', 'Success'), ('fail', 'Fail')], max_length=10)),
                ('state', models.CharField(choices=[('waiting', 'Waiting'), ('sending', 'Sending'), ('sent', 'Sent'), ('failed', 'Failed'), ('dropped', 'Dropped')], default='waiting', max_length=10)),
                ('message', models.UUIDField(help_text='The message that tells it, with others; repeated with its id.', null=True)),
                ('not_before', models.DateTimeField(help_text='When it is sent, or tried again.')),
                ('tries', models.PositiveSmallIntegerField(default=0)),
                ('done_at', models.DateTimeField(null=True)),
                ('error', models.TextField(blank=True)),
                ('alert', models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='notices', to='jobs.alert')),
                ('channel', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='notices', to='jobs.channel')),
            ],
        ),
        migrations.CreateModel(
            name='Silence',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('patterns', models.JSONField(blank=True, default=list, help_text='Names of schedules or jobs, or patterns such as Invoices* or billing.*. Without a schedule and patterns: everything, the system too.')),
                ('starts_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('ends_at', models.DateTimeField(db_index=True)),
                ('reason', models.CharField(blank=True, max_length=500)),
                ('created_by', models.CharField(editable=False, max_length=254)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('schedule', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='silences', to='django_celery_beat.periodictask')),
            ],
        ),
        migrations.CreateModel(
            name='Tally',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('metric', models.CharField(max_length=50)),
                ('labels', models.CharField(help_text='The values of its labels, as a JSON list.', max_length=500)),
                ('count', models.PositiveBigIntegerField(default=0)),
                ('total', models.FloatField(default=0.0, help_text='The sum of the measured seconds.')),
                ('buckets', models.JSONField(default=list, help_text='How many measurements each bucket holds.')),
            ],
            options={
                'verbose_name_plural': 'tallies',
                'constraints': [models.UniqueConstraint(fields=('metric', 'labels'), name='tally_once')],
            },
        ),
        migrations.CreateModel(
            name='Watch',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('number', models.PositiveBigIntegerField(default=0)),
                ('looked_at', models.DateTimeField(help_text='When the last look began.', null=True)),
                ('seen_until', models.DateTimeField(help_text='The ends of runs up to this moment were looked at.', null=True)),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='watch_only_one')],
            },
        ),
        migrations.AddIndex(
            model_name='alert',
            index=models.Index(models.F('schedule'), models.F('id'), name='alert_of_schedule'),
        ),
        migrations.AddIndex(
            model_name='alert',
            index=models.Index(models.F('subject'), models.F('id'), name='alert_of_subject'),
        ),
        migrations.AddIndex(
            model_name='alert',
            index=models.Index(models.F('at'), name='alert_at'),
        ),
        migrations.AddIndex(
            model_name='condition',
            index=models.Index(models.F('health'), condition=models.Q(('health', 'ok'), _negated=True), name='condition_not_ok'),
        ),
        migrations.AddIndex(
            model_name='notice',
            index=models.Index(models.F('not_before'), condition=models.Q(('state__in', ['waiting', 'sending'])), name='notice_to_send'),
        ),
        migrations.AddIndex(
            model_name='notice',
            index=models.Index(models.F('alert'), condition=models.Q(('alert__isnull', False)), name='notice_of_alert'),
        ),
        migrations.AddIndex(
            model_name='notice',
            index=models.Index(models.F('channel'), models.F('id'), name='notice_of_channel'),
        ),
        migrations.AddConstraint(
            model_name='notice',
            constraint=models.UniqueConstraint(fields=('channel', 'alert'), name='notice_once'),
        ),
        migrations.AddConstraint(
            model_name='notice',
            constraint=models.UniqueConstraint(fields=('channel', 'run', 'event'), name='notice_of_run_once'),
        ),
        migrations.AddConstraint(
            model_name='silence',
            constraint=models.CheckConstraint(condition=models.Q(('ends_at__gt', models.F('starts_at'))), name='silence_ends_after_start'),
        ),
        migrations.AddConstraint(
            model_name='policy',
            constraint=models.CheckConstraint(condition=models.Q(('late_after__range', (datetime.timedelta(0), datetime.timedelta(days=3650))), models.Q(('longest_runtime', None), ('longest_runtime__range', (datetime.timedelta(0), datetime.timedelta(days=3650))), _connector='OR'), models.Q(('shortest_runtime', None), ('shortest_runtime__range', (datetime.timedelta(0), datetime.timedelta(days=3650))), _connector='OR'), models.Q(('longest_pause', None), ('longest_pause__range', (datetime.timedelta(0), datetime.timedelta(days=3650))), _connector='OR')), name='policy_limits_bounded'),
        ),
    ]
