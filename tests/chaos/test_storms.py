"""One kind of fault at a time, then all kinds together: after each storm the ledger is right."""

import json
import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest
from django.db import connection

from jobs.ledger import backfills, outcomes, requests
from jobs.models import Backfill, Policy, Run, State, database_now
from jobs.models.audit import Actor
from tests.chaos.proxy import Proxy
from tests.chaos.storm import SECOND, Storm
from tests.clock import adjustable_clock
from tests.making import make_schedule

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos]


def worker_tree(storm: Storm) -> None:
    for _ in range(4):
        storm.wait(1.5)
        storm.kill(storm.workers)


def worker_s_child(storm: Storm) -> None:
    for _ in range(12):
        storm.wait(0.5)
        storm.kill_child()


def worker_s_main_process_only(storm: Storm) -> None:
    for _ in range(3):
        storm.wait(1.5)
        worker = storm.workers.pop(0)
        os.kill(worker.pid, signal.SIGKILL)
        worker.expect_end()
        storm.start_worker()


def frozen_beyond_the_lease(storm: Storm) -> None:
    for who in (storm.workers, storm.beats):
        storm.wait(1)
        storm.freeze(who, 5)


def workers_asked_to_end(storm: Storm) -> None:
    for _ in range(3):
        storm.wait(1.5)
        storm.workers.pop(0).stop()
        storm.start_worker()


def five_beats_one_after_the_other_killed(storm: Storm) -> None:
    for _ in range(3):
        storm.start_beat()
    for _ in range(6):
        storm.wait(0.7)
        storm.kill(storm.beats)


def broker_emptied(storm: Storm) -> None:
    for _ in range(8):
        storm.wait(0.8)
        storm.redis.flushall()


def broker_frozen(storm: Storm) -> None:
    storm.wait(1)
    server = storm.redis.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    storm.wait(20)
    os.kill(server, signal.SIGCONT)


def broker_out_of_memory(storm: Storm) -> None:
    storm.wait(1)
    storm.redis.config_set("maxmemory", "1mb")
    storm.wait(6)
    storm.redis.config_set("maxmemory", "0")


def database_connections_cut(storm: Storm) -> None:
    for _ in range(12):
        storm.wait(0.5)
        storm.cut()


