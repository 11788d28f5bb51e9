"""How have all runs gone so far? Counts and histograms for metrics, which survive the clean-up of the ledger.

Its one rule: each end of a run is counted once. The watch folds the runs of one interval after the other, in the
transaction that also moves the interval on; a scrape only reads. Skipped moments are counted when they are claimed,
because their rows may grow afterwards.
Limits: the first `MOST` jobs of a metric have a label of their own, all later ones share `OTHER`. A run that ended
before the first look is not counted, and neither are skipped moments of a beat that dies right after their commit. A
moment that beat decides again, because the clock went back, counts again. Of a run the last attempt is measured.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from django.db import Error, transaction
from django.db.models import Case, Count, DurationField, F, Q, Sum, Value, When
from django.db.models.functions import Coalesce, Greatest

from jobs.models import Run, RunQuerySet, State, Tally, Trigger

log = logging.getLogger(__name__)

RUNS, SKIPPED, PUBLISH_FAILURES = "runs_ended", "moments_skipped", "publish_failures"  # the last: ledger.outbox
LATENESS, DURATION, QUEUE_WAIT = "run_lateness", "run_duration", "run_queue_wait"
MOST, OTHER = 100, "other"  # jobs with a label of their own
LONGEST_LABELS = 500  # characters
# The upper bounds of the buckets, in seconds; the last bucket has none. Another number of them starts from zero.
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)

FIRST_ATTEMPT = Q(attempt=1, started_at__isnull=False)
# For each histogram: the runs that it measures, and what it measures of them.
MEASURED: dict[str, tuple[Q, Any]] = {
    LATENESS: (FIRST_ATTEMPT & Q(trigger=Trigger.SCHEDULE), F("started_at") - F("due_at")),
    DURATION: (Q(started_at__isnull=False), F("finished_at") - F("started_at")),
    # A worker may start a run before its sender has noted the time: it has not waited then.
    QUEUE_WAIT: (FIRST_ATTEMPT, F("started_at") - Coalesce("queued_at", "started_at")),
}


class Decided(Protocol):
    """The part of a new run that says what was skipped."""

    task: str
    count: int
    reason: str


def add_ended(since: datetime, until: datetime) -> None:
    """Count the runs that ended in [since, until), except skipped ones (index run_finished).

    Call it once for each interval, in a transaction that no other process has at the same time.
    """
    ended = Run.objects.filter(finished_at__gte=since, finished_at__lt=until).exclude(state=State.SKIPPED).order_by()
    label = _Labels(RUNS)
    counts: Counter[str] = Counter()
    for task, state, number in ended.values_list("task", "state").annotate(Count("pk")):
        counts[label(task, state)] += number
    _write(RUNS, [Tally(metric=RUNS, labels=labels, count=number) for labels, number in counts.items()])
    for metric, (measured, length) in MEASURED.items():
        _write(metric, _histograms(metric, ended.filter(measured), length, label))


def note_skipped(runs: Iterable[Decided]) -> None:
    """Count the skipped moments among these decisions once the transaction is committed."""
    moments: Counter[str] = Counter()
    for run in runs:
        if run.reason:
            moments[run.task] += run.count
    if moments:
        transaction.on_commit(partial(_add_skipped, moments))


def of(metric: str) -> Iterator[tuple[list[str], Tally]]:
    """The tallies of a metric, each with its labels."""
    for tally in Tally.objects.filter(metric=metric).order_by("pk"):
        yield json.loads(tally.labels), tally


class _Labels:
    """Gives a job its own label while there is room, and turns labels into text."""

    def __init__(self, metric: str) -> None:
        self._jobs = {labels[0] for labels, _ in of(metric)} - {OTHER}

    def __call__(self, job: str, *others: str) -> str:
        text = json.dumps([job, *others], ensure_ascii=False)
        if job and len(text) <= LONGEST_LABELS and (job in self._jobs or len(self._jobs) < MOST):
            self._jobs.add(job)
            return text
        return json.dumps([OTHER, *others])


def _add_skipped(moments: Mapping[str, int]) -> None:
    try:
        label = _Labels(SKIPPED)
        for job, number in sorted(moments.items()):
            Tally.add(SKIPPED, label(job), number)
    except Error:  # the claim is committed, and its runs are to be sent
        log.debug("Skipped moments were not counted.", exc_info=True)


def _histograms(metric: str, runs: RunQuerySet, length: Any, label: _Labels) -> Collection[Tally]:
    bounds = [timedelta(seconds=bound) for bound in BOUNDS]
    bucket = Case(*(When(length__lte=bound, then=Value(at)) for at, bound in enumerate(bounds)), default=len(bounds))
    measured = runs.annotate(length=Greatest(length, timedelta(0), output_field=DurationField()), bucket=bucket)
    found: dict[str, Tally] = {}
    for task, at, number, total in measured.values_list("task", "bucket").annotate(Count("pk"), Sum("length")):
        labels = label(task)
        tally = found.setdefault(labels, Tally(metric=metric, labels=labels, buckets=[0] * (len(bounds) + 1)))
        tally.buckets[at] += number
        tally.count += number
        tally.total += total.total_seconds()
    return found.values()


def _write(metric: str, news: Collection[Tally]) -> None:
    """Add these figures to those that are there."""
    before = {tally.labels: tally for _, tally in of(metric)}
    for new in news:
        old = before.get(new.labels)
        if old and len(old.buckets) == len(new.buckets):
            new.count, new.total = new.count + old.count, new.total + old.total
            new.buckets = [sum(pair) for pair in zip(new.buckets, old.buckets, strict=True)]
    columns = ["count", "total", "buckets"]
    Tally.objects.bulk_create(news, update_conflicts=True, unique_fields=["metric", "labels"], update_fields=columns)
