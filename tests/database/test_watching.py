"""Does a look find each change of health once, and write whom to tell? With rows as beat and the workers write them."""

import threading
from datetime import timedelta

import pytest
from django.db import DataError, IntegrityError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from jobs.alerts import changes, watching
from jobs.beat import claim
from jobs.models import (
    Alert,
    Channel,
    Condition,
    Node,
    Notice,
    Policy,
    Run,
    State,
    Trigger,
    UsualRuntime,
    Watch,
    database_now,
)
from jobs.models.runs import new_run_id
from jobs.monitoring import health
from jobs.rules.health import Finding, Health
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=seconds) for seconds in (1, 60, 3600, 86_400))


@pytest.fixture(autouse=True)
def _nodes() -> None:
    """A beat and a worker, which are well."""
    for kind in (Node.Kind.BEAT, Node.Kind.WORKER):
        Node.objects.create(name=f"{kind}@here", kind=kind, queues="celery", version="", pid=1)


def look() -> list[tuple[str, str, str]]:
    """Look now; returns the changes of schedules: the name, the health before, and the one after."""
    before = set(Alert.objects.values_list("pk", flat=True))
    Watch.objects.update(looked_at=None)
    assert watching.look() or watching.look()  # the first one makes the row
    changes = Alert.objects.filter(schedule__isnull=False).exclude(pk__in=before).order_by("id")
    return list(changes.values_list("name", "before", "health"))


def ended(
    schedule: PeriodicTask, state: State, ago: timedelta = SECOND, took: timedelta = SECOND, **columns: object
) -> Run:
    now = database_now()
    times = {"due_at": now - ago, "last_due_at": now - ago, "started_at": now - took, "finished_at": now}
    return make_run(schedule, state, **{**times, **columns})


def test_it_reports_each_change_once():
    schedule = make_schedule("invoices")
    run = ended(schedule, State.FAILED, 2 * HOUR, reason="failed: ValueError: no")
    assert look() == [("invoices", "ok", "failing")]
    alert = Alert.objects.get(schedule__isnull=False)
    assert (alert.run, alert.sentence, alert.expected, alert.count) == (
        run.id,
        "failed: ValueError: no",
        "It succeeds.",
        1,
    )
    assert (alert.due_at, alert.since, alert.job) == (run.due_at, run.due_at, "tests.nothing")
    assert Condition.objects.get(schedule__isnull=False).health == "failing"
    assert look() == []
    ended(schedule, State.FAILED, HOUR)
    assert look() == []
    ended(schedule, State.SUCCEEDED)
    assert look() == [("invoices", "failing", "ok")]
    assert not Condition.objects.filter(schedule__isnull=False).exists()
    assert look() == []


def test_a_schedule_fails_when_more_runs_in_a_row_have_failed_than_it_may():
    schedule = make_schedule("it", policy={"failures_allowed": 1})
    ended(schedule, State.FAILED, 5 * HOUR)
    assert look() == []
    ended(schedule, State.LOST, 4 * HOUR)
    assert look() == [("it", "ok", "failing")]
    assert Alert.objects.get(schedule__isnull=False).count == 2
    ended(schedule, State.CANCELLED, 3 * HOUR)  # says nothing
    ended(schedule, State.SKIPPED, 2 * HOUR, reason="overlap: it was still running")
    ended(schedule, State.SUCCEEDED, HOUR, trigger=Trigger.BACKFILL)
    assert look() == []
    ended(schedule, State.FAILED, MINUTE)  # one failure is fewer than two, but it has not been well since
    assert look() == []
    ended(schedule, State.SUCCEEDED, trigger=Trigger.MANUAL)
    assert look() == [("it", "failing", "ok")]


@pytest.mark.parametrize("state", [State.WAITING, State.QUEUED])
def test_a_run_that_does_not_start_is_late(state):
    schedule = make_schedule("it", policy={"late_after": MINUTE})
    run = make_run(schedule, state, due_at=database_now() - 50 * SECOND, reason="no worker consumes queue `x`")
    assert look() == []
    Run.objects.update(due_at=F("due_at") - 30 * SECOND)
    assert look() == [("it", "ok", "late")]
    alert = Alert.objects.get(schedule__isnull=False)
    assert alert.expected == "It starts within 1 min."
    assert alert.sentence.startswith("It has not started 1 min 2")
    assert alert.sentence.endswith("after its time: no worker consumes queue `x`")
    Run.objects.filter(id=run.id).update(state=State.RUNNING, started_at=database_now())
    assert look() == [("it", "late", "ok")]
    assert Alert.objects.filter(schedule__isnull=False).latest("id").sentence == "It is running."


