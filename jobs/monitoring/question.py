"""Which due moment does a question mean, and what is known about it? `history` puts it into words.

Its one rule: the ledger is asked first, then the timings that were in force (`schedules.past`), then the present one
for future moments. Moments before the timings are known are not guessed. Limit: the neighbours of a moment ignore how
many runs a limited schedule has left.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice

from django.db.models import QuerySet

from jobs.models import Act, AuditEntry, Kind, Policy, Run, Trigger, database_now
from jobs.rules.errors import Invalid
from jobs.rules.moments import INSTANT, LAST
from jobs.rules.occurrences import Spec, from_text, occurrences
from jobs.schedules import past

MINUTE = timedelta(minutes=1)
OF_MOMENTS = frozenset({Trigger.SCHEDULE, Trigger.BACKFILL, Trigger.RETRY})  # their runs have the moment's `due_at`


class Question:
    """A schedule, a moment, and what is known about both. It reads the policy first, so no claim falls in between."""

    def __init__(self, policy: Policy, moment: datetime) -> None:
        self.policy, self.moment, self.now = policy, moment, database_now()
        self.runs = Run.objects.of_schedule(policy.pk)
        self.scheduled = self.runs.filter(trigger=Trigger.SCHEDULE)

    # --- which moment is meant? ---------------------------------------------------------------------------------------

    @cached_property
    def due_at(self) -> datetime | None:
        """The due moment equal to the moment, else the latest before it in its minute, else the first after it."""
        start = self.moment.replace(second=0, microsecond=0)
        found = sorted({*self.due(start, start + MINUTE), *self._recorded(start, start + MINUTE)})
        before = [each for each in found if each <= self.moment]
        return before[-1] if before else next(iter(found), None)

    def due(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """The moments from `start` to before `end` that were due, as far as the timings are known, or will be due."""
        try:
            known_from, known_to = max(start, self.known_since + INSTANT), min(end, self.past_until)
            if known_from < known_to:
                yield from past.due(self.policy, known_from, known_to)
            if self.spec and end > self.now:
                yield from occurrences(self.spec, max(start - INSTANT, self.now), end - INSTANT)
        except Invalid:  # a stored timing in a zone that this machine does not have
            return

    def _recorded(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """The moments of a range that the ledger names, also those that were only run later."""
        of_moments = self.runs.filter(trigger__in=OF_MOMENTS, due_at__gte=start, due_at__lt=end)
        yield from of_moments.values_list("due_at", flat=True)
        ends = self.scheduled.filter(due_at__lt=end).values_list("last_due_at", flat=True)
        yield from (end_at for end_at in ends[:1] if start <= end_at < end)

    @cached_property
    def known_since(self) -> datetime:
        """Since when the timings are known. A new schedule may name a first moment just before it was saved."""
        known = (past.known_since(self.policy), self.policy.timing_since)
        return min(moment for moment in known if moment is not None)

    @cached_property
    def past_until(self) -> datetime:
        """Until when the last known timing counts: now, or the run that has disabled its schedule."""
        policy, end = self.policy, self.now + INSTANT
        if policy.schedule.enabled or not policy.timing or policy.next_due_at or policy.owed_from:
            return end
        last = self.scheduled.values_list("last_due_at", flat=True).first()
        return last + INSTANT if last else end

    @cached_property
    def spec(self) -> Spec | None:
        """The timing from now on; None if nothing more is due, or if that is not known."""
        if not self.policy.timing or not self.policy.schedule.enabled or self.policy.stale_since:
            return None
        try:
            return from_text(self.policy.timing)
        except Invalid:
            return None

    # --- the moments around it ----------------------------------------------------------------------------------------

    @cached_property
    def before(self) -> datetime | None:
        moment = self.due_at or self.moment
        row = self.scheduled.filter(due_at__lt=moment).first()
        recorded = [row.last_due_at if row.last_due_at < moment else row.due_at] if row else []
        computed = self._computed_before(moment)
        return max([*recorded, *([computed] if computed else [])], default=None)

    def _computed_before(self, moment: datetime) -> datetime | None:
        try:
            coming = past.last(self.spec, self.now, moment - INSTANT) if self.spec and moment > self.now else None
            found = coming or past.previous(self.policy, min(moment, self.past_until))
        except Invalid:
            return None
        return found if found and found > self.known_since else None

    @cached_property
    def after(self) -> datetime | None:
        moment = self.due_at or self.moment
        recorded = self.scheduled.filter(due_at__gt=moment).order_by("due_at").values_list("due_at", flat=True)
        return min([*recorded[:1], *islice(self.due(moment + INSTANT, LAST), 1)], default=None)

    # --- what is recorded? --------------------------------------------------------------------------------------------

    def outcome(self, moment: datetime) -> Run | None:
        """The scheduled run of a moment, or the row of skipped moments that it belongs to."""
        row = self.scheduled.filter(due_at__lte=moment).first()
        is_known = self.due_at or moment <= self.known_since
        return row if row and is_known and moment <= row.last_due_at else None

    def repeat(self, due_at: datetime) -> Run | None:
        """The latest run of a moment that an operator requested."""
        return self.runs.filter(due_at=due_at, trigger__in=OF_MOMENTS - {Trigger.SCHEDULE}).order_by("-id").first()

    def added(self) -> AuditEntry | None:
        """The act that added the schedule."""
        return self._entries().filter(act=Act.ADD).first()

    def switched(self) -> AuditEntry | None:
        """The last act before the moment that enabled or disabled the schedule, or added it."""
        return self._entries().filter(at__lte=self.moment, after__has_key="enabled").first()

    def _entries(self) -> QuerySet[AuditEntry]:
        return AuditEntry.objects.filter(kind=Kind.SCHEDULE, key=str(self.policy.pk)).order_by("-id")
