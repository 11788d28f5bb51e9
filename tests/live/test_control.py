"""Remote control reads by default: commands that change or stop a worker are refused with a sentence."""

import pytest
from celery import current_app
from celery.worker.control import Panel

from jobs.ledger import outbox
from jobs.models import State
from tests.live.conftest import CELERY
from tests.making import ends, make_run
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

HARMFUL = {
    *("shutdown", "revoke", "terminate", "revoke_by_stamped_headers", "rate_limit", "time_limit", "pool_grow"),
    *("pool_shrink", "pool_restart", "autoscale", "add_consumer", "cancel_consumer", "election", "enable_events"),
    *("disable_events", "heartbeat", "memdump", "memsample", "objgraph"),
}
READING = {
    *("ping", "active", "reserved", "scheduled", "stats", "registered", "active_queues", "conf", "report", "revoked"),
    *("query_task", "clock"),
}


def answer(command: str, **arguments: object) -> dict[str, object]:
    ((reply,),) = [
        found.values()
        for found in current_app.control.broadcast(command, arguments=arguments, reply=True, timeout=DEADLINE, limit=1)
    ]
    return reply


def test_it_answers_commands_that_read_and_refuses_the_others(processes, eventually, redis):
    worker = processes.start_worker("--pool=solo")
    assert HARMFUL | READING | {"hello"} == Panel.meta.keys()
    for command in sorted(HARMFUL):
        why = f"{command} is refused: REMOTE_CONTROL=inspect allows only commands that read."
        assert answer(command, task_id="x") == {"error": f"{why} Set REMOTE_CONTROL=full for this worker to allow it."}
        assert why in worker.log
    for command in sorted(READING):
        assert "error" not in str(answer(command, **({"ids": ["x"]} if command == "query_task" else {})))[:10]
    run = make_run()
    answer("hello", from_node="me", revoked=[str(run.id)])
    outbox.send([run])
    eventually(lambda: ends(run))
    assert (run.state, worker.running) == (State.SUCCEEDED, True)
    assert redis.pubsub_numpat() == 1  # Celery's own channel of remote control is subscribed to as a pattern


@pytest.mark.parametrize(("mode", "asks"), [("inspect", False), ("full", True)])
def test_it_asks_other_workers_for_revoked_tasks_only_with_full_control(processes, eventually, mode, asks):
    command = [*CELERY, "worker", "--pool=solo", "--hostname=alone@localhost", "--without-gossip"]
    worker = processes._start("worker", command, {"REMOTE_CONTROL": mode}, ready=" ready.")
    assert ("mingle:" in worker.log) is asks


def test_it_holds_no_election_of_unsigned_tasks(processes):
    processes.start_worker("--pool=solo", env={"REMOTE_CONTROL": "full", "MESSAGE_KEYS": "k" * 32})
    assert answer("election", id="1", topic="task", action={}) == {
        "error": "election is refused: its task is not signed."
    }


def test_it_listens_for_no_command_where_remote_control_is_off(processes, eventually, redis):
    processes.start_worker("--pool=solo", env={"REMOTE_CONTROL": "off"})
    run = make_run()
    outbox.send([run])
    eventually(lambda: ends(run))  # by then it listens to all that it ever will
    assert (redis.pubsub_numpat(), redis.pubsub_channels()) == (0, [])
