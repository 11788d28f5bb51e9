"""The metrics: what is counted when runs end, what a scrape says of the rows, and who may scrape."""

import ipaddress
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from jobs.beat import claim
from jobs.ledger import outbox, retention
from jobs.messages.dispatch import BrokerUnavailableError
from jobs.models import (
    TERMINAL,
    Channel,
    Condition,
    Holding,
    Node,
    Policy,
    ResourceVersion,
    Run,
    State,
    Tally,
    Trigger,
    Watch,
    database_now,
)
from jobs.monitoring import metrics, tallies
from jobs.rules import policies
from jobs.web import metrics as web
from tests.making import make_due, make_run, make_schedule
from tests.waiting import DEADLINE

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
TOKEN = "canary-of-metrics"

pytestmark = pytest.mark.django_db(transaction=True)


def figures() -> dict[tuple[str, ...], float]:
    """All samples by name and values of labels, that of the job first, as Prometheus parses them."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            names = sorted(sample.labels, key=lambda name: (name != "task", name))
            key = (sample.name, *(sample.labels[name] for name in names))
            assert key not in found, key
            found[key] = sample.value
    return found


def ended(state: State = State.SUCCEEDED, late: float = 0, took: float = 0, waited: float | None = 0, **columns) -> Run:
    """A run that ended a minute ago."""
    finished_at = database_now() - MINUTE
    started_at = finished_at - timedelta(seconds=took)
    moments = {"finished_at": finished_at, "started_at": started_at, "due_at": started_at - timedelta(seconds=late)}
    if waited is not None:
        moments["queued_at"] = started_at - timedelta(seconds=waited)
    return make_run(state=state, **{"lease_until": None, **moments, **columns})


def fold(until: timedelta = timedelta(0)) -> None:
    now = database_now()
    tallies.add_ended(now - timedelta(hours=1), now - until)


# --- What is counted ------------------------------------------------------------------------------------------------


def test_it_counts_each_ended_run_once_and_keeps_the_counts_when_the_runs_are_deleted():
    for state in (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.LOST, State.EXPIRED, State.CANCELLED):
        ended(state, task="jobs.a")
    ended(task="jobs.b", trigger=Trigger.MANUAL)
    make_run(state=State.RUNNING)
    middle = database_now() - MINUTE / 2
    tallies.add_ended(middle - 2 * MINUTE, middle)
    for _ in retention.delete_ended(database_now(), TERMINAL):
        pass
    ended(task="jobs.a", finished_at=database_now())
    tallies.add_ended(middle, database_now() + SECOND)
    found = figures()
    assert {key[1:]: value for key, value in found.items() if key[0] == "punctual_runs_ended_total"} == {
        ("jobs.a", "succeeded"): 3,
        **{("jobs.a", state): 1 for state in ("failed", "lost", "expired", "cancelled")},
        ("jobs.b", "succeeded"): 1,
    }


def test_it_counts_no_run_at_the_end_of_an_interval_twice():
    run = ended()
    tallies.add_ended(run.finished_at - SECOND, run.finished_at)
    assert not Tally.objects.exists()
    tallies.add_ended(run.finished_at, run.finished_at + SECOND)
    assert figures()["punctual_runs_ended_total", "tests.nothing", "succeeded"] == 1


@pytest.mark.parametrize(
    ("metric", "option"),
    [(tallies.LATENESS, "late"), (tallies.DURATION, "took"), (tallies.QUEUE_WAIT, "waited")],
)
def test_it_puts_each_length_into_its_bucket(metric, option):
    lengths = (0.0, 0.1, 0.11, 7.0, 90_000.0)
    for length in lengths:
        ended(**{option: length})
    fold()
    ended(**{option: 0.3})
    Run.objects.exclude(pk=Run.objects.latest("id").pk).delete()
    fold()
    found = figures()
    name = f"punctual_{metric}_seconds"
    buckets = {key[2]: value for key, value in found.items() if key[0] == f"{name}_bucket"}
    lengths += (0.3,)
    bounds = [*(bound for bound in tallies.BOUNDS), float("inf")]
    assert {float(bound): number for bound, number in buckets.items()} == {
        bound: sum(length <= bound for length in lengths) for bound in bounds
    }
    assert found[f"{name}_count", "tests.nothing"] == len(lengths)
    assert found[f"{name}_sum", "tests.nothing"] == pytest.approx(sum(lengths), abs=0.01)


def test_it_measures_lateness_of_due_moments_and_waits_of_first_attempts_only():
    ended(trigger=Trigger.MANUAL, late=5, waited=5, took=5)
    ended(attempt=2, late=5, waited=5, took=5)
    ended(State.CANCELLED, started_at=None)
    ended(late=-5, waited=-5, took=5)  # a clock went back
    ended(waited=None)  # the worker was faster than the note of the sender
    fold()
    found = figures()
    counts = {metric: found[f"punctual_{metric}_seconds_count", "tests.nothing"] for metric in tallies.MEASURED}
    assert counts == {tallies.LATENESS: 2, tallies.DURATION: 4, tallies.QUEUE_WAIT: 3}
    sums = {metric: found[f"punctual_{metric}_seconds_sum", "tests.nothing"] for metric in tallies.MEASURED}
    assert sums == pytest.approx({tallies.LATENESS: 0, tallies.DURATION: 15, tallies.QUEUE_WAIT: 5}, abs=0.01)


def test_it_gives_a_hundred_jobs_a_label_and_all_others_one():
    for number in range(tallies.MOST + 5):
        ended(task=f"jobs.{number:03}")
    ended(task="\x01" * 200)  # as JSON, longer than the column
    fold()
    ended(task="jobs.200")
    ended(task="jobs.000")
    Run.objects.exclude(task__in=["jobs.200", "jobs.000"], pk__isnull=False).delete()
    Run.objects.filter(task="jobs.000").earliest("id").delete()
    fold()
    found = figures()
    for name in ("punctual_runs_ended_total", "punctual_run_duration_seconds_count"):
        numbers = {key[1]: value for key, value in found.items() if key[0] == name}
        assert len(numbers) == tallies.MOST + 1
        assert numbers["other"] == 7
        assert numbers["jobs.000"] == 2
        assert sum(numbers.values()) == tallies.MOST + 8


def test_it_starts_a_histogram_again_whose_buckets_are_others():
    Tally.objects.create(metric=tallies.DURATION, labels='["tests.nothing"]', count=7, total=7, buckets=[3, 4])
    assert ("punctual_run_duration_seconds_count", "tests.nothing") not in figures()
    ended(took=1)
    fold()
    assert figures()["punctual_run_duration_seconds_count", "tests.nothing"] == 1


def test_it_counts_every_skipped_moment_once_also_those_that_a_row_grows_by():
    schedule = make_schedule(every=10 * SECOND, policy={"catch_up": policies.CatchUp.NONE.value})
    make_due(schedule, ago=5 * MINUTE)
    list(claim.claim_due())
    first = sum(Run.objects.filter(state=State.SKIPPED).values_list("count", flat=True))
    assert first > 20
    assert figures()["punctual_moments_skipped_total", "tests.nothing"] == first
    Policy.objects.pause(by="ada")
    list(claim.claim_due(Policy.objects.get().next_due_at + 30 * SECOND))
    list(claim.claim_due(Policy.objects.get().next_due_at + 30 * SECOND))
    skipped = Run.objects.filter(state=State.SKIPPED)
    assert max(skipped.values_list("count", flat=True)) > 1
    assert figures()["punctual_moments_skipped_total", "tests.nothing"] == sum(skipped.values_list("count", flat=True))
    tallies.add_ended(database_now() - MINUTE, database_now() + MINUTE)
    assert not Tally.objects.filter(metric=tallies.RUNS, labels__contains="skipped").exists()


def test_it_counts_a_batch_that_the_broker_does_not_take(frozen_broker):
    assert figures()["punctual_publish_failures_total",] == 0
    now = database_now()
    runs = [make_run(not_before=now + MINUTE) for _ in range(2)]
    with pytest.raises(BrokerUnavailableError):
        outbox.send(runs)
    with pytest.raises(BrokerUnavailableError):
        outbox.send(runs[:1])
    assert figures()["punctual_publish_failures_total",] == 2


# --- What a scrape says ---------------------------------------------------------------------------------------------


def test_it_shows_schedules_by_health():
    schedules = [make_schedule(f"it {number}", enabled=number > 0) for number in range(4)]
    for schedule, health in zip(schedules[1:], ("failing", "failing", "ok"), strict=True):
        columns = {"health": health, "sentence": "It is so.", "since": database_now()}
        Condition.objects.create(subject=f"schedule:{schedule.pk}", schedule=schedule, **columns)
    Condition.objects.create(subject="beat", health="down", sentence="No beat.", since=database_now())
    found = figures()
    assert (found["punctual_schedules",], found["punctual_schedules_enabled",]) == (4, 3)
    by_health = {key[1]: value for key, value in found.items() if key[0] == "punctual_schedules_by_health"}
    assert by_health == {"ok": 2, "failing": 2, "blocked": 0, "late": 0, "slow": 0, "short": 0, "paused": 0}
    assert found["punctual_parts_down",] == 1


def test_it_shows_unfinished_runs_their_queues_and_lags():
    now = database_now()
    for number in range(3):
        make_run(state=State.QUEUED, queue="slow", queued_at=now - number * MINUTE, sends=1, not_before=now + MINUTE)
    again = now - policies.patience(1)
    make_run(state=State.QUEUED, queued_at=again, sends=2, not_before=now + MINUTE)
    make_run(not_before=now - 30 * SECOND)
    make_run(not_before=now + MINUTE)
    make_run(not_before=None)
    make_run(state=State.RUNNING)
    make_run(state=State.SUCCEEDED)
    make_due(make_schedule(), ago=MINUTE)
    Node.objects.create(name="celery@a", kind=Node.Kind.WORKER, pid=1, queues="celery, mail")
    found = figures()
    by_state = {key[1]: value for key, value in found.items() if key[0] == "punctual_runs_active"}
    assert by_state == {"queued": 4, "running": 1, "waiting": 3}
    of_queue = {
        name: (found["punctual_queue_runs", name], found["punctual_queue_consumers", name])
        for name in ("slow", "celery", "mail")
    }
    assert of_queue == {"slow": (3, 0), "celery": (1, 1), "mail": (0, 1)}
    later = (database_now() - now).total_seconds()
    oldest = [found["punctual_queue_oldest_seconds", name] for name in ("slow", "celery", "mail")]
    for value, least in zip(oldest, (120, 2 * policies.patience(1).total_seconds(), 0), strict=True):
        assert least <= value <= least + later
    assert 30 <= found["punctual_dispatch_lag_seconds",] <= 30 + later
    assert 60 <= found["punctual_beat_lag_seconds",] <= 60 + later + 1


def test_it_shows_no_lag_while_nothing_is_due():
    now = database_now()
    make_schedule()
    make_run(not_before=now + timedelta(hours=1))
    found = figures()
    assert (found["punctual_dispatch_lag_seconds",], found["punctual_beat_lag_seconds",]) == (0, 0)


def test_it_gives_a_hundred_queues_a_label_and_all_others_one():
    for number in range(metrics.MOST + 4):
        for _ in range(2 if number < metrics.MOST else 1):
            make_run(state=State.QUEUED, queue=f"q{number:03}", queued_at=database_now() - MINUTE, sends=1)
    depths = {key[1]: value for key, value in figures().items() if key[0] == "punctual_queue_runs"}
    assert len(depths) == metrics.MOST + 1
    assert depths["other"] == 4
    assert depths["q000"] == 2
    assert figures()["punctual_queue_oldest_seconds", "other"] >= 60


def test_it_shows_nodes_resources_channels_the_watch_and_the_version(settings):
    settings.CODE_VERSION = 'a"b\\c'
    now = database_now()
    for name, kind, seen_at, stopped_at in (
        ("a", Node.Kind.BEAT, now, None),
        ("b", Node.Kind.WORKER, now, None),
        ("c", Node.Kind.WORKER, now - timedelta(minutes=2), None),
        ("d", Node.Kind.WORKER, now, now),
    ):
        Node.objects.create(name=name, kind=kind, pid=1, seen_at=seen_at, stopped_at=stopped_at)
    resource = ResourceVersion.objects.create(name="rates")
    for pid in (1, 2):
        Holding.objects.create(resource=resource, node="b", pid=pid, entries=1, bytes=10, hits=3, misses=2)
    Channel.objects.create(name="well")
    Channel.objects.create(name="off", is_enabled=False, problem="No such host.")
    Channel.objects.create(name="ill", problem="No such host.")
    assert "punctual_watch_age_seconds" not in {key[0] for key in figures()}
    Watch.objects.update_or_create(defaults={"looked_at": now - MINUTE})
    found = figures()
    nodes = {key[1:]: value for key, value in found.items() if key[0] == "punctual_nodes"}
    assert {key: value for key, value in nodes.items() if value} == {
        ("beat", "live"): 1,
        ("worker", "live"): 1,
        ("worker", "silent"): 1,
    }
    assert len(nodes) == 2 * len(Node.Kind)
    held = [found[f"punctual_resource_{figure}", "rates"] for figure in ("entries", "bytes", "hits", "misses")]
    assert held == [2, 20, 6, 4]
    assert found["punctual_channels_failing",] == 1
    assert found["punctual_watch_age_seconds",] >= 60
    assert found["punctual_build_info", 'a"b\\c'] == 1


def test_it_reads_no_ended_run(django_assert_max_num_queries):
    """Each query on runs names a state that ended runs do not have, so PostgreSQL uses a partial index."""
    make_run(state=State.SUCCEEDED)
    with django_assert_max_num_queries(30) as queries:
        metrics.text()
    of_runs = [query["sql"] for query in queries if 'FROM "jobs_run"' in query["sql"]]
    assert of_runs
    for sql in of_runs:
        where = sql.partition(" WHERE ")[2]
        assert "running" in where or "waiting" in where, sql
        assert "succeeded" not in where


# --- Who may scrape -------------------------------------------------------------------------------------------------


@pytest.fixture
def scrape(settings) -> Callable[..., int]:
    settings.METRICS_TOKEN = settings.METRICS_NETWORKS = ""

    def get(token: str = "", address: str = "127.0.0.1", **headers: str) -> int:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return Client(headers=headers, REMOTE_ADDR=address).get("/metrics").status_code

    return get


def test_it_has_no_such_page_without_a_token_or_networks(scrape, admin_client):
    unknown, asked = admin_client.get("/nothing"), admin_client.get("/metrics")
    assert (asked.status_code, asked.content) == (404, unknown.content.replace(b"/nothing", b"/metrics"))
    assert scrape(TOKEN) == 404


def test_it_answers_only_with_the_token(scrape, settings):
    settings.METRICS_TOKEN = TOKEN
    assert [scrape(), scrape("x"), scrape(f"{TOKEN}x"), scrape("ü"), scrape(TOKEN)] == [401, 401, 401, 401, 200]
    assert scrape(authorization=f"Basic {TOKEN}") == 401
    refused = Client().get("/metrics")
    assert refused["WWW-Authenticate"] == 'Bearer realm="metrics"'
    assert TOKEN not in refused.content.decode()


def test_it_answers_only_clients_in_the_networks(scrape, settings):
    settings.METRICS_NETWORKS = [ipaddress.ip_network(each) for each in ("10.0.0.0/8", "2001:db8::7")]
    inside = ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7"]
    assert [scrape(address=each) for each in inside] == [200] * 3
    outside = ["11.1.2.3", "2001:db8::8", "", "nonsense"]
    assert [scrape(address=each) for each in outside] == [403] * 4
    settings.METRICS_TOKEN = TOKEN
    assert [scrape(address="10.1.2.3"), scrape(TOKEN, "10.1.2.3"), scrape(TOKEN, "11.1.2.3")] == [401, 200, 403]


def test_it_takes_the_client_from_the_proxy_only_if_there_is_one(scrape, settings):
    settings.METRICS_NETWORKS = [ipaddress.ip_network("10.0.0.0/8")]
    forwarded = {"x-forwarded-for": "192.0.2.1, 10.0.0.1"}
    assert scrape(address="192.0.2.1", **forwarded) == 403
    assert scrape(address="10.0.0.2", **{"x-forwarded-for": "192.0.2.1"}) == 200
    settings.BEHIND_PROXY = True
    assert scrape(address="192.0.2.1", **forwarded) == 200
    assert scrape(address="10.0.0.2", **{"x-forwarded-for": "10.0.0.1, 192.0.2.1"}) == 403


def test_it_answers_for_any_host_name_and_without_https_and_only_reads(scrape, settings):
    settings.METRICS_TOKEN, settings.SECURE_SSL_REDIRECT = TOKEN, True
    assert scrape(TOKEN, host="10.0.0.7:8000") == 200
    client = Client(headers={"authorization": f"Bearer {TOKEN}"})
    got, head, posted = client.get("/metrics"), client.head("/metrics"), client.post("/metrics")
    assert got["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert got["Cache-Control"] == "no-store"
    assert (head.status_code, head.content, posted.status_code) == (200, b"", 405)


def test_it_answers_one_scrape_at_a_time(scrape, settings):
    settings.METRICS_TOKEN = TOKEN
    with web._scraping:
        answer = Client(headers={"authorization": f"Bearer {TOKEN}"}).get("/metrics")
    assert (answer.status_code, answer.content) == (503, f"{web.BUSY}\n".encode())
    assert int(answer["Retry-After"]) > 0
    assert scrape(TOKEN) == 200


@pytest.mark.skipif("config.getoption('database') == 'sqlite'", reason="SQLite has no time limit for statements.")
def test_it_gives_up_a_scrape_whose_query_waits_for_too_long(scrape, settings, monkeypatch):
    settings.METRICS_TOKEN = TOKEN
    monkeypatch.setattr("jobs.monitoring.search.PATIENCE", timedelta(milliseconds=200))
    locked, over = threading.Event(), threading.Event()

    def lock() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN; LOCK TABLE jobs_tally")
                locked.set()
                over.wait(DEADLINE)
                cursor.execute("ROLLBACK")
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(lock)
        locked.wait(DEADLINE)
        answer = Client(headers={"authorization": f"Bearer {TOKEN}"}).get("/metrics")
        over.set()
        holder.result(DEADLINE)
    assert (answer.status_code, answer.content) == (503, f"{web.SLOW}\n".encode())
    assert scrape(TOKEN) == 200


def test_it_masks_the_token(settings):
    from jobs.secrets import mask

    settings.METRICS_TOKEN = TOKEN
    assert mask(json.dumps({"sent": TOKEN})) == '{"sent": "***"}'
