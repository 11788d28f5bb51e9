"""Does each channel get each message once, and what happens if it cannot be sent? To a real web server."""

import threading
from collections.abc import Iterator
from datetime import time, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connections
from django.db.models import F

from jobs.alerts import changes, channels, notices, watching
from jobs.models import Alert, Channel, Notice, RunLog, Silence, State, Watch, database_now
from jobs.rules.health import Finding, Health
from tests.making import make_run, make_schedule
from tests.web import Web, serving

pytestmark = pytest.mark.django_db
KEY = "whsec_" + "YWFh" * 8
MINUTE, HOUR, DAY = (timedelta(seconds=seconds) for seconds in (60, 3600, 86_400))


@pytest.fixture
def receiver(settings: Any) -> Iterator[Web]:
    with serving({"/hook": b"", "/hook/start": b"", "/hook/fail": b""}) as web:
        settings.CHANNEL_URLS = {"HOOK": f"{web.address}/hook"}
        settings.CHANNEL_KEYS = {"HOOK": [KEY]}
        yield web


@pytest.fixture
def channel(receiver: Web) -> Channel:
    watching.look()
    return Channel.objects.create(name="hook", kind="webhook", url="HOOK")


def tell(*names: str, health: Health = Health.FAILING) -> None:
    """Let the health of these subjects change now."""
    found = {make_or_get(name): Finding(health, f"{name} is {health}.") for name in names}
    changes.record(Watch.begin(0.0), changes.of_schedules(found), database_now())
    Notice.objects.filter(tries=0).update(not_before=F("not_before") - changes.LINGER)


def make_or_get(name: str) -> Any:
    from django_celery_beat.models import PeriodicTask

    return PeriodicTask.objects.filter(name=name).first() or make_schedule(name)


def deliver(channel: Channel) -> None:
    notices.deliver(channel.pk)


def later(channel: Channel) -> None:
    """As if the wait of a failed or claimed message were over."""
    channel.notices.update(not_before=database_now())


def states(channel: Channel) -> list[str]:
    return list(channel.notices.order_by("id").values_list("state", flat=True))


def ids(receiver: Web) -> list[str]:
    return [headers["webhook-id"] for headers in receiver.headers]


def test_a_message_is_sent_once(channel, receiver):
    tell("Invoices")
    deliver(channel)
    deliver(channel)
    assert receiver.asked == ["POST /hook"]
    assert b"Invoices" in receiver.bodies[0]
    assert states(channel) == ["sent"]
    channel.refresh_from_db()
    assert (channel.problem, channel.sent_at is not None) == ("", True)


def test_what_happens_at_once_is_one_message(channel, receiver):
    tell(*(f"schedule {number}" for number in range(100)))
    deliver(channel)
    assert len(receiver.asked) == 1
    assert states(channel) == ["sent"] * 100


def test_it_lingers_for_what_else_happens(channel, receiver):
    found = {make_schedule("it"): Finding(Health.LATE, "It is late.")}
    changes.record(Watch.begin(0.0), changes.of_schedules(found), database_now())
    assert notices.waiting() == []
    deliver(channel)
    assert receiver.asked == []
    later(channel)
    assert notices.waiting() == [channel.pk]


def test_recovered_follows_failing(channel, receiver):
    tell("it")
    deliver(channel)
    tell("it", health=Health.OK)
    deliver(channel)
    assert len(receiver.asked) == 2
    assert states(channel) == ["sent", "sent"]


def test_it_tells_nothing_of_what_was_over_before(channel, receiver):
    tell("it")
    tell("it", health=Health.OK)
    deliver(channel)
    assert receiver.asked == []
    assert states(channel) == ["dropped", "dropped"]
    assert channel.notices.first().error == notices.OVER


def test_it_tells_only_the_latest(channel, receiver):
    tell("it", health=Health.LATE)
    tell("it", health=Health.FAILING)
    deliver(channel)
    assert states(channel) == ["dropped", "sent"]
    assert (b"it is failing" in receiver.bodies[0], b"it is late" in receiver.bodies[0]) == (True, False)
    assert channel.notices.first().error == notices.REPLACED


def test_a_failed_message_is_repeated_with_its_id(channel, receiver):
    receiver.status = 503
    tell("it")
    deliver(channel)
    deliver(channel)  # not before its time
    assert (len(receiver.asked), states(channel)) == (1, ["waiting"])
    channel.refresh_from_db()
    assert "503" in channel.problem
    first_problem = channel.problem_since
    later(channel)
    deliver(channel)
    channel.refresh_from_db()
    assert channel.problem_since == first_problem
    receiver.status = 200
    later(channel)
    deliver(channel)
    assert states(channel) == ["sent"]
    assert len(set(ids(receiver))) == 1
    channel.refresh_from_db()
    assert (channel.problem, channel.problem_since) == ("", None)