def test_a_moment_that_no_beat_claims_is_late():
    schedule = make_schedule("it")
    make_due(schedule, HOUR)
    assert look() == [("it", "ok", "late")]
    assert (
        Alert.objects.get(schedule__isnull=False).sentence
        == "It has not started 1 h after its time: no beat has claimed it"
    )


def test_a_missed_moment_is_late_until_the_next_run_starts():
    schedule = make_schedule("it", policy={"catch_up": "none"})
    make_due(schedule, HOUR / 2)
    list(claim.claim_due())
    assert look() == [("it", "ok", "late")]
    assert Alert.objects.get(schedule__isnull=False).sentence.startswith(
        "missed: no beat claimed this within 60 seconds"
    )
    make_run(schedule, State.RUNNING)
    assert look() == [("it", "late", "ok")]


def test_waiting_on_purpose_is_not_late():
    jittered = make_schedule("jittered", policy={"late_after": MINUTE, "jitter": HOUR})
    make_run(jittered, due_at=database_now() - 5 * MINUTE)
    retried = make_schedule("retried")
    make_run(retried, attempt=2, due_at=database_now() - HOUR, not_before=database_now() + HOUR)
    backfilled = make_schedule("backfilled")
    make_run(backfilled, trigger=Trigger.BACKFILL, due_at=database_now() - 90 * DAY)
    paused = make_schedule("paused")
    make_due(paused, HOUR)
    Policy.objects.filter(schedule=paused).pause("ada", until=database_now() + HOUR, catch_up="all")
    Policy.objects.filter(schedule=paused).update(paused_at=database_now() - DAY)
    list(claim.claim_due())
    assert look() == []


def test_a_run_may_take_no_longer_than_its_limit():
    limited = make_schedule("limited", policy={"longest_runtime": MINUTE})
    free = make_schedule("free")
    usual = make_schedule("usual")
    UsualRuntime.objects.create(schedule=usual, runs=20, longest=MINUTE, shortest=None)
    for schedule in (limited, free, usual):
        make_run(schedule, State.RUNNING, started_at=database_now() - 2 * MINUTE)
    assert sorted(look()) == [("limited", "ok", "slow"), ("usual", "ok", "slow")]
    Run.objects.filter(schedule=limited).update(state=State.SUCCEEDED, finished_at=database_now())
    assert look() == [("limited", "slow", "ok")]


def test_its_own_history_says_what_is_suspicious():
    schedule = make_schedule("it")
    for hours in range(2, 22):
        ended(schedule, State.SUCCEEDED, hours * HOUR, took=30 * SECOND)
    assert look() == []
    usual = UsualRuntime.objects.get()
    assert (usual.runs, usual.shortest, usual.longest) == (20, 10 * SECOND, 90 * SECOND)
    ended(schedule, State.SUCCEEDED, HOUR, took=9 * SECOND)
    assert look() == [("it", "ok", "short")]
    ended(schedule, State.SUCCEEDED, MINUTE, took=11 * SECOND)
    assert look() == [("it", "short", "ok")]
    Policy.objects.update(shortest_runtime=timedelta(0))  # its own limit replaces the usual one
    ended(schedule, State.SUCCEEDED, took=SECOND)
    assert look() == []


def test_the_history_of_another_job_says_nothing():
    schedule = make_schedule("it", "tests.slow")
    for hours in range(2, 22):
        ended(schedule, State.SUCCEEDED, hours * HOUR, took=30 * SECOND, task="tests.slow")
    assert look() == []
    assert UsualRuntime.objects.get().shortest == 10 * SECOND
    schedule.task = "tests.nothing"
    schedule.save()
    run = make_run(schedule, State.RUNNING, started_at=database_now() - HOUR)
    assert look() == []
    Run.objects.filter(pk=run.pk).delete()
    ended(schedule, State.SUCCEEDED, HOUR)
    assert look() == []
    assert UsualRuntime.objects.get().shortest is None


