"""How healthy is each schedule and the system itself, who is to be told of a change, and who was?

Its one rule: a change of health and the notices about it are written in one transaction, by the one process that looks
(`Watch`). So any number of beats tells each channel once, and a process that dies in between has told nothing yet.
"""

from datetime import datetime, timedelta
from uuid import UUID

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs.models.runs import LONGEST_ACTOR, LONGEST_NAME, LONGEST_REASON, State
from jobs.rules import health
from jobs.rules.crontab import zone_of
from jobs.rules.errors import Invalid

LONGEST_CHANNEL = 100  # characters of a name
BAD_ENDS = [State.FAILED, State.LOST, State.EXPIRED]  # of runs
HEALTH_CHOICES = [(each.value, each.value) for each in health.Health]


class Watch(models.Model):
    """Who looks at the health of everything, and up to where: one row. Its number is the fencing token of a look."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    number = models.PositiveBigIntegerField(default=0)
    looked_at = models.DateTimeField(null=True, help_text="When the last look began.")
    seen_until = models.DateTimeField(null=True, help_text="The ends of runs up to this moment were looked at.")

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="watch_only_one")]

    def __str__(self) -> str:
        return f"look {self.number}"

    @classmethod
    def begin(cls, every: float) -> "Watch | None":
        """Begin a look, if the last one began at least `every` seconds ago; None if it did not."""
        pause = timedelta(seconds=every)
        due = cls.objects.filter(Q(looked_at=None) | Q(looked_at__lte=Now() - pause) | Q(looked_at__gt=Now() + pause))
        if due.exists() and due.update(number=F("number") + 1, looked_at=Now()):
            return cls.objects.get()
        if not cls.objects.exists():
            Watch.objects.bulk_create([Watch()], ignore_conflicts=True)
        return None

    def hold(self) -> bool:
        """Whether this look is still the latest. No other one begins before the caller's transaction ends."""
        return Watch.objects.select_for_update().filter(number=self.number).first() is not None


class Condition(models.Model):
    """The health of a schedule, or of a part of the system, as it was last seen. Without a row it is ok."""

    subject = models.CharField(max_length=LONGEST_NAME, primary_key=True, help_text="Such as `schedule:7`.")
    schedule = models.OneToOneField(PeriodicTask, models.CASCADE, null=True, related_name="condition")
    health = models.CharField(max_length=12, choices=HEALTH_CHOICES)
    sentence = models.TextField(help_text="What happened.")
    since = models.DateTimeField()
    run = models.UUIDField(null=True, help_text="The id of the run that shows it.")

    class Meta:
        indexes = [models.Index("health", name="condition_not_ok", condition=~Q(health="ok"))]

    def __str__(self) -> str:
        return f"{self.subject}: {self.health}"


class Alert(models.Model):
    """A change of health. It refers to nothing by a foreign key but the schedule, and outlives the run."""

    subject = models.CharField(max_length=LONGEST_NAME)
    schedule = models.ForeignKey(PeriodicTask, models.SET_NULL, null=True, related_name="alerts", db_index=False)
    name = models.CharField(max_length=LONGEST_NAME, help_text="The name of the schedule then, or of the part.")
    job = models.CharField(max_length=LONGEST_NAME, blank=True)
    before = models.CharField(max_length=12, choices=HEALTH_CHOICES)
    health = models.CharField(max_length=12, choices=HEALTH_CHOICES)
    at = models.DateTimeField(help_text="When the change was seen.")
    since = models.DateTimeField(help_text="Since when it is so; of a recovery: since when it was ill.")
    expected = models.TextField(blank=True, help_text="What was expected.")
    sentence = models.TextField(help_text="What happened.")
    count = models.PositiveIntegerField(default=1, help_text="How often in a row.")
    due_at = models.DateTimeField(null=True, help_text="When that run was due.")
    run = models.UUIDField(null=True, help_text="The id of the run that shows it.")

    class Meta:
        indexes = [
            models.Index("schedule", "id", name="alert_of_schedule"),
            models.Index("subject", "id", name="alert_of_subject"),
            models.Index("at", name="alert_at"),
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.health}"


