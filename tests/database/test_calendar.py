"""When a schedule is due next: every way of changing one is detected, and none fires anything."""

import threading
from contextlib import closing
from datetime import timedelta

import pytest
from django.core import serializers
from django.db import connection, transaction
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks, SolarSchedule

from jobs.beat import claim
from jobs.models import ChangedTiming, Policy, Run, database_now
from jobs.schedules import calendar
from tests.making import make_due, make_run, make_schedule
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def next_due(schedule):
    return Policy.objects.get(schedule=schedule).next_due_at


def test_it_gives_a_saved_schedule_its_next_due_moment():
    before = database_now()
    schedule = make_schedule(every=HOUR)
    assert before + HOUR <= next_due(schedule) <= database_now() + HOUR


def test_it_takes_the_grid_of_an_interval_from_its_start_time():
    start = timezone.now().replace(minute=7, second=0, microsecond=0) - 30 * HOUR
    schedule = make_schedule(every=HOUR, start_time=start)
    assert (next_due(schedule) - start) % HOUR == timedelta(0)
    assert database_now() < next_due(schedule) <= database_now() + HOUR


def test_it_waits_for_the_start_time():
    start = timezone.now() + 5 * HOUR
    assert next_due(make_schedule(every=HOUR, start_time=start)) == start


def test_it_takes_the_start_time_of_a_new_schedule_for_its_first_due_moment_if_it_is_on_time():
    start = timezone.now()
    schedule = make_schedule(every=30 * 24 * HOUR, start_time=start)
    assert next_due(schedule) == start
    assert [run.due_at for runs in claim.claim_due() for run in runs] == [start]
    assert next_due(schedule) == start + 30 * 24 * HOUR


@pytest.mark.parametrize("edit", ["start_time", "enabled"])
def test_it_takes_no_start_time_of_an_edited_schedule_for_a_due_moment(edit):
    start = timezone.now()
    schedule = make_schedule(every=HOUR, **({} if edit == "start_time" else {"start_time": start, "enabled": False}))
    schedule.start_time, schedule.enabled = start, True
    schedule.save()
    assert next_due(schedule) == start + HOUR


def test_it_reads_crontabs_in_their_own_zone():
    cron = {"minute": "30", "hour": "4", "timezone": "Asia/Kathmandu"}
    moment = next_due(make_schedule(cron=cron))
    assert (moment.hour, moment.minute) == (22, 45)


def test_it_gives_no_next_due_moment_to_a_schedule_that_is_disabled_or_over():
    assert next_due(make_schedule("off", enabled=False)) is None
    assert next_due(make_schedule("over", expires=timezone.now() - HOUR)) is None


def test_it_keeps_the_next_due_moment_when_something_else_is_edited():
    schedule = make_schedule(every=HOUR)
    before = next_due(schedule)
    schedule.description, schedule.args, schedule.queue = "other", "[1]", "slow"
    schedule.save()
    assert calendar.sweep() == 0
    assert next_due(schedule) == before


def _by_save(schedule):
    schedule.interval = IntervalSchedule.objects.create(every=2, period="hours")
    schedule.save()


def _by_update(schedule):
    interval = IntervalSchedule.objects.create(every=2, period="hours")
    PeriodicTask.objects.filter(pk=schedule.pk).update(interval=interval)


def _by_the_interval(schedule):
    schedule.interval.every, schedule.interval.period = 2, "hours"
    schedule.interval.save()


def _by_the_interval_s_update(schedule):
    IntervalSchedule.objects.filter(pk=schedule.interval_id).update(every=2, period="hours")


def _by_bulk_update(schedule):
    schedule.interval = IntervalSchedule.objects.create(every=2, period="hours")
    PeriodicTask.objects.bulk_update([schedule], ["interval"])


def _by_fixture(schedule):
    schedule.interval = IntervalSchedule.objects.create(every=2, period="hours")
    for row in serializers.deserialize("json", serializers.serialize("json", [schedule])):
        row.save()


@pytest.mark.parametrize(
    "change", [_by_save, _by_update, _by_the_interval, _by_the_interval_s_update, _by_bulk_update, _by_fixture]
)
def test_it_detects_a_change_and_fires_nothing(change):
    schedule = make_schedule(every=HOUR)
    change(schedule)
    calendar.sweep()
    left = next_due(schedule) - database_now()
    assert timedelta(minutes=119) < left <= 2 * HOUR
    assert list(claim.claim_due()) == []
    assert not Run.objects.exists()