def test_the_wait_doubles_up_to_an_hour(channel, receiver):
    receiver.status = 503
    tell("it")
    waits = []
    for _ in range(12):
        before = database_now()
        later(channel)
        deliver(channel)
        waits.append(round((channel.notices.get().not_before - before) / notices.FIRST_WAIT))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 240, 240, 240, 240]


def test_it_gives_up_after_a_day(channel, receiver):
    receiver.status = 503
    tell("it")
    channel.notices.update(tries=notices.MOST_TRIES - 2)
    for expected in ("waiting", "failed", "failed"):
        later(channel)
        deliver(channel)
        assert states(channel) == [expected]
    assert len(receiver.asked) == 2


def test_while_it_fails_further_alerts_wait_and_become_one_message(channel, receiver):
    receiver.status = 503
    tell("first")
    deliver(channel)
    for name in ("second", "third"):
        tell(name)
        deliver(channel)
    assert len(receiver.asked) == 1
    receiver.status = 200
    later(channel)
    deliver(channel)
    assert states(channel) == ["sent", "waiting", "waiting"]
    deliver(channel)
    assert states(channel) == ["sent", "sent", "sent"]
    assert len(receiver.asked) == 3


def test_a_message_whose_process_died_is_sent_again_with_its_id(channel, receiver):
    """It died after the claim; the receiver can tell by the id whether it had sent it."""
    tell("first")
    (parcel,) = notices.claim(channel.pk)
    channels.send(parcel.channel, parcel.content)
    tell("second")
    deliver(channel)
    assert len(receiver.asked) == 1  # it may still be at work
    channel.notices.filter(message__isnull=False).update(not_before=database_now())
    deliver(channel)
    assert (states(channel), len(set(ids(receiver)))) == (["sent", "waiting"], 1)


def test_a_slow_process_changes_nothing_after_its_time(channel, receiver):
    tell("it")
    (slow,) = notices.claim(channel.pk)
    later(channel)
    deliver(channel)
    notices._note_failure(slow, "late", is_permanent=True)
    assert states(channel) == ["sent"]
    assert len(receiver.asked) == 1


@pytest.mark.django_db(transaction=True)
def test_any_number_of_beats_send_a_message_once(channel, receiver):
    tell(*(f"schedule {number}" for number in range(20)))
    begin = threading.Barrier(6)

    def beat() -> None:
        try:
            begin.wait()
            notices.deliver(channel.pk)
        finally:
            connections.close_all()

    beats = [threading.Thread(target=beat) for _ in range(6)]
    for each in beats:
        each.start()
    for each in beats:
        each.join()
    assert len(receiver.asked) == 1
    assert states(channel) == ["sent"] * 20


@pytest.mark.parametrize("about", [{"patterns": ["it"]}, {"patterns": ["tests.*"]}, {"schedule": "it"}, {}])
def test_a_silence_holds_back_what_is_still_so_at_its_end(channel, receiver, about):
    about = {**about, "schedule": make_schedule("it")} if "schedule" in about else about
    silence = Silence.objects.create(ends_at=database_now() + HOUR, **about)
    tell("it")
    make_schedule("other", task="jobs.other")
    tell("other")
    deliver(channel)
    assert states(channel) == (["waiting", "sent"] if about else ["waiting", "waiting"])
    told = len(receiver.asked)
    later(channel)
    deliver(channel)
    assert len(receiver.asked) == told
    Silence.objects.filter(pk=silence.pk).update(starts_at=database_now() - HOUR, ends_at=database_now())
    later(channel)
    deliver(channel)
    assert states(channel) == ["sent", "sent"]


def test_a_silence_swallows_what_is_over_by_its_end(channel, receiver):
    silence = Silence.objects.create(ends_at=database_now() + HOUR)
    tell("it")
    deliver(channel)
    tell("it", health=Health.OK)
    Silence.objects.filter(pk=silence.pk).update(starts_at=database_now() - HOUR, ends_at=database_now())
    later(channel)
    deliver(channel)
    assert (receiver.asked, states(channel)) == ([], ["dropped", "dropped"])


def test_what_was_over_when_a_silence_was_ended_early_is_not_told(channel, receiver):
    """The first notice is held back for some seconds more than the second one waits."""
    Silence.objects.create(ends_at=database_now() + HOUR)
    tell("it")
    deliver(channel)
    Silence.objects.all().delete()
    tell("it", health=Health.OK)
    deliver(channel)
    later(channel)
    deliver(channel)
    assert (receiver.asked, states(channel)) == ([], ["dropped", "dropped"])


def test_many_silenced_alerts_delay_no_other(channel, receiver, monkeypatch):
    monkeypatch.setattr(notices, "MOST_AT_ONCE", 2)
    Silence.objects.create(ends_at=database_now() + HOUR, patterns=["silent*"])
    tell("silent 1", "silent 2", "silent 3", "loud")
    for _ in range(2):
        deliver(channel)
    assert states(channel) == ["waiting", "waiting", "waiting", "sent"]


def test_a_zone_that_this_machine_does_not_know_holds_nothing_back(channel, receiver):
    Channel.objects.update(zone="Mars/Base", quiet_from=time(0), quiet_until=time.max)
    tell("it")
    deliver(channel)
    assert states(channel) == ["sent"]


