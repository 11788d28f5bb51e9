"""CELERY_BEAT_SCHEDULE: its entries are installed, changed and deleted with the settings; edits in the admin hold."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery, schedules
from django.db import connection
from django_celery_beat.models import PeriodicTask
from kombu import Queue

from jobs.beat import claim
from jobs.models import Policy, Run, database_now
from jobs.schedules import acts, entries
from project import settings as project_settings
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def app_with(timezone="Europe/Berlin", **given) -> Celery:
    """An app with these entries in its settings, every hour unless their members say otherwise."""
    app = Celery("tests", set_as_current=False)
    app.conf.update(timezone=timezone, result_expires=None, beat_schedule={})
    app.conf.beat_schedule = {
        name.replace("_", "-"): {"task": "tests.nothing", "schedule": HOUR, **members}
        for name, members in given.items()
    }
    return app


def install(**given) -> int:
    """Install these entries; returns how many schedules changed."""
    return entries.install(app_with(**given)).changed


@pytest.fixture
def job() -> PeriodicTask:
    assert install(job={}) == 1
    return PeriodicTask.objects.get()


def test_it_installs_an_entry_once_and_runs_nothing(job):
    assert (job.name, job.task, str(job.interval), job.enabled) == ("job", "tests.nothing", "every hour", True)
    assert Policy.objects.get().next_due_at > database_now() + HOUR / 2
    assert install(job={}) == 0
    assert list(claim.claim_due()) == []


def test_it_keeps_edits_until_the_entry_changes(job):
    PeriodicTask.objects.update(queue="mine", enabled=False, description="ours")
    Policy.objects.pause(by="ada", reason="maintenance")
    assert install(job={}) == 0
    assert PeriodicTask.objects.get().queue == "mine"
    assert install(job={"schedule": DAY}) == 1
    job.refresh_from_db()
    assert (job.queue, str(job.interval), job.enabled) == (None, "every day", False)
    assert Policy.objects.paused().get().pause_reason == "maintenance"


def test_it_deletes_a_schedule_whose_entry_is_gone_and_no_other_schedule(job):
    make_schedule("made by hand")
    run = make_run(job)
    assert install(other={}) == 2
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"made by hand", "other"}
    run.refresh_from_db()
    assert (run.schedule, run.schedule_name) == (None, "job")


def test_it_adopts_a_schedule_that_already_has_the_name():
    schedule = make_schedule("job", task="tests.note", enabled=False)
    assert install(job={}) == 1
    schedule.refresh_from_db()
    assert (schedule.task, schedule.enabled) == ("tests.nothing", False)
    assert install() == 1
    assert not PeriodicTask.objects.exists()


@pytest.mark.parametrize(
    ("timing", "expected"),
    [
        (90, "every 90 seconds"),
        (120.0, "every 2 minutes"),
        (timedelta(days=3), "every 3 days"),
        (schedules.schedule(7200), "every 2 hours"),
        (schedules.crontab(minute=[0, 30], hour="8-18", day_of_week="mon-fri"), "0,30 8-18 * * mon-fri"),
        (schedules.solar("sunset", 52.5, 13.4), "Sunset (52.500000, 13.400000)"),
    ],
)
def test_it_installs_every_kind_of_schedule(timing, expected):
    assert install(job={"schedule": timing}) == 1
    schedule = PeriodicTask.objects.get()
    if schedule.crontab:
        row = schedule.crontab
        assert f"{row.minute} {row.hour} {row.day_of_month} {row.month_of_year} {row.day_of_week}" == expected
        assert str(row.timezone) == "Europe/Berlin"
    else:
        assert expected in str(schedule.scheduler)
    assert Policy.objects.get().invalid_reason == ""
    assert Policy.objects.get().next_due_at is not None
    assert install(job={"schedule": timing}) == 0


@pytest.mark.parametrize("every", [DAY, HOUR])
def test_it_aligns_a_relative_interval_with_the_clock_of_the_app(every):
    assert install(job={"schedule": every, "relative": True}) == 1
    due_at = Policy.objects.get().next_due_at.astimezone(app_with().timezone)
    assert (due_at.minute, due_at.second, due_at.microsecond) == (0, 0, 0)
    assert due_at.hour == 0 or every == HOUR
    assert install(job={"schedule": every, "relative": True}) == 0


def test_it_keeps_the_grid_of_a_long_interval_across_restarts(job):
    before = Policy.objects.get().next_due_at
    for _ in range(3):
        install(job={})
    assert Policy.objects.get().next_due_at == before


def test_it_puts_every_option_into_the_message():
    options = {
        "queue": Queue("slow"),
        "priority": 3,
        "headers": {"x-team": "billing"},
        "expires": timedelta(minutes=2),
        "time_limit": 9,
        "soft_time_limit": 5,
        "ignore_result": False,
        "shadow": "invoices",
    }
    assert install(job={"task": "tests.note", "args": ("/tmp/x",), "options": options}) == 1
    due_at = make_due(PeriodicTask.objects.get())
    list(claim.claim_due())
    run = Run.objects.get()
    assert (run.task, run.args, run.queue, run.priority) == ("tests.note", ["/tmp/x"], "slow", 3)
    assert run.expires_at >= due_at + timedelta(minutes=2)
    assert run.options == {
        "headers": {"x-team": "billing"},
        "time_limit": 9,
        "soft_time_limit": 5,
        "ignore_result": False,
        "shadow": "invoices",
    }


def test_it_reads_an_expiry_date_as_the_end_of_the_schedule():
    end = datetime(2030, 1, 1)  # noqa: DTZ001 - settings often use naive ones
    assert install(job={"options": {"expires": end}}) == 1
    assert PeriodicTask.objects.get().expires == datetime(2029, 12, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"schedule": 0.5}, "whole seconds"),
        ({"schedule": 1.5}, "whole seconds"),
        ({"schedule": "hourly"}, "not a supported schedule"),
        ({"schedule": None}, "not a supported schedule"),
        ({"args": [object()]}, "cannot be written as JSON"),
        ({"kwargs": {"a": float("nan")}}, "cannot be written as JSON"),
        ({"options": {"countdown": 5}}, "cannot store the option countdown"),
        ({"options": {"link": "x"}}, "cannot store the option link"),
        ({"optoins": {}}, "unknown keys: optoins; choose from"),
        ({"task": "x" * 300}, "at most 200 characters"),
        ({"args": 5}, "must be a list or tuple"),
        ({"kwargs": "abc"}, "its kwargs a dict"),
        ({"options": "x"}, "dictionary update sequence"),
        ({"options": {"expires": "soon"}}, "invalid literal"),
        ({"schedule": float("inf")}, ""),
    ],
)
def test_it_says_why_it_refuses_an_entry_and_installs_the_rest(members, sentence):
    outcome = entries.install(app_with(bad=members, good={}))
    assert sentence in outcome.refused.pop("bad")
    assert outcome == entries.Outcome(changed=1, refused={})
    assert PeriodicTask.objects.get().name == "good"


def test_it_sets_no_start_time_for_a_relative_crontab():
    assert install(job={"schedule": schedules.crontab("0", "4"), "relative": True}) == 1
    assert PeriodicTask.objects.get().start_time is None


def test_it_leaves_a_schedule_as_it_is_when_its_entry_turns_invalid(job):
    assert install(job={"schedule": "hourly"}) == 0
    assert str(PeriodicTask.objects.get().interval) == "every hour"


def test_it_installs_an_entry_with_an_unknown_task_and_flags_it_when_it_is_due():
    assert install(job={"task": "tests.nothin"}) == 1
    make_due(PeriodicTask.objects.get())
    list(claim.claim_due())
    assert "Did you mean 'tests.nothing'?" in Policy.objects.get().invalid_reason


def test_it_installs_an_entry_from_add_periodic_task():
    app = app_with()
    app.add_periodic_task(30.0, app.signature("tests.nothing", ("x",)), name="added", expires=10)
    assert entries.install(app).changed == 1
    schedule = PeriodicTask.objects.get()
    assert (schedule.name, schedule.args, schedule.expire_seconds) == ("added", '["x"]', 10)


def test_it_deletes_old_results_daily_when_the_backend_does_not_expire_them():
    app = app_with()
    app.conf.update(result_backend="django-db", result_expires=3600)
    assert entries.install(app).changed == 1
    assert PeriodicTask.objects.get().task == "celery.backend_cleanup"
    assert Policy.objects.get().invalid_reason == ""


def test_it_schedules_the_cleanup_from_the_start_and_keeps_what_an_operator_changes():
    given = project_settings.CELERY_BEAT_SCHEDULE
    app = app_with()
    app.conf.beat_schedule = given
    assert entries.install(app) == entries.Outcome(len(given), {})
    (schedule,) = PeriodicTask.objects.filter(task="jobs.cleanup")
    assert (schedule.enabled, schedule.policy.invalid_reason, schedule.policy.next_due_at is None) == (True, "", False)
    acts.pause(PeriodicTask.objects.all(), "ada")
    PeriodicTask.objects.update(kwargs='{"succeeded_days": 7}')
    assert entries.install(app).changed == 0
    schedule.refresh_from_db()
    assert (schedule.kwargs, bool(schedule.policy.pause)) == ('{"succeeded_days": 7}', True)


@pytest.mark.parametrize(("name", "task"), [("mine", "jobs.cleanup"), ("Clean up", "tests.note")])
@pytest.mark.parametrize("enabled", [True, False])
def test_it_schedules_no_cleanup_in_place_of_an_operators_schedule(name, task, enabled):
    mine = make_schedule(name, task=task, kwargs={"other_days": 3650}, enabled=enabled)
    app = app_with()
    app.conf.beat_schedule = project_settings.CELERY_BEAT_SCHEDULE
    assert entries.install(app) == entries.Outcome(0, {})
    assert PeriodicTask.objects.get() == mine
    mine.refresh_from_db()
    assert mine.task == task


def test_it_replaces_its_cleanup_by_the_one_that_an_operator_makes():
    app = app_with()
    app.conf.beat_schedule = project_settings.CELERY_BEAT_SCHEDULE
    entries.install(app)
    mine = make_schedule("mine", task="jobs.cleanup")
    entries.install(app)
    assert PeriodicTask.objects.get(task="jobs.cleanup") == mine


@pytest.mark.django_db(transaction=True)
def test_it_installs_each_entry_once_when_several_beats_start_at_once():
    given = {f"job{number}": {} for number in range(20)}
    barrier, refused = threading.Barrier(3), {}

    def beat() -> None:
        barrier.wait()
        refused.update(entries.install(app_with(**given)).refused)
        connection.close()

    threads = [threading.Thread(target=beat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == set(given)
    assert not Policy.objects.filter(entry="").exists()
    assert refused == {}