class Channel(models.Model):
    """A way to tell people or programs about alerts, or about each run of some schedules."""

    class Kind(models.TextChoices):
        MAIL = "mail"
        WEBHOOK = "webhook", "signed webhook"
        APPRISE = "apprise", "Slack, Teams, Discord, ntfy, PagerDuty and others (Apprise)"
        PING = "ping", "ping for each run (as for healthchecks)"

    name = models.CharField(max_length=LONGEST_CHANNEL, unique=True)
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.MAIL)
    addresses = models.JSONField(default=list, blank=True, help_text="Of a mail channel: the addresses.")
    url = models.CharField(
        max_length=100,
        blank=True,
        help_text="Of other channels: the NAME of the variable CHANNEL_URL_NAME that holds its address.",
    )
    is_enabled = models.BooleanField("enabled", default=True)
    patterns = models.JSONField(
        default=list,
        blank=True,
        help_text="Names of schedules or jobs, or patterns such as Invoices* or billing.*. Empty: all.",
    )
    healths = models.JSONField(default=list, blank=True, help_text="Which changes it is told about. Empty: all.")
    of_system = models.BooleanField(
        "system", default=True, help_text="Whether it is told about beats, workers, queues, the broker and channels."
    )
    zone = models.CharField(
        max_length=63, blank=True, help_text="The time zone of its readers. Empty: that of the site."
    )
    quiet_from = models.TimeField(null=True, blank=True, help_text="The start of its quiet hours, in its time zone.")
    quiet_until = models.TimeField(null=True, blank=True, help_text="Messages of its quiet hours are sent then.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    sent_at = models.DateTimeField(null=True, editable=False, help_text="When its last message was sent.")
    problem = models.TextField(blank=True, editable=False, help_text="Why its last message could not be sent.")
    problem_since = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=["mail", "webhook", "apprise", "ping"]), name="channel_kind_known"
            ),
            models.CheckConstraint(
                condition=Q(quiet_from=None, quiet_until=None) | Q(quiet_from__isnull=False, quiet_until__isnull=False),
                name="channel_quiet_hours_whole",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def reader_zone(self) -> str:
        return self.zone or timezone.get_default_timezone_name()

    def is_told_of(self, alert: Alert) -> bool:
        """Whether its rules choose this alert."""
        if self.kind == Channel.Kind.PING or (self.healths and alert.health not in [*self.healths, health.Health.OK]):
            return False
        if alert.schedule_id is None and not alert.job:
            return self.of_system
        return health.matches(self.patterns, alert.name, alert.job)

    def is_quiet(self, now: datetime) -> bool:
        if self.quiet_from is None or self.quiet_until is None:
            return False
        try:
            zone = zone_of(self.reader_zone)
        except Invalid:  # this machine does not know it: rather a message at night than none
            return False
        return health.in_quiet_hours(now, self.quiet_from, self.quiet_until, zone)


class Silence(models.Model):
    """A stretch of time in which no message is sent about some schedules: a mute or a maintenance window."""

    schedule = models.ForeignKey(PeriodicTask, models.CASCADE, null=True, blank=True, related_name="silences")
    patterns = models.JSONField(
        default=list,
        blank=True,
        help_text="Names of schedules or jobs, or patterns such as Invoices* or billing.*. Without a schedule and"
        " patterns: everything, the system too.",
    )
    starts_at = models.DateTimeField(db_default=Now())
    ends_at = models.DateTimeField(db_index=True)
    reason = models.CharField(max_length=LONGEST_REASON, blank=True)
    created_by = models.CharField(max_length=LONGEST_ACTOR, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(ends_at__gt=F("starts_at")), name="silence_ends_after_start")]

    def __str__(self) -> str:
        about = str(self.schedule or "") or ", ".join(self.patterns) or "everything"
        return f"{about} until {self.ends_at:%Y-%m-%d %H:%M}"

    def covers(self, alert: Alert) -> bool:
        """Whether it is about the subject of this alert."""
        if self.schedule_id is not None:
            return self.schedule_id == alert.schedule_id
        is_system = alert.schedule_id is None and not alert.job
        return not self.patterns or (not is_system and health.matches(self.patterns, alert.name, alert.job))


