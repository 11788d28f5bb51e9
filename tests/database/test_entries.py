"""CELERY_BEAT_SCHEDULE: its entries are installed, changed and removed with the settings; edits in the admin hold."""

import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from celery import Celery, current_app, schedules
from django.db import connection
from django_celery_beat.models import PeriodicTask
from django_celery_beat.tzcrontab import TzAwareCrontab
from kombu import Queue

from jobs.beat import Scheduler, claim
from jobs.ledger import outbox
from jobs.models import AuditEntry, Node, Policy, Run, State, database_now
from jobs.monitoring import nodes
from jobs.rules.occurrences import from_text, occurrences
from jobs.schedules import acts, calendar, entries
from project import settings as project_settings
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def project(settings) -> None:
    settings.PROJECT = "punctual"


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


def beat_with(settings, **given) -> Scheduler:
    """A beat with these entries in its settings."""
    settings.CELERY_BEAT_SCHEDULE = app_with(**given).conf.beat_schedule
    return Scheduler(current_app, lazy=True)


@pytest.fixture
def told() -> Iterator[list[logging.LogRecord]]:
    """What beat tells in its log. Celery configures logging again when it loads jobs, which would cut off caplog."""
    handler, beat = logging.Handler(), logging.getLogger("jobs")
    records: list[logging.LogRecord] = []
    handler.emit = records.append
    beat.addHandler(handler)
    yield records
    beat.removeHandler(handler)


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


@pytest.mark.django_db(transaction=True)
def test_it_disables_a_schedule_whose_entry_is_gone_and_no_other_schedule(job, settings, told):
    make_schedule("made by hand")
    beat_with(settings, other={"schedule": DAY}).tick()
    assert set(PeriodicTask.objects.filter(enabled=True).values_list("name", flat=True)) == {"made by hand", "other"}
    assert "The entry 'job' of project punctual" in told[0].getMessage()
    make_due(job)
    list(claim.claim_due())
    assert Run.objects.get().state == State.SKIPPED
    assert install(other={"schedule": DAY}) == 0


def test_it_deletes_a_schedule_a_month_after_its_entry_went(job):
    run = make_run(job)
    assert install() == 1
    install()
    assert PeriodicTask.objects.exists()
    Policy.objects.update(removed_at=database_now() - entries.KEPT_FOR - DAY)
    install()
    assert not PeriodicTask.objects.exists()
    run.refresh_from_db()
    assert (run.schedule, run.schedule_name) == (None, "job")
    deleted = AuditEntry.objects.get(act="delete")
    assert (deleted.actor, deleted.door, deleted.name) == ("Punctual", "code", "job")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("changed", [{}, {"description": "changed"}])
def test_it_brings_a_schedule_back_with_its_policy_when_its_entry_returns(job, enabled, changed):
    PeriodicTask.objects.update(enabled=enabled)
    Policy.objects.update(overlap="allow")
    Policy.objects.pause(by="ada", reason="maintenance")
    install()
    assert not PeriodicTask.objects.get().enabled
    assert install(job=changed) == 1
    back = PeriodicTask.objects.get()
    assert (back.pk, back.enabled, back.policy.overlap, back.policy.removed_at) == (job.pk, enabled, "allow", None)
    assert back.policy.pause_reason == "maintenance"
    assert back.policy.next_due_at is None or back.policy.next_due_at > database_now()
    assert list(claim.claim_due()) == []
    assert install(job=changed) == 0


def test_it_leaves_a_schedule_without_entry_to_the_user_who_enables_it(job):
    install()
    acts.enable(PeriodicTask.objects.all(), "ada")
    install()
    Policy.objects.update(removed_at=database_now() - entries.KEPT_FOR - DAY)
    install()
    assert (PeriodicTask.objects.get().enabled, Policy.objects.get().entry) == (True, "")


def test_it_keeps_the_policy_and_the_history_of_an_entry_that_is_renamed(job):
    Policy.objects.update(overlap="allow")
    Policy.objects.pause(by="ada", reason="maintenance")
    before = Policy.objects.get().next_due_at
    assert install(new_name={"description": "and described", "options": {"priority": 3}}) == 1
    renamed = PeriodicTask.objects.get()
    assert (renamed.pk, renamed.name, renamed.priority) == (job.pk, "new-name", 3)
    assert (renamed.policy.overlap, renamed.policy.pause_reason) == ("allow", "maintenance")
    assert renamed.policy.next_due_at == before