def test_it_detects_a_saved_change_at_once():
    schedule = make_schedule(every=HOUR)
    _by_save(schedule)
    assert calendar.sweep() == 0
    crontab = CrontabSchedule.objects.create(minute="0", hour="4")
    daily = make_schedule("daily", crontab=crontab)
    crontab.hour = "5"
    crontab.save()
    assert next_due(daily).hour == 5
    through_proxy = Proxy.objects.get(name="daily")
    through_proxy.crontab = CrontabSchedule.objects.create(minute="0", hour="6")
    through_proxy.save()
    assert next_due(daily).hour == 6


def test_it_detects_schedules_that_were_created_in_bulk():
    interval = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"bulk {n}", task="tests.nothing", interval=interval) for n in range(30)
    )
    assert calendar.sweep() == 30
    assert Policy.objects.filter(next_due_at__gt=database_now()).count() == 30
    assert calendar.sweep() == 0


@pytest.mark.parametrize("how", ["save", "update"])
def test_it_fires_nothing_when_a_schedule_is_enabled_again(how):
    schedule = make_schedule(every=HOUR)
    PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=False)
    calendar.sweep()
    assert next_due(schedule) is None
    if how == "save":
        schedule.enabled = True
        schedule.save()
    else:
        PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=True)
        calendar.sweep()
    assert next_due(schedule) > database_now() + timedelta(minutes=59)
    assert list(claim.claim_due()) == []


def test_it_keeps_only_the_moment_that_was_due_before_the_change():
    schedule = make_schedule(every=HOUR)
    owed = make_due(schedule, ago=timedelta(seconds=5))
    schedule.interval = IntervalSchedule.objects.create(every=1, period="seconds")
    schedule.save()
    assert next_due(schedule) == owed
    (runs,) = claim.claim_due()
    assert [run.due_at for run in runs] == [owed]
    assert next_due(schedule) > owed + timedelta(seconds=5)


def test_it_flags_an_impossible_timing_with_the_reason_until_it_is_corrected():
    schedule = make_schedule(cron={"day_of_month": "31", "month_of_year": "2"})
    policy = Policy.objects.get(schedule=schedule)
    assert policy.next_due_at is None
    assert policy.invalid_reason
    schedule.crontab.month_of_year = "1"
    schedule.crontab.save()
    policy.refresh_from_db()
    assert (policy.invalid_reason, policy.next_due_at.month) == ("", 1)


def test_it_keeps_the_grid_of_an_interval_when_something_else_is_edited():
    schedule = make_schedule(every=24 * HOUR)
    before = next_due(schedule)
    schedule.expires = database_now() + 100 * HOUR
    schedule.save()
    assert next_due(schedule) == before
    schedule.interval = IntervalSchedule.objects.create(every=2, period="hours")
    schedule.save()
    assert next_due(schedule) < before


ZONE = "UPDATE django_celery_beat_crontabschedule SET timezone = 'Mars/Phobos'"
LATITUDE = "UPDATE django_celery_beat_solarschedule SET latitude = 'x'"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [(ZONE, "There is no time zone 'Mars/Phobos'"), (LATITUDE, "It cannot be read from the database")],
)
def test_it_flags_a_row_that_cannot_be_read_or_computed_and_detects_changes_of_all_others(statement, reason):
    if statement == LATITUDE and connection.vendor != "sqlite":
        pytest.skip("PostgreSQL stores only numbers in a column of numbers.")
    good = make_schedule("good", every=HOUR)
    sun = {"solar": SolarSchedule.objects.create(event="sunset", latitude=1, longitude=1)}
    timing = sun if statement == LATITUDE else {"crontab": CrontabSchedule.objects.create(minute="5")}
    bad = PeriodicTask.objects.create(name="bad", task="tests.nothing", **timing)
    with connection.cursor() as cursor:
        cursor.execute(statement)
    IntervalSchedule.objects.update(every=7200)
    assert calendar.sweep() == 2
    assert next_due(good) - database_now() > HOUR
    assert Policy.objects.get(schedule=bad.pk).invalid_reason.startswith(reason)
    assert next_due(bad.pk) is None
    assert calendar.sweep() == 0


