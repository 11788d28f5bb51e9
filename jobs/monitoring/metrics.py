"""What does Prometheus read? The state of everything now, by the ledger, and what the watch has counted so far.

Its one rule: each scrape reads the database, and a process keeps nothing. So every web process gives the same answer,
and the figures survive restarts. No query reads ended runs: the cost follows unfinished runs and schedules.
The label of a job is `task`, because `job` is a label of Prometheus.
Limits: counts of ended runs are up to a minute old. At most `MOST` jobs, queues and resources have labels of their own;
the others share one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate

from django.conf import settings
from django.db.models import Count, Min, Q
from django_celery_beat.models import PeriodicTask
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from jobs.models import (
    ACTIVE,
    UNSTARTED,
    Channel,
    Condition,
    Node,
    Policy,
    ResourceVersion,
    Run,
    Watch,
    database_now,
)
from jobs.monitoring import holdings, queues, tallies
from jobs.monitoring.tallies import MOST, OTHER
from jobs.rules.health import Health

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
UPPER = (*map(floatToGoString, tallies.BOUNDS), "+Inf")


def text() -> bytes:
    """All metrics in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Everything())
    return generate_latest(registry)


class Everything(Collector):
    """Reads the database when it is asked."""

    def collect(self) -> Iterator[Metric]:
        now = database_now()
        yield from _counted()
        yield from _schedules()
        yield from _runs(now)
        yield from _queues(now)
        yield from _nodes()
        yield from _resources()
        yield from _alerts(now)
        build = GaugeMetricFamily("punctual_build_info", "1; its label is CODE_VERSION.", labels=["version"])
        build.add_metric([settings.CODE_VERSION], 1)
        yield build


def _counted() -> Iterator[Metric]:
    """What `tallies` has counted."""
    ended = CounterMetricFamily(
        "punctual_runs_ended",
        "Runs that ended, by task and outcome; skipped moments are not runs.",
        labels=["task", "outcome"],
    )
    for labels, tally in tallies.of(tallies.RUNS):
        ended.add_metric(labels, tally.count)
    yield ended
    skipped = CounterMetricFamily("punctual_moments_skipped", "Due moments that were skipped.", labels=["task"])
    for labels, tally in tallies.of(tallies.SKIPPED):
        skipped.add_metric(labels, tally.count)
    yield skipped
    yield _histogram(tallies.LATENESS, "How late scheduled runs started, after they were due; first attempts only.")
    yield _histogram(tallies.DURATION, "How long the last attempt of ended runs took.")
    yield _histogram(tallies.QUEUE_WAIT, "How long runs waited for a worker after they were sent; first attempts only.")
    failures = sum(tally.count for _, tally in tallies.of(tallies.PUBLISH_FAILURES))
    yield CounterMetricFamily("punctual_publish_failures", "Batches of runs that the broker did not take.", failures)


def _histogram(metric: str, documentation: str) -> Metric:
    found = HistogramMetricFamily(f"punctual_{metric}_seconds", documentation, labels=["task"])
    for labels, tally in tallies.of(metric):
        if len(tally.buckets) == len(UPPER):
            found.add_metric(labels, list(zip(UPPER, accumulate(tally.buckets), strict=True)), tally.total)
    return found


def _schedules() -> Iterator[Metric]:
    counts = PeriodicTask.objects.aggregate(all=Count("pk"), enabled=Count("pk", filter=Q(enabled=True)))
    yield GaugeMetricFamily("punctual_schedules", "Schedules, also disabled ones.", counts["all"])
    yield GaugeMetricFamily("punctual_schedules_enabled", "Enabled schedules.", counts["enabled"])
    ill = Condition.objects.exclude(health=Health.OK.value)
    numbers = Counter(dict(ill.filter(schedule__isnull=False).order_by().values_list("health").annotate(Count("pk"))))
    numbers[Health.OK] = counts["all"] - numbers.total()
    kinds = [each.value for each in Health if each != Health.DOWN]
    yield _gauge(
        "punctual_schedules_by_health", "Schedules, by their health.", "health", {kind: numbers[kind] for kind in kinds}
    )
    down = ill.filter(schedule=None).count()
    yield GaugeMetricFamily("punctual_parts_down", "Parts of the system, such as beats or a queue, that fail.", down)