def test_a_channel_that_was_one_of_pings_drops_these(channel, receiver):
    for event, message in (("start", uuid4()), ("success", None)):
        columns = {"run": make_run().id, "event": event, "message": message}
        Notice.objects.create(channel=channel, not_before=database_now(), **columns)
    tell("it")
    deliver(channel)
    assert states(channel) == ["dropped", "dropped", "sent"]
    assert notices.waiting() == []


def test_a_start_that_failed_is_not_told_after_the_end(receiver):
    channel = Channel.objects.create(name="hc", kind="ping", url="HOOK")
    run, other = make_run().id, make_run().id
    for each in (run, other):
        Notice.objects.create(channel=channel, run=each, event="start", not_before=database_now())
    deliver(channel)  # the receiver knows no address with the id of a run
    receiver.pages |= {f"/hook?rid={run}": b"", f"/hook/start?rid={other}": b""}
    Notice.objects.create(channel=channel, run=run, event="success", not_before=database_now())
    later(channel)
    deliver(channel)
    assert states(channel) == ["dropped", "sent", "sent"]
    assert channel.notices.filter(run=run, event="start").get().error == notices.LATE_START


def test_it_sends_nothing_that_another_process_may_have_claimed_by_now(channel, receiver, monkeypatch):
    tell("it")
    with monkeypatch.context() as patch:
        patch.setattr(notices, "CLAIMED_FOR", timedelta(seconds=notices.DEADLINE))
        deliver(channel)
    assert (receiver.asked, states(channel)) == ([], ["sending"])
    later(channel)
    deliver(channel)
    assert states(channel) == ["sent"]


def test_quiet_hours_hold_messages_back(channel, receiver):
    now = database_now()
    quiet = {"quiet_from": (now - HOUR).time(), "quiet_until": (now + HOUR).time()}
    Channel.objects.update(zone="UTC", **quiet)
    tell("it")
    deliver(channel)
    assert (receiver.asked, states(channel)) == ([], ["waiting"])
    Channel.objects.update(quiet_until=(now - MINUTE).time())
    later(channel)
    deliver(channel)
    assert states(channel) == ["sent"]


def test_a_disabled_channel_sends_nothing_later(channel, receiver):
    tell("it")
    Channel.objects.update(is_enabled=False)
    deliver(channel)
    Channel.objects.update(is_enabled=True)
    deliver(channel)
    assert (receiver.asked, states(channel)) == ([], ["dropped"])


def test_a_message_has_the_end_of_the_log_and_a_link(channel, receiver, settings):
    settings.SITE_URL = "https://punctual.example"
    schedule = make_schedule("it")
    run = make_run(schedule, State.FAILED, reason="failed: ValueError: no")
    RunLog.objects.create(run=run, attempt=1, text="".join(f"line {number}\n" for number in range(100)))
    Watch.objects.update(looked_at=None)
    watching.look()
    later(channel)
    deliver(channel)
    body = receiver.bodies[0]
    assert (b"line 99" in body, b"line 80" in body, b"line 79" in body) == (True, True, False)
    assert f"https://punctual.example/admin/jobs/run/{run.id}/change/".encode() in body


def test_an_error_of_any_kind_is_a_failure(channel, receiver, settings):
    settings.CHANNEL_KEYS = {"HOOK": ["whsec_no key"]}
    tell("it")
    deliver(channel)
    channel.refresh_from_db()
    assert (states(channel), receiver.asked) == (["waiting"], [])
    assert channel.notices.get().not_before > database_now()
    assert "whsec_no key" not in channel.problem
    assert channel.problem


def test_pings_are_sent_in_order_and_once(receiver):
    watching.look()
    channel = Channel.objects.create(name="hc", kind="ping", url="HOOK")
    Channel.objects.update(created_at=database_now() - DAY)
    schedule = make_schedule("it")
    now = database_now()
    for minute, state in enumerate((State.SUCCEEDED, State.FAILED)):
        due = now - (10 - minute) * MINUTE
        make_run(schedule, state, due_at=due, started_at=now - MINUTE / 2, finished_at=now)
    Watch.objects.update(looked_at=None)
    watching.look()
    deliver(channel)
    paths = sorted(asked.split(" ")[1].partition("?")[0] for asked in receiver.asked)
    assert paths == ["/hook", "/hook/fail", "/hook/start", "/hook/start"]
    deliver(channel)
    assert len(receiver.asked) == 4
    runs: dict[object, list[str]] = {}
    for notice in channel.notices.order_by("id"):
        runs.setdefault(notice.run, []).append(notice.event)
    assert sorted(runs.values()) == [["start", "fail"], ["start", "success"]]


def test_an_alert_outlives_its_schedule(channel, receiver):
    tell("it")
    make_or_get("it").delete()
    deliver(channel)
    assert Alert.objects.get().schedule_id is None
    assert b"it is failing" in receiver.bodies[0]