def test_it_keeps_a_moment_that_was_due_before_the_row_could_not_be_read():
    schedule = make_schedule(cron={"minute": "5"})
    owed = make_due(schedule)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_crontabschedule SET timezone = 'Mars/Phobos'")
    calendar.sweep()
    assert next_due(schedule.pk) == owed
    assert [run.due_at for runs in claim.claim_due() for run in runs] == [owed]
    assert next_due(schedule.pk) is None
    assert Policy.objects.get().invalid_reason


def test_it_removes_a_policy_with_its_schedule_and_keeps_the_runs():
    schedule = make_schedule()
    make_due(schedule)
    (runs,) = claim.claim_due()
    PeriodicTask.objects.filter(pk=schedule.pk).delete()
    assert not Policy.objects.exists()
    run = Run.objects.get(id=runs[0].id)
    assert (run.schedule, run.schedule_name) == (None, "it")


class Proxy(PeriodicTask):
    class Meta:
        proxy = True
        app_label = "jobs"


def delete_in_sql() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_celery_beat_periodictask")
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize(
    "delete",
    [lambda: PeriodicTask.objects.all().delete(), lambda: Proxy.objects.all().delete(), delete_in_sql],
    ids=["in bulk", "through a proxy", "by SQL"],
)
def test_it_keeps_the_runs_of_a_schedule_however_it_is_deleted(delete):
    if delete is delete_in_sql and connection.vendor == "sqlite":
        pytest.skip("SQLite refuses the DELETE: a constraint cannot be changed there")
    run = make_run(make_schedule("gone"))
    make_due(PeriodicTask.objects.get())
    delete()
    assert not Policy.objects.exists()
    assert list(claim.claim_due()) == []
    run.refresh_from_db()
    assert (run.schedule, run.schedule_name) == (None, "gone")


def elsewhere(sql: str, go: threading.Event | None = None) -> threading.Thread:
    """Run one statement over another connection, in a savepoint of a transaction that ends after `go` is set."""

    def write() -> None:
        with closing(connection), transaction.atomic(), transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(sql)
            written.set()
            if go:
                assert go.wait(DEADLINE)

    written = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    assert written.wait(DEADLINE)
    return thread


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("table", ["periodictask SET start_time = '2040-01-01'", "intervalschedule SET every = 7200"])
def test_it_finds_the_changes_of_other_transactions(table, django_assert_max_num_queries):
    schedule = make_schedule()
    mark = calendar.find_changes(calendar.find_changes())
    with django_assert_max_num_queries(2):
        mark = calendar.find_changes(mark)
    elsewhere(f"UPDATE django_celery_beat_{table}").join()
    assert calendar.find_changes(mark) == mark  # after a change, the mark stays
    assert next_due(schedule) - database_now() > HOUR
    mark = calendar.find_changes(mark)
    with django_assert_max_num_queries(2):
        calendar.find_changes(mark)


@pytest.mark.django_db(transaction=True)
def test_it_compares_only_the_schedules_that_were_written():
    if connection.vendor == "sqlite":
        pytest.skip("SQLite does not tell which rows were written.")
    schedule = make_schedule()
    mark = calendar.find_changes(calendar.find_changes())
    elsewhere("INSERT INTO django_celery_beat_clockedschedule (clocked_time) VALUES ('2040-01-01')").join()
    Policy.objects.update(fingerprint="not compared")
    make_schedule("another", cron={"minute": "5"})
    mark = calendar.find_changes(mark)
    assert Policy.objects.get(schedule=schedule).fingerprint == "not compared"


@pytest.mark.django_db(transaction=True)
def test_it_finds_a_change_that_was_written_before_the_mark_and_committed_after_it():
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets one write at a time.")
    schedule, go = make_schedule(), threading.Event()
    mark = calendar.find_changes()
    writer = elsewhere("UPDATE django_celery_beat_intervalschedule SET every = 7200", go)
    PeriodicTask.objects.update(description="a younger transaction")
    for _ in range(3):
        mark = calendar.find_changes(mark)
    go.set()
    writer.join()
    calendar.find_changes(mark)
    assert next_due(schedule) - database_now() > HOUR


