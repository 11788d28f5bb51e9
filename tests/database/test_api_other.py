"""The API lists jobs, nodes, queues, figures, resources, and the rows of the ready-made jobs."""

from datetime import timedelta

import pytest

from jobs.models import (
    Backfill,
    Delivery,
    FeedEntry,
    Holding,
    Measurement,
    Node,
    ResourceVersion,
    SetAside,
    State,
    database_now,
)
from jobs.models.audit import AuditEntry
from tests.api import make_caller
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_describes_jobs_and_whether_the_sender_may_start_them():
    tom = make_caller("tom", "jobs.add_run")
    jobs = {job["name"]: job for job in tom.get("/api/jobs")["items"]}
    assert {"jobs.heartbeat", "jobs.cleanup", "tests.nothing"} <= jobs.keys()
    assert "celery.map" not in jobs
    assert "jobs.etl.load" not in jobs  # a step
    assert jobs["tests.nothing"] == {
        "name": "tests.nothing",
        "summary": "Do nothing, with any arguments.",
        "is_restricted": False,
        "may_start": True,
        "why_not": "",
    }
    assert (jobs["jobs.cleanup"]["is_restricted"], jobs["jobs.cleanup"]["may_start"]) == (True, False)
    assert "administrator" in jobs["jobs.cleanup"]["why_not"]
    reader = make_caller("reader", "jobs.view_run")
    assert "jobs.add_run" in reader.get("/api/jobs/tests.nothing")["why_not"]
    make_caller("stranger", "jobs.view_node").get("/api/jobs", 403)
    for name in ("no.such", "celery.map", "jobs.etl.load", "a%00b", "%F0%9F%90%98", "x" * 500):
        assert "No job is named" in tom.get(f"/api/jobs/{name}", 404)["detail"]


def test_it_shows_the_arguments_of_typed_and_other_jobs_as_a_schema():
    tom = make_caller("tom", "jobs.add_run")
    typed = tom.get("/api/jobs/jobs.http_call")
    assert typed["is_typed"]
    assert typed["arguments"]["properties"]["method"]["enum"][0] == "GET"
    assert "url" in typed["arguments"]["required"]
    assert not typed["arguments"]["additionalProperties"]
    plain = tom.get("/api/jobs/tests.flaky")
    assert not plain["is_typed"]
    assert plain["arguments"]["properties"] == {"path": {"type": "string"}, "failures": {"type": "integer"}}
    assert plain["arguments"]["required"] == ["path", "failures"]
    assert tom.get("/api/jobs/tests.nothing")["arguments"]["additionalProperties"]
    for job in tom.get("/api/jobs")["items"]:
        assert tom.get(f"/api/jobs/{job['name']}")["arguments"]["type"] == "object"


def test_it_lists_nodes_and_the_queues_that_they_consume():
    caller = make_caller("tom", "jobs.view_node")
    Node.objects.create(name="w1", kind="worker", queues="celery, mail", version="1", pid=1)
    Node.objects.create(
        name="w2", kind="worker", queues="mail", version="1", pid=2, seen_at=database_now() - timedelta(days=1)
    )
    Node.objects.create(name="w3", kind="beat", version="1", pid=3, stopped_at=database_now())
    nodes = caller.get("/api/nodes?limit=2")
    nodes = nodes["items"] + caller.get(nodes["next"])["items"]
    assert [(node["name"], node["status"]) for node in nodes] == [("w1", "live"), ("w2", "silent"), ("w3", "stopped")]
    assert nodes[0]["queues"] == ["celery", "mail"]
    make_run()
    make_run(state=State.QUEUED)
    make_run(state=State.QUEUED, queue="mail")
    make_run(state=State.RUNNING, queue="mail")
    make_run(queue="unserved")
    queues = {queue.pop("name"): queue for queue in caller.get("/api/queues")["items"]}
    assert queues["celery"] == {"consumers": ["w1"], "waiting": 1, "queued": 1}
    assert queues["mail"] == {"consumers": ["w1"], "waiting": 0, "queued": 1}
    assert queues["unserved"] == {"consumers": [], "waiting": 1, "queued": 0}
    reader = make_caller("reader", "jobs.view_run")
    reader.get("/api/nodes", 403)
    reader.get("/api/queues", 403)


def test_it_gives_the_statistics():
    make_schedule()
    figures = make_caller("tom", "jobs.view_run").get("/api/statistics")
    assert (figures["schedules"]["total"], figures["active"]["running"]) == (1, 0)