@pytest.mark.parametrize(
    "new",
    [
        {"one": {}, "two": {}},  # which of them is it?
        {"one": {"schedule": DAY}},
        {"one": {"task": "tests.note"}},
        {"one": {"args": [1]}},
        {"one": {}, "job": {}},
    ],
)
def test_it_takes_no_other_entry_for_a_renamed_one(job, new):
    install(**new)
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"job", *new}


def test_it_makes_a_new_schedule_of_a_name_that_was_taken_by_hand(job):
    mine = make_schedule("other", task="tests.nothing")
    install(other={})
    assert PeriodicTask.objects.get(name="other").pk == mine.pk
    assert not PeriodicTask.objects.get(name="job").enabled


def test_it_adopts_a_schedule_that_already_has_the_name():
    schedule = make_schedule("job", task="tests.note", enabled=False)
    assert install(job={}) == 1
    schedule.refresh_from_db()
    assert (schedule.task, schedule.enabled) == ("tests.nothing", False)
    assert install() == 1
    assert Policy.objects.get().removed_at is not None


# --- several projects, several releases -----------------------------------------------------------------------------


def test_it_changes_no_entry_of_another_project(job, settings):
    settings.PROJECT = "another"
    outcome = entries.install(app_with(job={"task": "tests.note"}, other={}))
    assert outcome.changed == 1
    assert "the project 'punctual' has installed an entry of this name" in outcome.refused["job"]
    assert "set PROJECT=punctual (here it is 'another')" in outcome.refused["job"]
    job.refresh_from_db()
    assert (job.task, job.enabled) == ("tests.nothing", True)
    settings.PROJECT = "punctual"
    assert install(job={}) == 0
    assert PeriodicTask.objects.filter(enabled=True).count() == 2


def test_it_takes_over_an_entry_that_another_project_has_given_up(job, settings):
    install()
    settings.PROJECT = "another"
    assert install(job={}) == 1
    assert (PeriodicTask.objects.get().pk, Policy.objects.get().owner) == (job.pk, "another")
    settings.PROJECT = "punctual"
    assert install() == 0
    assert PeriodicTask.objects.get().enabled


@pytest.mark.django_db(transaction=True)
def test_it_owns_the_entries_of_an_earlier_version_that_it_defines_and_removes_no_other(job, settings, told):
    install(job={}, stray={"schedule": DAY})
    Policy.objects.update(owner="")  # as before owners were known
    PeriodicTask.objects.update(queue="mine")
    beat_with(settings, job={}).tick()
    assert dict(Policy.objects.values_list("schedule__name", "owner")) == {"job": "punctual", "stray": ""}
    assert set(PeriodicTask.objects.values_list("queue", "enabled")) == {("mine", True)}
    assert "No entry here defines the schedule 'stray': delete it" in told[0].getMessage()


def beat_of(app, name: str) -> Node:
    nodes.heartbeat(name, kind=Node.Kind.BEAT, release=entries.release_of(app))
    return Node.objects.get(name=name)


def gone(node: Node, ago: timedelta, **columns) -> None:
    """As if the node had last been seen so long ago."""
    Node.objects.filter(pk=node.pk).update(seen_at=database_now() - ago, **columns)


@pytest.mark.parametrize("version", ["", "abc123"])
def test_it_leaves_the_entries_to_the_beats_of_a_newer_release_while_they_are_there(settings, version):
    settings.CODE_VERSION = version
    old, new = app_with(job={}, dropped={"schedule": DAY}), app_with(job={"schedule": DAY}, added={"schedule": 60})
    beat_of(old, "beat@old")
    entries.install(old)
    settings.CODE_VERSION = version and "def456"
    newer = beat_of(new, "beat@new")
    assert entries.install(new).changed == 3
    settings.CODE_VERSION = version
    for ago, columns in [
        (timedelta(0), {}),
        (entries.SILENT / 2, {}),  # it was killed, and its supervisor starts it again
        (timedelta(0), {"stopped_at": database_now()}),
    ]:
        gone(newer, ago, **columns)
        assert entries.install(old) == entries.Outcome(0, newer=("beat@new",))
    assert str(PeriodicTask.objects.get(name="job").interval) == "every day"
    assert dict(PeriodicTask.objects.values_list("name", "enabled")) == {"job": True, "dropped": False, "added": True}
    gone(newer, DAY, stopped_at=database_now() - entries.STOPPED - HOUR)
    assert entries.install(old).changed == 3
    assert dict(PeriodicTask.objects.values_list("name", "enabled")) == {"job": True, "dropped": True, "added": False}


