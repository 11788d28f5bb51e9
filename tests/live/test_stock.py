"""The faults of django-celery-beat's own scheduler, one in each test: it fails there, and works here.

The stock scheduler runs in this process, on the test's own database and broker, one tick at a time. If its failure
depends on luck or takes minutes, the test only shows that ours works. S1 to S22 number the faults; S21 is on results.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery, current_app
from django.contrib.admin import AdminSite
from django.contrib.auth.models import Permission, User
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.models import QuerySet
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django_celery_beat.admin import PeriodicTaskAdmin, PeriodicTaskForm
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks
from django_celery_beat.schedulers import DatabaseScheduler
from django_celery_beat.signals import signals_connect
from django_celery_beat.tzcrontab import TzAwareCrontab

from jobs.beat.scheduler import Scheduler
from jobs.models import Policy, Run, State, database_now
from jobs.rules.crontab import Crontab
from jobs.rules.errors import Invalid
from jobs.rules.occurrences import Spec, occurrences
from jobs.schedules import calendar, entries
from tests.making import make_due, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Stock(DatabaseScheduler):
    """The stock scheduler, limited to the schedules that are due now."""

    def __init__(self, app: Any = current_app) -> None:
        app.loader.import_default_modules()
        super().__init__(app=app)
        self._finalize.cancel()  # or each saves itself when the tests end

    def beat(self, ticks: int = 1000) -> None:
        """Send the due schedules; nothing is saved before `sync`, as in a real beat within its three minutes."""
        while ticks and not self.tick():
            ticks -= 1


def ours() -> Scheduler:
    scheduler = Scheduler(app=current_app)
    scheduler.tick()
    return scheduler


def make_overdue(count: int, **options: Any) -> list[PeriodicTask]:
    """Schedules that both schedulers find due now, for the first time in a day."""
    schedules = [make_schedule(f"s{number}", **options) for number in range(count)]
    PeriodicTask.objects.update(last_run_at=database_now() - DAY)
    for schedule in schedules:
        make_due(schedule)
    return schedules


@contextmanager
def refusing(redis) -> Iterator[None]:
    """Make the broker refuse messages."""
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


def test_s01_it_sends_each_occurrence_once_with_two_beats(redis):
    make_overdue(20)
    first, second = Stock(), Stock()
    first.schedule, second.schedule  # noqa: B018 - both have read the schedules before either acts
    first.beat()
    second.beat()
    assert redis.llen("celery") == 2 * 20
    redis.flushdb()
    ours()
    ours()
    assert redis.llen("celery") == Run.objects.count() == 20


def test_s02_it_sends_nothing_twice_when_killed_in_a_burst(redis, processes, eventually):
    make_overdue(20)
    for _ in range(2):  # the first is gone without a word, as after `kill -9`; it saves after its first sending
        Stock().beat()
    assert redis.llen("celery") == 20 + 19
    redis.flushdb()
    every = PeriodicTask.objects.first().interval
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"more{number}", task="tests.nothing", interval=every) for number in range(1500)
    )
    calendar.sweep()
    Policy.objects.update(next_due_at=database_now())
    beat = processes.start_beat()
    eventually(lambda: Run.objects.filter(state=State.QUEUED).exists())
    beat.kill()
    processes.start_beat()
    eventually(lambda: Run.objects.filter(state=State.QUEUED).count() == 1520)
    processes.start_worker("--pool=solo")
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == 1520)
    assert Run.objects.count() == 1520
    assert set(Run.objects.values_list("attempt", flat=True)) == {1}


def test_s03_it_neither_loses_nor_counts_a_run_that_the_broker_did_not_take(redis):
    (schedule,) = make_overdue(1)
    with refusing(redis):
        stock = Stock()
        stock.beat()
        stock.sync()
    stock.beat()
    schedule.refresh_from_db()
    assert (redis.llen("celery"), schedule.total_run_count) == (0, 1)
    PeriodicTask.objects.update(total_run_count=0)
    with refusing(redis):
        ours()
    run = Run.objects.get()
    assert run.state == State.WAITING
    Run.objects.update(not_before=database_now())  # the ten seconds of a sender have passed
    ours()
    run.refresh_from_db()
    assert (run.state, redis.llen("celery")) == (State.QUEUED, 1)


def test_s04_it_catches_up_a_daily_job_after_an_outage_of_hours(redis):
    now = database_now()
    missed = next(
        now - hours * HOUR for hours in (4, 5) if (now - hours * HOUR).hour != 4
    )  # it reads that hour's always
    cron = {"minute": "0", "hour": str(missed.hour)}
    schedule = make_schedule(cron=cron)
    due_at = missed.replace(minute=0, second=0, microsecond=0)
    PeriodicTask.objects.update(last_run_at=due_at - DAY)
    Stock().beat()
    assert redis.llen("celery") == 0
    Policy.objects.update(next_due_at=due_at, timing_since=due_at - DAY)
    ours()
    assert (Run.objects.get().due_at, redis.llen("celery")) == (due_at, 1)
    assert Policy.objects.get(schedule=schedule).next_due_at == due_at + DAY


BAD_ROWS: dict[str, Callable[[QuerySet[PeriodicTask]], Any]] = {
    "headers that are a list": lambda row: row.update(headers="[]"),
    "headers that are a text": lambda row: row.update(headers='"x"'),
    "no schedule": lambda row: row.update(interval=None),
    "an interval without end": lambda row: IntervalSchedule.objects.filter(periodictask__in=row).update(
        every=10**9, period="days"
    ),
}


@pytest.mark.parametrize("spoil", BAD_ROWS.values(), ids=BAD_ROWS)
def test_s05_it_goes_on_when_a_row_is_bad(redis, spoil):
    bad = make_schedule("bad", every=DAY)
    make_overdue(3)
    spoil(PeriodicTask.objects.filter(pk=bad.pk))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, it ends beat
        Stock().beat()
    redis.flushdb()
    calendar.sweep()
    Policy.objects.filter(schedule=bad).update(next_due_at=database_now())
    ours()
    assert Run.objects.filter(state=State.QUEUED).exclude(schedule=bad).count() == 3
    assert Policy.objects.get(schedule=bad).invalid_reason


@pytest.mark.parametrize("month", ["2", "4,6"])
def test_s06_it_refuses_a_crontab_that_is_never_due(month):
    row = CrontabSchedule(day_of_month="31", month_of_year=month)
    row.full_clean()
    with pytest.raises(Invalid):
        calendar.timing_of(row, database_now())


@pytest.mark.parametrize("field", calendar.CRONTAB_FIELDS)
@pytest.mark.parametrize("text", ["", ">", ">5", "1-"])
def test_s06_it_refuses_a_crontab_that_cannot_be_read(field, text):
    with pytest.raises(Invalid):
        calendar.timing_of(CrontabSchedule(**{field: text}), database_now())


def test_s07_it_does_not_count_a_run_that_could_not_be_sent(redis):
    (schedule,) = make_overdue(1, task="tests.note", kwargs={"nonsense": 1})
    stock = Stock()
    stock.beat()
    stock.sync()
    schedule.refresh_from_db()
    assert (redis.llen("celery"), schedule.total_run_count) == (0, 1)
    PeriodicTask.objects.update(total_run_count=0, last_run_at=None)
    ours()
    schedule.refresh_from_db()
    assert (schedule.total_run_count, schedule.last_run_at) == (0, None)
    assert Run.objects.get().reason.startswith("invalid: The arguments do not fit")


def test_s08_it_fires_nothing_because_a_schedule_was_enabled_or_edited(redis):
    schedule = make_schedule(enabled=False)
    PeriodicTask.objects.update(last_run_at=database_now() - DAY)
    PeriodicTasks.update_changed()
    stock = Stock()
    stock.beat()
    ours()
    PeriodicTask.objects.update(enabled=True)
    PeriodicTasks.update_changed()
    stock.beat()
    assert redis.llen("celery") == 1
    redis.flushdb()
    ours()
    assert not Run.objects.exists()
    assert Policy.objects.get(schedule=schedule).next_due_at > database_now() + HOUR / 2


def test_s08_it_does_not_fire_at_a_start_time_that_is_not_in_the_crontab(redis):
    start = database_now() - MINUTE
    cron = {"minute": "59", "hour": str((start - HOUR).hour)}
    make_schedule(cron=cron, start_time=start)
    PeriodicTask.objects.update(last_run_at=None)
    ours()
    assert not Run.objects.exists()


def test_s09_it_lets_two_people_save_at_the_same_time():
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    first, second = make_schedule("first"), make_schedule("second", cron={"minute": "5"})

    def from_elsewhere(save: Callable[[], Any]) -> str:
        """The outcome of a save over another connection that waits for no lock."""
        result = []

        def work() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '300ms'")
            try:
                save()
                result.append("saved")
            except OperationalError:
                result.append("waited in vain")
            finally:
                connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return result[0]

    PeriodicTasks.update_changed()
    with transaction.atomic():
        first.save()
        first.interval.save()
        assert from_elsewhere(lambda: (second.save(), second.crontab.save())) == "saved"
        PeriodicTasks.update_changed()  # as each stock save does
        assert from_elsewhere(PeriodicTasks.update_changed) == "waited in vain"


def idle_queries() -> int:
    """The least of three ticks: what a tick does every other second may fall into one of them."""
    scheduler, counts = ours(), []
    for _ in range(3):
        with CaptureQueriesContext(connection) as captured:
            scheduler.tick()
        counts.append(len(captured))
    return min(counts)


def test_s10_it_takes_as_few_queries_for_fifty_schedules_as_for_one():
    make_schedule("one")
    few = idle_queries()
    for number in range(50):
        make_schedule(f"s{number}")
    assert idle_queries() == few < 10


def test_s11_it_takes_few_queries_to_dispatch_many(redis):
    every = make_overdue(20)[0].interval
    stock = Stock()
    with CaptureQueriesContext(connection) as captured:
        stock.beat()
        stock.sync()
    assert (redis.llen("celery"), len(captured) > 20) == (20, True)
    redis.flushdb()
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"more{number}", task="tests.nothing", interval=every) for number in range(480)
    )
    calendar.sweep()
    Policy.objects.update(next_due_at=database_now())
    scheduler = Scheduler(app=current_app)
    with CaptureQueriesContext(connection) as captured:
        scheduler.tick()
    assert redis.llen("celery") == 500
    assert len(captured) < 500 / 8  # the first tick also installs entries, and rechecks all schedules


def test_s12_it_keeps_an_interval_on_its_grid_however_late_a_tick_comes(redis):
    (schedule,) = make_overdue(1, every=HOUR)
    due_at = database_now() - SECOND / 4
    PeriodicTask.objects.update(last_run_at=due_at - HOUR)
    make_due(schedule, ago=database_now() - due_at)
    stock = Stock()
    stock.beat()
    stock.sync()
    schedule.refresh_from_db()
    assert redis.llen("celery") == 1
    assert schedule.last_run_at > due_at + 0.2 * SECOND  # from which its next run is counted
    ours()
    policy = Policy.objects.get()
    assert (policy.next_due_at - Run.objects.get().due_at) == HOUR


def stock_runs(fields: dict[str, str], zone: str, start: datetime, end: datetime) -> list[datetime]:
    """The minutes at which the stock scheduler, always awake and on time, runs a crontab."""
    now, runs = start, []
    schedule = TzAwareCrontab(**fields, tz=ZoneInfo(zone), app=current_app)
    schedule.nowfun = lambda: now.astimezone(ZoneInfo(zone))
    last = start - MINUTE
    while now < end:
        schedule.nowfun = lambda moment=now: moment.astimezone(ZoneInfo(zone))
        if schedule.is_due(last).is_due:
            runs.append(now)
            last = now
        now += MINUTE
    return runs


@pytest.mark.parametrize(
    ("fields", "zone", "day", "expected"),
    [
        ({"minute": "0"}, "Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC), 4),
        ({"minute": "*/15"}, "Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC), 16),
        ({"minute": "30", "hour": "2"}, "Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC), 1),
    ],
)
def test_s13_it_follows_the_clocks_when_they_change(fields, zone, day, expected):
    until = day + 4 * HOUR
    timing = Crontab(**{**dict.fromkeys(calendar.CRONTAB_FIELDS, "*"), **fields}, zone=zone)
    moments = list(occurrences(Spec(timing), day - SECOND, until - SECOND))
    assert len(moments) == expected
    assert stock_runs(fields, zone, day, until) != moments


def test_s14_it_ends_on_sigterm_while_it_works(processes, eventually):
    make_schedule(every=SECOND)
    for number in range(60):
        make_due(make_schedule(f"s{number}"), ago=MINUTE * number)
    beat = processes.start_beat()
    eventually(Run.objects.exists)
    beat.stop()
    assert not beat.running


def test_s15_it_survives_a_database_that_is_unavailable(redis):
    make_overdue(1)
    stock, scheduler = Stock(), Scheduler(app=current_app)
    stock.tick()

    def away(*_: Any) -> None:
        raise OperationalError("the database system is shutting down")

    with connection.execute_wrapper(away):
        stock._initial_read = True  # the read of everything that comes every five minutes
        with pytest.raises(DatabaseError):
            stock.tick()
        assert 0 < scheduler.tick() <= 15
    redis.flushdb()
    scheduler.tick()
    assert (Run.objects.count(), redis.llen("celery")) == (1, 1)


# A stock application also binds the tasks that other tests have shared, one with a queue of its own.
@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
def test_s16_it_installs_entries_of_the_settings_with_their_options_and_keeps_edits():
    entry = {"task": "tests.nothing", "schedule": HOUR, "options": {"expires": 60, "priority": 3}}
    app = Celery("tests", set_as_current=False)
    app.conf.update(result_expires=None, beat_schedule={"job": entry})
    Stock(app)
    schedule = PeriodicTask.objects.get(name="job")
    assert schedule.expire_seconds is None
    PeriodicTask.objects.update(queue="mine")
    Stock(app)
    schedule.refresh_from_db()
    assert schedule.queue is None
    entries.install(app)
    PeriodicTask.objects.update(queue="mine")
    entries.install(app)
    schedule.refresh_from_db()
    assert (schedule.expire_seconds, schedule.priority, schedule.queue) == (60, 3, "mine")
    app.conf.beat_schedule = {}
    Stock(app)
    assert PeriodicTask.objects.exists()
    entries.install(app)
    assert not PeriodicTask.objects.filter(enabled=True).exists()


def test_s17_it_lets_no_header_name_another_task(redis):
    (schedule,) = make_overdue(1)
    PeriodicTask.objects.update(headers='{"task": "tests.die"}')
    Stock().beat()
    assert json.loads(redis.lpop("celery"))["headers"]["task"] == "tests.die"
    ours()
    assert redis.llen("celery") == 0
    assert "belong to Celery" in Policy.objects.get(schedule=schedule).invalid_reason


def test_s18_it_refuses_to_run_or_disable_for_users_who_may_only_view(client, rf: RequestFactory):
    schedule = make_schedule()
    viewer = User.objects.create_user("eve", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_periodictask"))
    request = rf.get("/")
    request.user = viewer
    assert {"run_tasks", "disable_tasks"} <= set(PeriodicTaskAdmin(PeriodicTask, AdminSite()).get_actions(request))
    client.force_login(viewer)
    for action in ("run_now", "disable"):
        page = reverse("admin:django_celery_beat_periodictask_changelist")
        client.post(page, {"action": action, "_selected_action": [schedule.pk]})
    schedule.refresh_from_db()
    assert schedule.enabled
    assert not Run.objects.exists()


def test_s19_it_lets_no_row_flood_the_broker(redis):
    make_overdue(1)
    IntervalSchedule.objects.update(every=1, period="microseconds")
    Stock().beat(ticks=50)
    assert redis.llen("celery") >= 40
    redis.flushdb()
    calendar.sweep()
    for _ in range(5):
        ours()
    assert redis.llen("celery") <= 1
    assert "too short" in Policy.objects.get().invalid_reason


def test_s20_it_answers_bad_input_with_a_sentence(admin_client):
    interval = make_schedule("other").interval
    fields = {"name": "new", "enabled": "on", "interval": interval.pk, "args": "[]", "kwargs": "{}", "headers": "{}"}
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, it is an error 500
        PeriodicTaskForm({**fields, "task": "a\0b"}).is_valid()
    policy = {"TOTAL_FORMS": 0, "INITIAL_FORMS": 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1}
    fields |= {f"policy-{name}": value for name, value in policy.items()}
    for spoiled in ({"task": "a\0b"}, {"headers": "\0"}, {"task": "", "regtask": "\0"}, {"args": "[" * 5000}):
        page = admin_client.post(reverse("admin:django_celery_beat_periodictask_add"), {**fields, **spoiled})
        assert page.status_code == 200
        assert "errornote" in page.content.decode()


class Proxied(PeriodicTask):
    class Meta:
        proxy = True
        app_label = "jobs"


def test_s22_it_detects_a_deletion_through_a_proxy(redis):
    make_overdue(1)
    signals_connect()
    PeriodicTask.no_changes = False
    try:
        PeriodicTasks.update_changed()
        told_at = PeriodicTasks.last_change()
        stock = Stock()
        stock.schedule  # noqa: B018 - it has read the schedules
        Proxied.objects.all().delete()
        assert PeriodicTasks.last_change() == told_at
        stock.beat()
        assert redis.llen("celery") == 1
    finally:
        calendar.connect()
    redis.flushdb()
    ours()
    assert redis.llen("celery") == 0