def test_it_lists_and_invalidates_resources():
    tom = make_caller("tom", "jobs.view_resourceversion", "jobs.change_resourceversion")
    for name in ("prices", "rates"):
        ResourceVersion.objects.create(name=name, number=3)
    Holding.objects.create(resource_id="prices", node="w", pid=1, entries=2, bytes=30, hits=4, misses=5)
    Holding.objects.create(resource_id="prices", node="w", pid=2, entries=1, bytes=1, hits=1, misses=1)
    prices, rates = tom.get("/api/resources")["items"]
    assert {name: prices[name] for name in ("processes", "entries", "bytes", "hits", "misses")} == {
        "processes": 2,
        "entries": 3,
        "bytes": 31,
        "hits": 5,
        "misses": 6,
    }
    assert (rates["processes"], rates["entries"]) == (0, 0)
    after = tom.post("/api/resources/prices/invalidate")
    assert (after["version"], after["invalidated_by"]) == (4, "tom")
    assert AuditEntry.objects.get(act="invalidate").door == "api"
    for name in ("nothing", "a%00b", "%0A", "x" * 300):
        tom.post(f"/api/resources/{name}/invalidate", status=404)
    make_caller("reader", "jobs.view_resourceversion").post("/api/resources/prices/invalidate", status=403)
    assert ResourceVersion.objects.get(name="prices").number == 4


def test_it_lists_the_rows_of_the_ready_made_jobs():
    run, now = make_run(), database_now()
    names = ("setaside", "delivery", "feedentry", "measurement")
    tom = make_caller("tom", *(f"jobs.view_{name}" for name in names))
    SetAside.note("d" * 64, why="broken", size=3, node="w", queue="celery", excerpt="x")
    Delivery.objects.create(id="00000000-0000-0000-0000-000000000001", run=run, message="m", address="a@example.org")
    FeedEntry.objects.create(feed="f", guid="g", title="t")
    for number, value in enumerate([1.5, float("inf"), float("-inf")]):
        Measurement.objects.create(dataset="d", key=str(number), at=now, column="c", value=value, loaded_at=now)
    assert tom.get("/api/set-aside")["items"][0]["why"] == "broken"
    assert tom.get("/api/deliveries")["items"][0]["run"] == str(run.id)
    assert tom.get("/api/feed-entries")["items"][0]["title"] == "t"
    assert [row["value"] for row in tom.get("/api/measurements")["items"]] == [None, None, 1.5]
    limited = make_caller("limited", "jobs.view_delivery", jobs=["billing.*"])
    assert limited.get("/api/deliveries")["items"] == []
    reader = make_caller("eve", "jobs.view_setaside", jobs=["billing.*"])  # the messages may be those of other jobs
    assert "limited" in reader.get("/api/set-aside", 403)["detail"]
    stranger = make_caller("stranger", "jobs.view_run")
    for path in ("set-aside", "deliveries", "feed-entries", "measurements"):
        stranger.get(f"/api/{path}", 403)


def test_it_lists_backfills_with_their_progress():
    backfills = [
        Backfill.objects.create(schedule=make_schedule(name), start=database_now(), end=database_now(), actor="ada")
        for name in ("mine", "other")
    ]
    for state in (State.SUCCEEDED, State.WAITING):
        make_run(backfills[0].schedule, state, backfill=backfills[0])
    found = make_caller("tom", "jobs.view_backfill").get("/api/backfills")["items"]
    assert [(row["id"], row["runs"], row["ended"]) for row in found] == [
        (str(backfills[1].id), 0, 0),
        (str(backfills[0].id), 2, 1),
    ]
    limited = make_caller("limited", "jobs.view_backfill", schedules=[backfills[0].schedule_id])
    assert [row["id"] for row in limited.get("/api/backfills")["items"]] == [str(backfills[0].id)]
    make_caller("stranger", "jobs.view_run").get("/api/backfills", 403)


def test_it_lists_acts_but_not_to_a_token_that_is_limited():
    tom = make_caller("tom", "jobs.view_auditentry", "jobs.add_run")
    tom.post("/api/runs", {"job": "tests.nothing"}, 202)
    act = tom.get("/api/acts?limit=1")["items"][0]
    assert (act["actor"], act["door"], act["act"], act["kind"], act["name"]) == (
        "tom",
        "api",
        "start",
        "run",
        "tests.nothing",
    )
    assert "limited" in make_caller("eve", "jobs.view_auditentry", jobs=["x"]).get("/api/acts", 403)["detail"]
    make_caller("stranger", "jobs.view_run").get("/api/acts", 403)