class NoticeQuerySet(models.QuerySet["Notice"]):
    def unsent(self) -> "NoticeQuerySet":
        """Notices that wait or are being sent, until they are to be sent again (index notice_to_send)."""
        return self.filter(state__in=[Notice.State.WAITING, Notice.State.SENDING])

    def claim(self, message: UUID, tries: int, until: datetime) -> None:
        """Note that a process sends them as one message. Until then no other process does."""
        self.update(state=Notice.State.SENDING, message=message, tries=tries, not_before=until)

    def put_off(self, until: datetime, error: str) -> None:
        self.update(state=Notice.State.WAITING, not_before=until, error=error)

    def note_sent(self) -> None:
        self.update(state=Notice.State.SENT, done_at=Now(), error="")

    def give_up(self, error: str) -> None:
        self.update(state=Notice.State.FAILED, done_at=Now(), error=error)

    def drop(self, why: str) -> None:
        """Note that they need not be sent."""
        self.update(state=Notice.State.DROPPED, done_at=Now(), error=why)


class Notice(models.Model):
    """An alert, or an event of a run, that a channel is to be told about."""

    class State(models.TextChoices):
        WAITING = "waiting"
        SENDING = "sending"
        SENT = "sent"
        FAILED = "failed"
        DROPPED = "dropped"  # a later one says more, or its subject was well again before it was told

    class Event(models.TextChoices):
        START = "start"
        SUCCESS = "success"
        FAIL = "fail"

    channel = models.ForeignKey(Channel, models.CASCADE, related_name="notices", db_index=False)
    alert = models.ForeignKey(Alert, models.CASCADE, null=True, related_name="notices", db_index=False)
    run = models.UUIDField(null=True)
    event = models.CharField(max_length=10, choices=Event.choices, blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    message = models.UUIDField(null=True, help_text="The message that tells it, with others; repeated with its id.")
    not_before = models.DateTimeField(help_text="When it is sent, or tried again.")
    tries = models.PositiveSmallIntegerField(default=0)
    done_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)

    objects = NoticeQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index("not_before", name="notice_to_send", condition=Q(state__in=["waiting", "sending"])),
            models.Index("alert", name="notice_of_alert", condition=Q(alert__isnull=False)),
            models.Index("channel", "id", name="notice_of_channel"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["channel", "alert"], name="notice_once"),
            models.UniqueConstraint(fields=["channel", "run", "event"], name="notice_of_run_once"),
        ]

    def __str__(self) -> str:
        return f"{self.channel_id}: {self.alert_id or self.event}"


class UsualRuntime(models.Model):
    """How long the runs of a schedule usually take: from its own history."""

    schedule = models.OneToOneField(PeriodicTask, models.CASCADE, primary_key=True, related_name="usual_runtime")
    runs = models.PositiveIntegerField(help_text="How many runs were measured.")
    shortest = models.DurationField(null=True, help_text="A shorter run is suspicious.")
    longest = models.DurationField(null=True, help_text="A longer run is suspicious.")
    computed_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.shortest} to {self.longest}"


class Tally(models.Model):
    """A figure that only grows, for metrics: a count, or the buckets of a histogram."""

    metric = models.CharField(max_length=50)
    labels = models.CharField(max_length=500, help_text="The values of its labels, as a JSON list.")
    count = models.PositiveBigIntegerField(default=0)
    total = models.FloatField(default=0.0, help_text="The sum of the measured seconds.")
    buckets = models.JSONField(default=list, help_text="How many measurements each bucket holds.")

    class Meta:
        verbose_name_plural = "tallies"
        constraints = [models.UniqueConstraint(fields=["metric", "labels"], name="tally_once")]

    def __str__(self) -> str:
        return f"{self.metric}{self.labels}"

    @classmethod
    def add(cls, metric: str, labels: str = "[]", count: int = 1) -> None:
        """Count something, from any process."""
        mine = cls.objects.filter(metric=metric, labels=labels)
        if not mine.update(count=F("count") + count):
            Tally.objects.bulk_create([Tally(metric=metric, labels=labels)], ignore_conflicts=True)
            mine.update(count=F("count") + count)