def _runs(now: datetime) -> Iterator[Metric]:
    active = dict(Run.objects.active().order_by().values_list("state").annotate(Count("pk")))
    states = {state.value: active.get(state, 0) for state in sorted(ACTIVE)}
    yield _gauge("punctual_runs_active", "Unfinished runs, by state.", "state", states)
    to_send = Run.objects.filter(state__in=UNSTARTED).aggregate(at=Min("not_before"))["at"]
    yield GaugeMetricFamily(
        "punctual_dispatch_lag_seconds",
        "For how long the oldest run has waited to be sent to Celery.",
        _age(to_send, now),
    )
    due_at = Policy.objects.aggregate(at=Min("next_due_at"))["at"]
    yield GaugeMetricFamily(
        "punctual_beat_lag_seconds", "For how long the oldest due moment has waited for a beat.", _age(due_at, now)
    )


def _queues(now: datetime) -> Iterator[Metric]:
    found = sorted(queues.all_queues(), key=lambda queue: (-queue.queued, queue.name))
    depths = {queue.name: queue.queued for queue in found}
    ages = {queue.name: _age(queue.sent_at, now) for queue in found}
    consumers = {queue.name: len(queue.consumers) for queue in found}
    yield _gauge("punctual_queue_runs", "Runs that were sent, and that no worker has started.", "queue", depths)
    yield _gauge("punctual_queue_oldest_seconds", "For how long the oldest of these has waited.", "queue", ages, max)
    yield _gauge("punctual_queue_consumers", "Live workers that take from the queue.", "queue", consumers, max)


def _nodes() -> Iterator[Metric]:
    running = Node.objects.filter(stopped_at=None).order_by().values_list("kind")
    live = dict(Node.objects.live().order_by().values_list("kind").annotate(Count("pk")))
    nodes = GaugeMetricFamily(
        "punctual_nodes", "Beats, workers and strangers that have not stopped in order.", labels=["kind", "state"]
    )
    every = dict(running.annotate(Count("pk")))
    for kind in Node.Kind.values:
        nodes.add_metric([kind, "live"], live.get(kind, 0))
        nodes.add_metric([kind, "silent"], max(every.get(kind, 0) - live.get(kind, 0), 0))
    yield nodes


def _resources() -> Iterator[Metric]:
    held = list(holdings.with_sums(ResourceVersion.objects.order_by("pk")))
    for figure, documentation in {
        "entries": "Entries that live processes hold of the resource.",
        "bytes": "Size of these entries.",
        "hits": "Uses of the resource without a load, in the processes that are live.",
        "misses": "Loads of the resource, in the processes that are live.",
    }.items():
        sums = {each.pk: getattr(each, f"sum_of_{figure}") or 0 for each in held}
        yield _gauge(f"punctual_resource_{figure}", documentation, "resource", sums)


def _alerts(now: datetime) -> Iterator[Metric]:
    ill = Channel.objects.filter(is_enabled=True).exclude(problem="").count()
    yield GaugeMetricFamily("punctual_channels_failing", "Channels whose last message could not be sent.", ill)
    looked = GaugeMetricFamily("punctual_watch_age_seconds", "For how long no beat or worker has looked at the health.")
    if looked_at := Watch.objects.values_list("looked_at", flat=True).first():
        looked.add_metric([], _age(looked_at, now))
    yield looked


def _gauge(
    name: str,
    documentation: str,
    label: str,
    values: Mapping[str, float],
    together: Callable[[Sequence[float]], float] = sum,
) -> Metric:
    """A gauge with one label. Those beyond `MOST` are put together, in the order of `values`."""
    found = GaugeMetricFamily(name, documentation, labels=[label])
    own = {key: value for at, (key, value) in enumerate(values.items()) if at < MOST and key != OTHER}
    for key, value in own.items():
        found.add_metric([key], value)
    if rest := [value for key, value in values.items() if key not in own]:
        found.add_metric([OTHER], together(rest))
    return found


def _age(since: datetime | None, now: datetime) -> float:
    return max((now - since) / timedelta(seconds=1), 0.0) if since else 0.0