def hostile_items_in_the_queue(storm: Storm) -> None:
    message = {"body": "W10=", "content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
    properties = {"body_encoding": "base64", "delivery_tag": "x", "delivery_info": {}}
    unknown = {"headers": {"task": "no.such.task", "id": "1"}, "properties": properties}
    strange = {"headers": {"task": "tests.nothing", "id": "1", "punctual_attempt": "x"}, "properties": properties}
    for item in (message | unknown, message | strange, message | {"properties": properties}):
        storm.wait(0.5)
        storm.redis.lpush("celery", json.dumps(item))


def runs_cancelled_and_requested_at_random(storm: Storm) -> None:
    """Several people at once, who repeat their requests."""
    extra = make_schedule("extra", "tests.execute", every=3600 * SECOND, args=[str(storm.path), 0.2])

    def person() -> None:
        with closing(connection):
            for _ in range(8):
                requests.run_now([extra], "ada")
                active = list(Run.objects.active().values_list("id", flat=True)[:20])
                outcomes.cancel(Run.objects.filter(id__in=active[::3]), "by ada")
                for run in Run.objects.filter(state__in=[State.CANCELLED, State.FAILED])[:2]:
                    requests.retry([run], "ada")
                storm.wait(0.5)

    people = [threading.Thread(target=person) for _ in range(3)]
    for one in people:
        one.start()
    now = database_now()
    asked = Backfill(schedule=storm.schedules[0], start=now - 20 * SECOND, end=now, which="all", at_once=3)
    assert backfills.backfill(asked, Actor("ada")) > 0
    assert backfills.backfill(asked, Actor("ada")) == 0
    for one in people:
        one.join()


def database_s_clock_wrong(storm: Storm) -> None:
    storm.clock_was_wrong = True
    Policy.objects.update(catch_up="latest")  # an hour of all moments would take minutes to run
    with adjustable_clock() as set_clock:
        storm.cut()  # the next sessions have that clock
        for ahead in ("1 hour", "0", "-10 minutes", "0"):
            storm.wait(2)
            set_clock(ahead)
        storm.wait(2)


SINGLE = [
    *(worker_tree, worker_s_child, worker_s_main_process_only, frozen_beyond_the_lease, workers_asked_to_end),
    *(five_beats_one_after_the_other_killed, broker_emptied, broker_frozen, broker_out_of_memory),
    *(
        database_connections_cut,
        database_s_clock_wrong,
        hostile_items_in_the_queue,
        runs_cancelled_and_requested_at_random,
    ),
]


@pytest.mark.parametrize("fault", SINGLE, ids=lambda fault: fault.__name__)
def test_it_is_right_after(storm, fault):
    storm.make_schedules()
    storm.start_all()
    fault(storm)
    storm.wait(1)
    storm.calm()
    storm.reckon()


@pytest.mark.parametrize(
    "place",
    [
        "jobs.models.bulk.insert:3",  # before the rows of a claim
        "jobs.models.bulk.update:3",  # between the rows and the update of their schedules
        "jobs.ledger.outbox.send:3",  # between the commit and the publishing
        "jobs.ledger.outbox._mark_queued:3",  # between the publishing and its record
        "jobs.beat.release.release:4",
        "jobs.beat.rescue.rescue:2",
    ],
)
def test_it_is_right_after_beat_died_in(storm, place):
    storm.make_schedules()
    storm.start_worker()
    storm.sabotage = f"hasty,crash={place}"
    for _ in range(4):
        beat = storm.start_beat()
        beat.expect_end()
        storm.processes.eventually(lambda beat=beat: not beat.running)
        storm.beats.remove(beat)
    storm.sabotage = "hasty"
    storm.start_beat()
    storm.wait(2)
    storm.calm()
    storm.reckon()


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
def test_it_accounts_for_an_outage_of_all_beats(storm, catch_up):
    storm.make_schedules(catch_up)
    storm.start_all()
    storm.wait(2)
    for beat in storm.beats:
        beat.kill()
    storm.wait(4)
    storm.start_beat()
    storm.wait(2)
    storm.calm()
    storm.reckon()


def test_it_is_right_when_every_message_comes_three_times(storm):
    storm.make_schedules()
    storm.sabotage = "hasty,thrice"
    storm.start_all()
    storm.wait(6)
    storm.calm()
    storm.reckon()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_it_is_right_when_clocks_are_wrong(storm, seconds):
    wrong = {"CLOCK_WRONG_BY": str(seconds), "PYTHONPATH": str(Path(__file__).parents[1] / "live" / "wrong_clock")}
    storm.make_schedules()
    storm.start_worker(**wrong)
    storm.start_worker()
    storm.start_beat(**wrong)
    storm.start_beat()
    storm.wait(6)
    storm.calm()
    storm.reckon()


def test_it_is_right_when_the_broker_was_killed_and_comes_back_empty(storm, mortal_broker):
    storm.make_schedules()
    storm.start_worker(**mortal_broker.address)
    storm.start_beat(**mortal_broker.address)
    storm.wait(3)
    mortal_broker.kill()
    storm.wait(3)
    mortal_broker.start()
    storm.wait(3)
    storm.calm()
    storm.reckon()


@pytest.mark.parametrize("wire", ["database", "broker"])
def test_it_is_right_when_connections_are_cut_in_the_middle_of_a_message(storm, servers, wire):
    sockets = {"database": "postgresql/.s.PGSQL.5432", "broker": "redis/valkey.sock"}
    proxy = Proxy(servers.workspace.folder / sockets[wire])
    name = connection.settings_dict["NAME"]
    with proxy.running() as port:
        through = {
            "database": {"DATABASE_URL": f"postgres://postgres@127.0.0.1:{port}/{name}"},
            "broker": {"BROKER_URL": f"redis://127.0.0.1:{port}/0"},
        }
        storm.make_schedules()
        for start in (storm.start_worker, storm.start_beat) * 2:
            start(**through[wire])
        for _ in range(12):
            storm.wait(storm.random.uniform(0.2, 0.8))
            proxy.cut()
        storm.calm()
        storm.reckon()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_it_is_right_after_the_database_was_restarted(storm, servers, how):
    storm.make_schedules()
    storm.start_all()
    storm.wait(3)
    servers.restart_postgresql(how)
    connection.close()
    storm.wait(4)
    storm.calm()
    storm.reckon()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_right_after_all_faults_together(storm, seed):
    nemesis(storm, seed, seconds=60)


def nemesis(storm: Storm, seed: int, seconds: float) -> None:
    """Faults of every kind, one after the other, chosen by the seed."""
    storm.random.seed(seed)
    storm.seed = seed
    storm.make_schedules()
    storm.start_all()
    faults = [
        lambda: storm.kill(storm.workers),
        lambda: storm.kill(storm.beats),
        storm.kill_child,
        storm.kill_child,
        storm.redis.flushall,
        storm.cut,
        storm.cut,
        lambda: storm.freeze(storm.workers, storm.random.choice([0.5, 4])),
        lambda: storm.freeze(storm.beats, storm.random.choice([0.5, 4])),
    ]
    until = database_now() + seconds * SECOND
    while database_now() < until:
        storm.wait(storm.random.uniform(0.2, 1.5))
        storm.random.choice(faults)()
    storm.calm()
    storm.reckon()