def test_what_is_unusual_stays_so_when_its_schedule_is_saved():
    schedule = make_schedule("it")
    for hours in range(2, 22):
        ended(schedule, State.SUCCEEDED, hours * HOUR, took=30 * SECOND)
    Run.objects.update(finished_at=F("finished_at") - HOUR, started_at=F("started_at") - HOUR)
    make_run(schedule, State.RUNNING, started_at=database_now() - HOUR)
    health.measure([schedule.pk], database_now())
    assert look() == [("it", "ok", "slow")]
    schedule.save()
    assert look() == []


def test_a_missed_moment_does_not_hide_that_earlier_runs_failed():
    schedule = make_schedule("it", policy={"failures_allowed": 1})
    for hours in (5, 4):
        ended(schedule, State.FAILED, hours * HOUR)
    assert look() == [("it", "ok", "failing")]
    ended(schedule, State.SKIPPED, 3 * HOUR, reason="missed: no beat claimed this", started_at=None)
    assert look() == []
    run = make_run(schedule, State.RUNNING)
    assert look() == []
    Run.objects.filter(pk=run.pk).update(state=State.SUCCEEDED, finished_at=database_now())
    assert look() == [("it", "failing", "ok")]


def test_a_moment_of_a_pause_is_not_late_while_no_beat_is_there():
    schedule = make_schedule("it")
    Policy.objects.pause("ada")
    Policy.objects.update(paused_at=database_now() - HOUR)
    make_due(schedule, HOUR / 2)
    assert look() == []
    make_due(schedule, 2 * HOUR)  # before the pause
    assert look() == [("it", "ok", "late")]


def test_a_schedule_that_cannot_run_is_blocked_until_it_can():
    schedule = make_schedule("it", policy={"invalid_reason": "There is no job tests.none."})
    assert look() == [("it", "ok", "blocked")]
    assert Alert.objects.get(schedule__isnull=False).sentence == "There is no job tests.none."
    PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=False)
    assert look() == [("it", "blocked", "ok")]
    assert (
        Alert.objects.filter(schedule__isnull=False).latest("id").sentence
        == "It is disabled, so nothing is expected of it."
    )


def test_a_long_pause_is_reported():
    schedule = make_schedule("it")
    Policy.objects.pause("ada", "stocktaking")
    assert look() == []
    Policy.objects.update(paused_at=database_now() - 8 * DAY)
    assert look() == [("it", "ok", "paused")]
    assert Alert.objects.get(schedule__isnull=False).sentence == "It is paused by ada: stocktaking."
    Policy.objects.filter(schedule=schedule).resume()
    assert look() == [("it", "paused", "ok")]


def test_the_last_run_of_a_limited_schedule_may_fail():
    """It disables the schedule, so nothing else would tell."""
    schedule = make_schedule("it", one_off=True)
    ended(schedule, State.FAILED)
    PeriodicTask.objects.update(enabled=False)
    assert look() == [("it", "ok", "failing")]


def test_a_look_costs_nothing_for_schedules_without_news():
    ended(make_schedule("it"), State.SUCCEEDED, HOUR, HOUR)
    Run.objects.update(finished_at=F("finished_at") - HOUR)
    look()
    with CaptureQueriesContext(connection) as without:
        look()
    for number in range(30):
        ended(make_schedule(f"schedule {number}"), State.SUCCEEDED)
    look()
    Run.objects.update(finished_at=F("finished_at") - HOUR)
    with CaptureQueriesContext(connection) as quiet:
        assert look() == []
    assert len(quiet) == len(without)


def test_one_look_in_ten_seconds():
    watching.look()  # makes the row
    assert watching.look()
    assert not watching.look()
    Watch.objects.update(looked_at=database_now() + HOUR)  # the clock went back
    assert watching.look()


def test_a_look_that_was_overtaken_writes_nothing():
    schedule = make_schedule("it")
    watching.look()
    overtaken = Watch.begin(0.0)
    newer = Watch.begin(0.0)
    seen = changes.of_schedules({schedule: Finding(Health.LATE, "It is late.")})
    assert changes.record(overtaken, seen, database_now()) == []
    assert not Alert.objects.exists()
    assert len(changes.record(newer, seen, database_now())) == 1


