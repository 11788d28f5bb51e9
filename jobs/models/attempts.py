"""What else is kept of a run? Attempts that did not end it, its log, and its effects, which it has only once."""

from uuid import UUID

from django.db import IntegrityError, models, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat, Now, Right

from jobs.models.runs import LONGEST_NAME, Executed, Run

LONGEST_LOG = 100_000  # characters per attempt; the latest are kept
KNOWN_BY = 500  # last characters by which a reader of a log finds the place up to which it has read


class Attempt(Executed):
    """An attempt that is over but did not end its run."""

    class Outcome(models.TextChoices):
        FAILED = "failed"
        RETRIED = "retried"
        LOST = "lost"
        FENCED = "fenced"

    run = models.ForeignKey(Run, models.CASCADE, related_name="attempts", db_index=False)
    number = models.PositiveSmallIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    reason = models.TextField(blank=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(db_default=Now())
    error_class = models.CharField(max_length=LONGEST_NAME, blank=True)
    error_text = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "number"], name="attempt_once")]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.run_id}"

    @classmethod
    def fence(cls, run_id: UUID, number: int) -> None:
        """Mark a lost attempt as fenced: its process was alive after all, but could change nothing."""
        lost = cls.objects.filter(run=run_id, number=number, outcome=cls.Outcome.LOST)
        lost.update(outcome=cls.Outcome.FENCED)


class RunLog(models.Model):
    """The latest log lines of an attempt and of its steps."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="logs", db_index=False)
    attempt = models.PositiveSmallIntegerField()
    text = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "attempt"], name="run_log_once")]

    def __str__(self) -> str:
        return f"log of attempt {self.attempt} of {self.run_id}"

    @staticmethod
    def since(before: str, now: str) -> str:
        """What a log has that an earlier reading had not: its end, also if its oldest lines were dropped meanwhile."""
        if now.startswith(before):
            return now[len(before) :]
        known = before[-KNOWN_BY:]
        at = now.rfind(known)
        return now if at < 0 else now[at + len(known) :]

    @classmethod
    def append(cls, run_id: UUID, attempt: int, text: str) -> None:
        """Append to the log of an attempt; beyond `LONGEST_LOG` characters, the oldest are dropped."""
        log = cls.objects.filter(run=run_id, attempt=attempt)
        longer = {"text": Right(Concat(F("text"), Value(text)), LONGEST_LOG)}
        if log.update(**longer):
            return
        try:
            with transaction.atomic():
                cls.objects.create(run_id=run_id, attempt=attempt, text=text[-LONGEST_LOG:])
        except IntegrityError:  # another process, with a step of this attempt, was faster
            log.update(**longer)


class Effect(models.Model):
    """Something that a run does once in all its attempts: `once(key)` creates the row or finds it."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="effects", db_index=False)
    key = models.CharField(max_length=LONGEST_NAME)
    made_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="effect_once")]

    def __str__(self) -> str:
        return f"{self.key} of {self.run_id}"
