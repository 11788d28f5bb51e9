"""No run waits for the refused message of another one, though RabbitMQ refuses it late and drops all later messages.

Needs TEST_AMQP_URL, such as amqp://guest:guest@127.0.0.1:5672//. The tests make and delete queues there.
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
from django_celery_beat.models import PeriodicTask

from jobs.models import Run, State
from tests.making import ends, make_due, make_schedule

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("TEST_AMQP_URL" not in os.environ, reason="Set TEST_AMQP_URL to the address of a RabbitMQ."),
]
QUEUES = ("celery", "punctual-transient")


@pytest.fixture
def channel() -> Iterator[Any]:
    with kombu.Connection(os.environ["TEST_AMQP_URL"]) as client:
        channel = client.channel()
        for queue in QUEUES:
            channel.queue_delete(queue)
        yield channel
        for queue in QUEUES:
            channel.queue_delete(queue)


def test_it_fails_a_run_that_rabbitmq_refuses_and_runs_the_others(processes, eventually, channel):
    channel.queue_declare("punctual-transient", durable=False, auto_delete=False)
    bad = {"exchange": {"exchange": "nowhere", "routing_key": "x"}, "queue": {"queue": "punctual-transient"}}
    names = ["good 1", "exchange", "good 2", "queue", "good 3"]
    schedules = {name: make_schedule(name, task="jobs.heartbeat") for name in names}
    for name, columns in bad.items():
        PeriodicTask.objects.filter(name=name).update(**columns)
    broker = {"BROKER_URL": os.environ["TEST_AMQP_URL"]}
    processes.start_worker("--pool=solo", env=broker)
    processes.start_beat(env=broker)
    for times in (1, 2):
        for schedule in schedules.values():
            make_due(schedule)
        eventually(lambda times=times: Run.objects.count() == times * len(names) and all(map(ends, Run.objects.all())))
    failed = {run.schedule_name: run.reason for run in Run.objects.filter(state=State.FAILED)}
    assert failed.keys() == bad.keys()
    assert "no exchange 'nowhere'" in failed["exchange"]
    assert "PRECONDITION_FAILED" in failed["queue"]
    assert Run.objects.filter(state=State.SUCCEEDED).count() == 6


def test_it_keeps_a_run_waiting_if_rabbitmq_refuses_the_login(processes, eventually):
    address = urlsplit(os.environ["TEST_AMQP_URL"])
    wrong = address._replace(netloc=f"ada:wrong@{address.hostname}:{address.port or 5672}").geturl()
    beat = processes.start_beat(env={"BROKER_URL": wrong})
    make_due(make_schedule(task="jobs.heartbeat"))
    eventually(lambda: "The broker takes no messages" in beat.log)
    assert "ACCESS_REFUSED" in beat.log
    assert Run.objects.get().state == State.WAITING