@pytest.mark.django_db(transaction=True)
def test_any_number_of_beats_report_a_change_once():
    for number in range(20):
        ended(make_schedule(f"schedule {number}"), State.FAILED)
    Channel.objects.create(name="mail")
    watching.look()
    Watch.objects.update(looked_at=None)
    begin = threading.Barrier(4)

    def beat() -> None:
        try:
            begin.wait()
            for _ in range(3):
                watching.look(0.0)
        finally:
            connections.close_all()

    beats = [threading.Thread(target=beat) for _ in range(4)]
    for each in beats:
        each.start()
    for each in beats:
        each.join()
    assert Alert.objects.count() == Condition.objects.count() == Notice.objects.count() == 20


def test_a_channel_hears_what_its_rules_choose():
    for name, task in (("Invoices", "billing.send"), ("Backup", "jobs.backup_database")):
        ended(make_schedule(name, task), State.FAILED)
    Channel.objects.create(name="all")
    Channel.objects.create(name="invoices", patterns=["Inv*"])
    Channel.objects.create(name="job", patterns=["jobs.*"])
    Channel.objects.create(name="late", healths=["late"])
    Channel.objects.create(name="failing", healths=["failing"])
    Channel.objects.create(name="off", is_enabled=False)
    Channel.objects.create(name="system", patterns=["nothing"])
    Channel.objects.create(name="ping", kind="ping")
    look()
    told = sorted(Notice.objects.filter(alert__isnull=False).values_list("channel__name", "alert__name"))
    both = [("all", "Backup"), ("all", "Invoices"), ("failing", "Backup"), ("failing", "Invoices")]
    assert told == sorted([*both, ("invoices", "Invoices"), ("job", "Backup")])


def test_parts_of_the_system_are_told_to_channels_that_want_them():
    Channel.objects.create(name="yes", patterns=["nothing"])
    Channel.objects.create(name="no", of_system=False)
    watching.look()
    down = {"worker": Finding(Health.DOWN, "No worker runs.")}
    changes.record(Watch.begin(0.0), changes.of_system(down), database_now())
    changes.record(Watch.begin(0.0), changes.of_system({}), database_now())
    told = list(Notice.objects.order_by("id").values_list("channel__name", "alert__subject", "alert__health"))
    assert told == [("yes", "worker", "down"), ("yes", "worker", "ok")]


def test_a_channel_is_not_told_of_its_own_fault():
    Channel.objects.create(name="broken")
    Channel.objects.create(name="other")
    watching.look()
    down = {"channel:broken": Finding(Health.DOWN, "It cannot be reached.")}
    changes.record(Watch.begin(0.0), changes.of_system(down), database_now())
    assert list(Notice.objects.values_list("channel__name", flat=True)) == ["other"]


def test_pings_tell_each_start_and_end_once():
    schedule = make_schedule("Backup")
    channel = Channel.objects.create(name="hc", kind="ping", patterns=["Backup"])
    Channel.objects.update(created_at=database_now() - DAY)
    good, bad = ended(schedule, State.SUCCEEDED), ended(schedule, State.EXPIRED, started_at=None)
    running = make_run(schedule, State.RUNNING)
    ended(schedule, State.SKIPPED, HOUR, started_at=None)
    ended(make_schedule("other"), State.SUCCEEDED)
    look()
    look()
    told = {(notice.run, notice.event) for notice in channel.notices.all()}
    assert told == {(good.id, "start"), (good.id, "success"), (bad.id, "fail"), (running.id, "start")}
    assert channel.notices.count() == 4


def test_a_channel_is_not_pinged_about_what_was_before_it():
    schedule = make_schedule("it")
    ended(schedule, State.SUCCEEDED, took=MINUTE / 2)
    Channel.objects.create(name="hc", kind="ping")
    look()
    ended(schedule, State.FAILED, took=timedelta(0))
    look()
    assert sorted(Notice.objects.values_list("event", flat=True)) == ["fail", "start"]


def test_an_end_that_is_committed_late_is_seen():
    look()
    ended(make_schedule("it"), State.FAILED)
    Run.objects.update(finished_at=F("finished_at") - MINUTE / 2)  # before the last look
    assert look() == [("it", "ok", "failing")]


def test_a_backfill_may_take_long_and_fail():
    schedule = make_schedule("it", policy={"longest_runtime": MINUTE})
    make_run(schedule, State.RUNNING, trigger=Trigger.BACKFILL, started_at=database_now() - HOUR)
    ended(schedule, State.FAILED, HOUR, trigger=Trigger.BACKFILL)
    assert look() == []


