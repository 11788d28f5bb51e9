"""Do messages leave once, whatever dies or hangs? Real beats and a worker, and a receiver on loopback."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django_celery_beat.models import PeriodicTask

from jobs.models import Alert, Channel, Node, Notice, Run, State, database_now
from tests.making import make_run, make_schedule
from tests.web import Web, serving

pytestmark = pytest.mark.django_db(transaction=True)
SECOND = timedelta(seconds=1)


@pytest.fixture
def receiver() -> Iterator[Web]:
    with serving({"/hook": b"", "/alive": b""}) as web:
        yield web


@pytest.fixture
def channel() -> Channel:
    return Channel.objects.create(name="hook", kind="webhook", url="HOOK", of_system=False)


@pytest.fixture
def addresses(receiver: Web) -> dict[str, str]:
    """The variables of processes that may send to the receiver."""
    key = "whsec_" + "YWFh" * 8
    return {
        "CHANNEL_URL_HOOK": f"{receiver.address}/hook",
        "CHANNEL_KEY_HOOK": key,
        "BEAT_PING_URL": f"{receiver.address}/alive",
    }


def hooks(receiver: Web) -> list[str]:
    """The ids of the messages that the receiver got."""
    received = zip(list(receiver.asked), list(receiver.headers), strict=False)
    return [headers["webhook-id"] for asked, headers in received if asked == "POST /hook"]


def fail(*names: str) -> None:
    for name in names:
        make_run(make_schedule(name), State.FAILED, reason="failed: ValueError: no")


def sent() -> bool:
    states = set(Notice.objects.values_list("state", flat=True))
    return states == {"sent"}


def test_a_message_whose_beat_dies_is_sent_by_another_with_the_same_id(
    processes, eventually, receiver, channel, addresses
):
    fail("it")
    receiver.answers.clear()
    beat = processes.start_beat(env=addresses)
    eventually(lambda: hooks(receiver))
    beat.kill()
    receiver.answers.set()
    assert Notice.objects.get().state == "sending"
    Notice.objects.update(not_before=database_now())  # as if the time of its claim were over
    processes.start_beat(env=addresses)
    eventually(sent)
    ids = hooks(receiver)
    assert (len(ids), len(set(ids)), Alert.objects.count()) == (2, 1, 1)


def test_three_beats_send_one_message_about_a_hundred_schedules(processes, eventually, receiver, channel, addresses):
    for _ in range(3):
        processes.start_beat(env=addresses)
    fail(*(f"schedule {number}" for number in range(100)))
    eventually(lambda: Notice.objects.count() == 100)
    eventually(sent)
    # A look that began between two of the runs reports these first.
    assert (
        len(set(hooks(receiver))) == len(hooks(receiver)) == len(set(Notice.objects.values_list("message", flat=True)))
    )
    assert len(hooks(receiver)) <= 2
    assert Alert.objects.count() == 100


def test_a_channel_that_hangs_delays_no_run(processes, eventually, receiver, channel, addresses):
    fail("it")
    receiver.answers.clear()
    processes.start_worker()
    processes.start_beat(env=addresses)
    eventually(lambda: hooks(receiver))
    schedule = make_schedule("every second", every=SECOND)
    ended = Run.objects.filter(schedule=schedule, state=State.SUCCEEDED)
    eventually(lambda: ended.count() >= 3)
    assert Notice.objects.get().state == "sending"
    assert len(hooks(receiver)) == 1


def test_a_job_that_fails_and_succeeds_again_is_told_from_end_to_end(
    processes, eventually, receiver, channel, addresses
):
    processes.start_worker()
    processes.start_beat(env=addresses)
    make_schedule("it", "tests.fail", every=SECOND, args=["no invoice today"])
    eventually(lambda: Notice.objects.filter(state="sent", alert__health="failing").exists())
    PeriodicTask.objects.update(task="tests.nothing")
    eventually(lambda: Notice.objects.filter(state="sent", alert__health="ok").exists())
    assert [alert.health for alert in Alert.objects.order_by("id")] == ["failing", "ok"]
    told = [body for asked, body in zip(receiver.asked, receiver.bodies, strict=True) if asked == "POST /hook"]
    assert [b"no invoice today" in body for body in told] == [True, False]


def test_a_beat_that_ticks_sends_the_dead_man_ping(processes, eventually, receiver, addresses):
    processes.start_beat(env=addresses)
    eventually(lambda: "GET /alive" in receiver.asked)


def test_a_worker_tells_that_no_beat_runs(processes, eventually, receiver, addresses):
    make_schedule("it")
    Channel.objects.create(name="hook", kind="webhook", url="HOOK")
    old = database_now() - SECOND * 3600
    Node.objects.create(name="beat@gone", kind="beat", version="", pid=1, started_at=old, seen_at=old)
    processes.start_worker(env=addresses)
    eventually(lambda: Alert.objects.filter(subject="beat", health="down").exists())
    eventually(lambda: hooks(receiver))