def test_it_installs_a_newer_release_beside_beats_of_older_ones_and_of_other_projects(settings):
    old, new = app_with(job={}), app_with(job={"schedule": DAY})
    beat_of(old, "beat@old")
    entries.release_of(new)
    settings.PROJECT = "another"
    beat_of(app_with(theirs={}), "beat@another")
    settings.PROJECT = "punctual"
    nodes.heartbeat("beat@before", kind=Node.Kind.BEAT)  # of a version that knew no releases
    assert entries.install(new) == entries.Outcome(1)


def test_it_takes_a_release_with_the_same_entries_for_a_newer_one_if_its_version_is_new(settings):
    settings.CODE_VERSION = "1"
    first = entries.release_of(app_with(job={}))
    settings.CODE_VERSION = "2"
    assert entries.release_of(app_with(job={})).pk > first.pk
    settings.CODE_VERSION = "1"
    assert entries.release_of(app_with(job={})).pk == first.pk


@pytest.mark.django_db(transaction=True)
def test_it_installs_in_the_end_what_beat_had_left_to_a_newer_release(settings, told):
    scheduler = beat_with(settings, job={})
    entries.release_of(scheduler.app)
    newer = beat_of(app_with(), "beat@new")
    for _ in range(2):
        scheduler._done_at.clear()  # the time between its attempts has passed
        scheduler.tick()
    assert not PeriodicTask.objects.exists()
    assert [line.getMessage()[:50] for line in told] == ["Beats of a newer release are there: beat@new. This"]
    newer.delete()
    scheduler._done_at.clear()
    scheduler.tick()
    assert PeriodicTask.objects.get().name == "job"


@pytest.mark.django_db(transaction=True)
def test_it_installs_again_what_a_newer_release_changed_that_came_and_went(settings, told):
    scheduler = beat_with(settings, job={}, second={})
    scheduler.tick()
    settings.CODE_VERSION = "newer"
    newer = beat_of(app_with(second={}), "beat@new")
    entries.install(app_with(second={}))
    assert not PeriodicTask.objects.get(name="job").enabled
    settings.CODE_VERSION = ""
    for end in (lambda: None, newer.delete):
        end()
        scheduler._done_at.clear()
        scheduler.tick()
    assert PeriodicTask.objects.get(name="job").enabled


# --- timings --------------------------------------------------------------------------------------------------------


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


def moments_of(policy: Policy) -> list[datetime]:
    """The due moments of the next 400 days, by the clock of the app."""
    now = database_now()
    found = occurrences(from_text(policy.timing), now, now + 400 * DAY)
    return [moment.astimezone(ZoneInfo("Europe/Berlin")) for moment in found]


@pytest.mark.parametrize("days", [1, 2, 3, 7])
def test_it_keeps_local_midnight_of_a_relative_interval_of_days_all_year(days):
    assert install(job={"schedule": days * DAY, "relative": True}) == 1
    assert list(claim.claim_due()) == []
    moments = moments_of(Policy.objects.get())
    assert {moment.time() for moment in moments} == {time(0)}
    assert {later.date() - earlier.date() for earlier, later in pairwise(moments)} == {days * DAY}
    assert install(job={"schedule": days * DAY, "relative": True}) == 0


def test_it_keeps_the_days_of_a_relative_interval_until_its_timing_changes():
    def given(**members):
        return {"job": {"schedule": 3 * DAY, "relative": True, **members}}

    install(**given())
    schedule = PeriodicTask.objects.get()
    schedule.start_time -= DAY  # as if it had been installed yesterday
    schedule.save()
    before = moments_of(Policy.objects.get())
    assert install(**given(description="changed")) == 1
    assert moments_of(Policy.objects.get()) == before
    assert install(**given(schedule=2 * DAY)) == 1
    assert {moment.time() for moment in moments_of(Policy.objects.get())} == {time(0)}


def test_it_gives_local_midnight_to_a_relative_interval_of_an_earlier_version():
    entry = {"job": {"schedule": DAY, "relative": True}}
    install(**entry)
    Policy.objects.update(wall_zone="", owner="")
    PeriodicTask.objects.update(queue="mine")
    calendar.sweep()
    assert len({moment.time() for moment in moments_of(Policy.objects.get())}) == 2
    assert install(**entry) == 0
    assert {moment.time() for moment in moments_of(Policy.objects.get())} == {time(0)}
    assert PeriodicTask.objects.get().queue == "mine"


