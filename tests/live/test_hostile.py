"""No item of the broker ends a worker or stops it from taking messages; each one that cannot be read is set aside."""

import json
from pathlib import Path

import pytest
from celery import current_app

from jobs.models import SetAside
from tests import hostile
from tests.making import lines
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

LONG_AGO = 1_000_000.0  # the time of an unacknowledged message, which any worker puts back


# The consumer, which reads the items, is the same in all pools; the children of prefork read only what it has taken.
@pytest.mark.parametrize(("pool", "every"), [("solo", 1), ("prefork", 5)])
def test_it_survives_every_hostile_item(processes, eventually, redis, tmp_path, pool, every):
    path = tmp_path / "lines"
    for number, (_, item) in enumerate(hostile.unacked()):
        redis.hset("unacked", f"u{number}", item)
        redis.zadd("unacked_index", {f"u{number}": LONG_AGO})
    worker = processes.start_worker(f"--pool={pool}")
    kinds = list(hostile.items())[::every]
    for number, (_, item) in enumerate(kinds):
        redis.lpush("celery", item)
        current_app.send_task("tests.note", [str(path)], task_id=str(number))
    for _, item in hostile.commands():
        redis.publish("/0.celery.pidbox", item)
    eventually(lambda: str(len(kinds) - 1) in lines(path))
    executed = set(lines(path))
    assert [name for number, (name, _) in enumerate(kinds) if str(number) not in executed] == []
    assert worker.running
    assert current_app.control.inspect(timeout=DEADLINE, limit=1).ping()
    eventually(lambda: not redis.hlen("unacked"))
    worker.stop()
    again = processes.start_worker(f"--pool={pool}")
    current_app.send_task("tests.note", [str(path)], task_id="again")
    eventually(lambda: "again" in lines(path))
    assert again.running


def test_it_renames_keys_of_another_type_and_goes_on(processes, eventually, redis, tmp_path):
    path = tmp_path / "lines"
    keys = ["unacked", "unacked_index", "_kombu.binding.celery.pidbox", "_kombu.binding.celery", "celery\x06\x163"]
    for key in keys:
        redis.set(key, "x")
    worker = processes.start_worker("--pool=solo")
    current_app.send_task("tests.note", [str(path)], task_id="first")
    eventually(lambda: "first" in lines(path))
    eventually(lambda: all(redis.exists(f"{key}.set-aside") for key in keys))
    for key in ("celery", "unacked"):
        eventually(lambda key=key: redis.type(key) == b"none" and redis.set(key, "x", nx=True))
        eventually(lambda key=key: redis.exists(f"{key}.set-aside") or sent(path, key))
    current_app.send_task("tests.note", [str(path)], task_id="last")
    eventually(lambda: "last" in lines(path))
    assert worker.running
    eventually(
        lambda: SetAside.objects.filter(
            why__startswith="the key unacked of Redis was a string instead of a hash"
        ).exists()
    )


def sent(path: Path, key: str) -> bool:
    """Let the worker use its list of unacknowledged messages; returns False."""
    if key == "unacked":
        current_app.send_task("tests.note", [str(path)])
    return False


def test_it_reads_bindings_beside_which_odd_ones_stand(processes, eventually, redis, tmp_path):
    path = tmp_path / "lines"
    redis.sadd("_kombu.binding.celery", b"\xff", "one", "two\x06\x16parts", "celery\x06\x16\x06\x16celery\x06\x16more")
    redis.sadd("_kombu.binding.reply.celery.pidbox", b"\xff", "one")
    processes.start_worker("--pool=solo")
    assert current_app.control.inspect(timeout=DEADLINE, limit=1).ping()
    item = hostile.message(headers={"task": "tests.note"}, body=hostile.encoded([[str(path)], {}, {}]))
    redis.hset("unacked", "t", json.dumps([item, "celery", "celery"]))
    redis.zadd("unacked_index", {"t": LONG_AGO})
    processes.start_worker("--pool=solo")
    eventually(lambda: lines(path))
