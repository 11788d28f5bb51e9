"""Which timings were in force in the past?

Its one rule: a timing is kept when it ends, if a moment was due while it was in force. So nothing was due between two
that are kept, and code that edits a schedule every minute leaves at most one row for each due moment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from django.db import models
from django.db.models import OuterRef, Subquery
from django_celery_beat.models import PeriodicTask

from jobs.models import bulk
from jobs.models.runs import Run, RunIdField, Trigger
from jobs.models.schedules import Policy
from jobs.rules.errors import Invalid
from jobs.rules.moments import FIRST
from jobs.rules.occurrences import from_text, occurrences


class PastTiming(models.Model):
    """A timing that is over: due were its moments after `since`, up to `until`."""

    id = RunIdField(primary_key=True, editable=False)
    schedule = models.ForeignKey(PeriodicTask, models.CASCADE, related_name="past_timings", db_index=False)
    timing = models.TextField(help_text="As a Spec.")
    since = models.DateTimeField()
    until = models.DateTimeField()

    class Meta:
        indexes = [models.Index("schedule", "since", name="past_timing_of_schedule")]

    def __str__(self) -> str:
        return f"timing of {self.schedule} from {self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M}"

    @property
    def was_due(self) -> bool:
        """Whether a moment was due while it was in force."""
        try:
            return next(occurrences(from_text(self.timing), self.since, self.until), None) is not None
        except Invalid:
            return False

    @classmethod
    @contextmanager
    def settling(cls, policies: Sequence[Policy], now: datetime) -> Iterator[None]:
        """Keep the timings of these locked policies that the block replaces; the caller saves the policies.

        A timing that the block leaves as it was stays in force since it took effect.
        """
        before = [(each.timing, each.timing_since, each.stale_since or now, _has_stopped(each)) for each in policies]
        yield
        stops = _stops([policy.pk for policy, (*_, has_stopped) in zip(policies, before, strict=True) if has_stopped])
        ended = []
        for policy, (text, since, end, has_stopped) in zip(policies, before, strict=True):
            policy.known_since = min(now, policy.known_since or since or now)
            if text == policy.timing and since and not has_stopped:
                policy.timing_since = min(now, since)
            elif text:
                until = min(end, stops.get(policy.pk) or end)
                ended.append(cls(schedule_id=policy.pk, timing=text, since=since or FIRST, until=until))
        bulk.insert(cls, [timing for timing in ended if timing.was_due])


def _has_stopped(policy: Policy) -> bool:
    """Whether a claim has disabled the schedule, after its last run: that is computed only now."""
    return bool(policy.timing) and not (policy.fingerprint or policy.next_due_at or policy.owed_from)


def _stops(schedules: list[int]) -> dict[int, datetime | None]:
    """The last moment of each schedule that a claim has decided."""
    if not schedules:
        return {}
    decided = Run.objects.filter(schedule=OuterRef("pk"), trigger=Trigger.SCHEDULE).order_by("-due_at")
    rows = Policy.objects.filter(pk__in=schedules).annotate(stop=Subquery(decided.values("last_due_at")[:1]))
    return dict(rows.values_list("pk", "stop"))