def test_it_counts_24_hours_for_a_day_of_an_interval_that_is_not_relative():
    install(job={"schedule": DAY})
    assert len({moment.time() for moment in moments_of(Policy.objects.get())}) == 2


def test_it_begins_a_relative_interval_on_no_day_without_midnight():
    assert entries._is_skipped(datetime(2018, 11, 4, tzinfo=ZoneInfo("America/Sao_Paulo")))
    assert not entries._is_skipped(datetime(2018, 11, 5, tzinfo=ZoneInfo("America/Sao_Paulo")))


@pytest.mark.parametrize("every", [DAY, HOUR])
def test_it_aligns_a_relative_interval_with_the_clock_of_the_app(every):
    assert install(job={"schedule": every, "relative": True}) == 1
    due_at = Policy.objects.get().next_due_at.astimezone(app_with().timezone)
    assert (due_at.minute, due_at.second, due_at.microsecond) == (0, 0, 0)
    assert due_at.hour == 0 or every == HOUR
    assert install(job={"schedule": every, "relative": True}) == 0


@pytest.mark.parametrize("every", [DAY, HOUR, timedelta(minutes=5), timedelta(seconds=10)])
def test_it_fires_nothing_when_it_installs_a_relative_interval(every):
    before = database_now()
    install(job={"schedule": every, "relative": True})
    assert Policy.objects.get().next_due_at > before


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


def test_it_passes_on_the_options_of_a_broker_and_needs_no_retry_of_a_publisher(redis):
    options = {"MessageGroupId": "billing", "retry": True, "retry_policy": {"max_retries": 3}, "countdown": None}
    assert install(job={"options": options}) == 1
    make_due(PeriodicTask.objects.get())
    for runs in claim.claim_due():
        outbox.send(runs)
    assert Run.objects.get().options == {"MessageGroupId": "billing"}
    assert json.loads(redis.lpop("celery"))["properties"]["MessageGroupId"] == "billing"


class LastDay(schedules.crontab):
    """Due on the last day of the month only."""

    def is_due(self, last_run_at):
        return super().is_due(last_run_at)


class Preset(schedules.crontab):
    """Changes no decision."""

    tz = ZoneInfo("Asia/Tokyo")

    def __init__(self):
        super().__init__("0", "4")


class Shifted(schedules.solar):
    def remaining_estimate(self, last_run_at):
        return super().remaining_estimate(last_run_at) + HOUR


def replaced() -> schedules.crontab:
    crontab = schedules.crontab("0", "4")
    crontab.is_due = lambda last_run_at: (False, 60)
    return crontab


@pytest.mark.parametrize(
    ("schedule", "names"),
    [
        (LastDay("0", "4"), "its schedule, LastDay, changes when Celery's crontab is due: is_due."),
        (
            Shifted("sunset", 52.5, 13.4),
            "its schedule, Shifted, changes when Celery's solar is due: remaining_estimate.",
        ),
        (type("Weekdays", (schedules.schedule,), {"now": None})(60), "Weekdays, changes when Celery's schedule is due"),
        (replaced(), "its schedule, crontab, changes when Celery's crontab is due: is_due."),
        (schedules.crontab("0", "4", nowfun=database_now), "Celery's crontab is due: nowfun."),
    ],
)
def test_it_refuses_a_schedule_that_decides_by_itself_when_it_is_due(schedule, names):
    assert names in entries.install(app_with(job={"schedule": schedule})).refused["job"]
    assert not PeriodicTask.objects.exists()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Preset(), "0 4 * * * (m/h/dM/MY/d) Asia/Tokyo"),
        (TzAwareCrontab("0", "4", tz=ZoneInfo("Asia/Tokyo")), "0 4 * * * (m/h/dM/MY/d) Asia/Tokyo"),
        (schedules.crontab("0", hour="0, 6, 12, 18"), "0 0,6,12,18 * * * (m/h/dM/MY/d) Europe/Berlin"),
        (
            schedules.crontab(" 0", hour=[6, 18], day_of_week="MON-FRI"),
            "0 6,18 * * MON-FRI (m/h/dM/MY/d) Europe/Berlin",
        ),
    ],
)
def test_it_installs_every_crontab_that_it_understands(schedule, expected):
    assert install(job={"schedule": schedule}) == 1
    assert str(PeriodicTask.objects.get().crontab) == expected
    assert Policy.objects.get().next_due_at is not None
    assert install(job={"schedule": schedule}) == 0