def test_an_alert_shows_no_secret(settings):
    settings.JOB_SECRETS = {"CANARY": "canary-of-a-test"}
    ended(make_schedule("it"), State.FAILED, reason="failed: ValueError: canary-of-a-test")
    look()
    texts = [*Alert.objects.values_list("sentence", flat=True), *Condition.objects.values_list("sentence", flat=True)]
    assert "canary" not in "".join(texts)


def test_who_was_told_of_an_illness_is_told_of_its_end_after_a_new_name():
    schedule = make_schedule("Invoices")
    Channel.objects.create(name="invoices", patterns=["Invoices"])
    Channel.objects.create(name="other", patterns=["Other"])
    ended(schedule, State.FAILED, HOUR)
    look()
    PeriodicTask.objects.update(name="Bills")
    ended(schedule, State.SUCCEEDED)
    look()
    told = Notice.objects.order_by("id").values_list("channel__name", "alert__name", "alert__health")
    assert list(told) == [("invoices", "Invoices", "failing"), ("invoices", "Bills", "ok")]


def test_a_recovery_tells_since_when_it_was_ill():
    schedule = make_schedule("it")
    ended(schedule, State.FAILED, HOUR)
    look()
    ended(schedule, State.SUCCEEDED)
    look()
    ill, well = Alert.objects.filter(schedule=schedule).order_by("id")
    assert ill.since == well.since < ill.at


def test_the_health_of_one_schedule_can_be_asked():
    schedule = make_schedule("it")
    found = health.health_of(schedule, database_now())
    assert found is not None
    assert found.health is Health.OK
    ended(schedule, State.FAILED)
    found = health.health_of(schedule, database_now())
    assert found is not None
    assert found.health is Health.FAILING


def test_a_failed_look_is_repeated():
    """What a look that died has not seen, the next one sees."""
    ended(make_schedule("it"), State.FAILED)
    watching.look()
    with transaction.atomic():
        assert Watch.begin(0.0) is not None  # and its process dies
    assert look() == [("it", "ok", "failing")]


def test_a_long_look_delays_the_next_one_but_not_for_long():
    assert [watching._gap(10.0, took) for took in (0.1, 3.0, 3600.0)] == [10.0, 30.0, 60.0]


@pytest.mark.django_db(transaction=True)
def test_beat_sends_no_dead_man_ping_after_a_look_that_failed():
    def fail(*_: object) -> None:
        raise OperationalError("The database is away.")

    look()
    with connection.execute_wrapper(fail):
        assert not watching._watch(True)
    assert not watching._watch(False)  # no look is due
    Watch.objects.update(looked_at=None)
    assert watching._watch(False)
    assert watching._watch(True)


def test_a_channel_that_gets_no_thread_gets_one_later():
    channel = Channel.objects.create(name="hook", kind="webhook", url="HOOK")
    Notice.objects.create(channel=channel, run=new_run_id(), event="start", not_before=database_now())
    before = threading.stack_size(1 << 46)  # more than any machine has
    try:
        with pytest.raises(RuntimeError, match="thread"):
            watching.send()
    finally:
        threading.stack_size(before)
    assert channel.pk not in watching._sending


def test_a_channel_with_unusable_rules_stops_no_other():
    ended(make_schedule("it"), State.FAILED)
    Channel.objects.create(name="unusable", patterns=[1, None, []], healths=[[], {}])
    Channel.objects.create(name="mail")
    assert look() == [("it", "ok", "failing")]
    assert list(Notice.objects.filter(alert__schedule__isnull=False).values_list("channel__name", flat=True)) == [
        "mail"
    ]


@pytest.mark.parametrize("column", ["late_after", "longest_runtime", "shortest_runtime", "longest_pause"])
@pytest.mark.parametrize("value", [timedelta(days=999_999_999), timedelta(seconds=-1)])
def test_no_absurd_limit_of_one_schedule_stops_the_looks_at_all(column, value):
    """The forms refuse it; a script could write it."""
    make_schedule("it")
    with pytest.raises((IntegrityError, DataError, OverflowError)), transaction.atomic():
        Policy.objects.update(**{column: value})
    Policy.objects.update(jitter=timedelta(days=100_000_000))
    assert look() == []