def test_it_writes_no_shared_row_when_a_schedule_is_saved():
    schedule = make_schedule(cron={"minute": "5"})
    PeriodicTasks.objects.all().delete()
    schedule.save()
    schedule.crontab.save()
    schedule.crontab.delete()
    assert not PeriodicTasks.objects.exists()


@pytest.fixture
def shared(monkeypatch):
    """A crontab that more schedules use than a save computes."""
    monkeypatch.setattr(calendar, "AT_ONCE", 3)
    monkeypatch.setattr(calendar, "SLICE", 4)
    crontab = CrontabSchedule.objects.create(minute="0", hour="4")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"{n}", task="tests.nothing", crontab=crontab) for n in range(10)
    )
    calendar.sweep()
    return crontab


def compute_all() -> list[int]:
    """Compute as beat does; returns how many marked schedules each step left."""
    left: list[int] = []
    while calendar.compute_marked():
        left.append(Policy.objects.stale().count())
    return left


def test_it_leaves_many_changes_of_one_save_to_beat_and_claims_none_of_them_before(shared):
    due = database_now() - timedelta(seconds=1)
    Policy.objects.filter(schedule__name__in=["8", "9"]).update(next_due_at=due)
    PeriodicTask.objects.filter(name="7").update(enabled=False)
    shared.hour = "5"
    shared.save()
    shared.save()
    assert list(claim.claim_due()) == []  # the new timing decides first
    calendar.find_changes()
    assert Policy.objects.stale().count() == 10
    assert list(claim.claim_due()) == []
    calendar.compute_marked()
    assert not Policy.objects.filter(schedule__name__in=["8", "9"]).stale().exists()  # they are due
    assert compute_all() == [2, 0]
    assert sorted(run.due_at for runs in claim.claim_due() for run in runs) == [due, due]
    hours = [each and each.hour for each in Policy.objects.order_by("pk").values_list("next_due_at", flat=True)]
    assert hours == [5] * 7 + [None] + [5] * 2
    assert calendar.sweep() == 0


def test_it_computes_many_changes_as_of_the_moment_of_their_save(shared):
    shared.minute, shared.hour = "*", "*"
    shared.save()
    change = database_now() - 2 * HOUR
    ChangedTiming.objects.update(changed_at=change)
    calendar.find_changes()
    compute_all()
    assert {each > change + timedelta(minutes=1) for each in Policy.objects.values_list("next_due_at", flat=True)} == {
        False
    }


def test_it_counts_from_the_last_of_several_saves_also_for_a_schedule_that_is_saved_meanwhile(shared):
    shared.hour = "5"
    shared.save()
    ChangedTiming.objects.update(changed_at=database_now() - HOUR)
    past = database_now() - timedelta(minutes=10)
    shared.minute, shared.hour = str(past.minute), str(past.hour)
    shared.save()
    touched = PeriodicTask.objects.get(name="3")
    touched.save()
    calendar.find_changes()
    compute_all()
    assert list(claim.claim_due()) == []
    change = Policy.objects.get(schedule=touched).timing_since
    assert set(Policy.objects.values_list("timing_since", flat=True)) == {change}


@pytest.mark.django_db(transaction=True)
def test_it_computes_many_changes_in_the_end_though_a_policy_is_locked_meanwhile(shared):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets one write at a time.")
    mark, go = calendar.find_changes(calendar.find_changes()), threading.Event()
    pk = Policy.objects.latest("pk").pk
    locking = elsewhere(f"SELECT 1 FROM jobs_policy WHERE schedule_id = {pk} FOR UPDATE", go)
    shared.hour = "5"
    shared.save()
    calendar.find_changes(mark)
    compute_all()
    go.set()
    locking.join()
    calendar.find_changes(mark)
    compute_all()
    assert {each.hour for each in Policy.objects.values_list("next_due_at", flat=True)} == {5}


def test_it_finds_schedules_created_in_bulk_slice_by_slice(monkeypatch):
    monkeypatch.setattr(calendar, "SLICE", 4)
    interval = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"{n}", task="tests.nothing", interval=interval) for n in range(10)
    )
    now = database_now()
    calendar.find_changes()
    assert Policy.objects.filter(next_due_at__gt=now).count() == 4
    compute_all()
    assert Policy.objects.filter(next_due_at__gt=now).count() == 10
    assert calendar.sweep() == 0