@pytest.mark.django_db(transaction=True)
def test_it_writes_one_error_line_for_each_entry_that_cannot_run(settings, told):
    given = {
        "polar": {"schedule": schedules.solar("sunset", 89.9, 0)},
        "unread": {"schedule": "hourly"},
        "unknown": {"task": "tests.nothin"},
        "misfit": {"task": "tests.note"},
        "sound": {},
        "off": {"task": "tests.nothin", "enabled": False},
    }
    beat_with(settings, **given).tick()
    lines = [record.getMessage() for record in told if record.levelname == "ERROR"]
    expected = {
        "polar": "is not installed: At latitude 89.9, sunset may not occur",
        "unread": "is not installed: 'hourly' is not a supported schedule",
        "unknown": "is installed, but cannot run: No job is named 'tests.nothin'",
        "misfit": "is installed, but cannot run: The arguments do not fit",
    }
    assert len(lines) == len(expected), lines
    for name, reason in expected.items():
        assert any(line.startswith(f"The entry '{name}' of CELERY_BEAT_SCHEDULE {reason}") for line in lines), lines


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
        ({"options": {"countdown": 5}}, "cannot store the option countdown: a run starts when it is due"),
        ({"options": {"link": "x"}}, "cannot store the option link: let the job start what follows it"),
        ({"options": {"task_id": "x", "nonsense": 1}}, "option nonsense: set it on the task; task_id: each run has"),
        ({"options": {"MessageDeduplicationId": "x"}}, "the broker would drop the messages of later runs"),
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
    assert outcome == entries.Outcome(changed=1)
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


def test_it_schedules_a_cleanup_with_arguments_beside_an_operators_own():
    make_schedule("mine", task="jobs.cleanup")
    assert install(job={"task": "jobs.cleanup", "kwargs": {"other_days": 9}}) == 1
    assert PeriodicTask.objects.filter(task="jobs.cleanup").count() == 2


def test_it_replaces_its_cleanup_by_the_one_that_an_operator_makes():
    app = app_with()
    app.conf.beat_schedule = project_settings.CELERY_BEAT_SCHEDULE
    entries.install(app)
    mine = make_schedule("mine", task="jobs.cleanup")
    entries.install(app)
    assert PeriodicTask.objects.get(task="jobs.cleanup", enabled=True) == mine


def at_once(given: dict[str, dict]) -> dict[str, str]:
    """Let three beats install these entries at the same time; returns what they refused."""
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
    return refused


def test_it_schedules_one_cleanup_for_projects_that_share_a_database(settings):
    app = app_with()
    app.conf.update(result_backend="django-db", result_expires=3600)
    app.conf.beat_schedule = project_settings.CELERY_BEAT_SCHEDULE
    assert entries.install(app) == entries.Outcome(2)
    settings.PROJECT = "another"
    assert entries.install(app) == entries.Outcome(0)
    assert set(Policy.objects.values_list("owner", flat=True)) == {"punctual"}
    settings.PROJECT = "punctual"
    app.conf.update(beat_schedule={}, result_expires=None)
    assert entries.install(app).changed == 2
    settings.PROJECT = "another"
    app.conf.update(beat_schedule=project_settings.CELERY_BEAT_SCHEDULE, result_expires=3600)
    assert entries.install(app).changed == 2
    assert set(Policy.objects.values_list("owner", flat=True)) == {"another"}


@pytest.mark.django_db(transaction=True)
def test_it_installs_each_entry_once_when_several_beats_start_at_once():
    given = {f"job{number}": {} for number in range(20)}
    assert at_once(given) == {}
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == set(given)
    assert not Policy.objects.filter(entry="").exists()


@pytest.mark.django_db(transaction=True)
def test_it_renames_and_removes_each_schedule_once_when_several_beats_start_at_once():
    assert at_once({f"job{number}": {"args": [number]} for number in range(10)}) == {}
    before = dict(PeriodicTask.objects.values_list("args", "pk"))
    assert at_once({f"new{number}": {"args": [number]} for number in range(5)}) == {}
    assert dict(PeriodicTask.objects.values_list("args", "pk")) == before
    renamed = PeriodicTask.objects.filter(enabled=True, policy__removed_at=None)
    assert set(renamed.values_list("name", flat=True)) == {f"new{number}" for number in range(5)}
    removed = PeriodicTask.objects.filter(enabled=False, policy__enabled_before=True).exclude(policy__removed_at=None)
    assert set(removed.values_list("name", flat=True)) == {f"job{number}" for number in range(5, 10)}
