"""The admin shows the ledger, refuses schedules that could never run, and checks permissions before it acts."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection, connections
from django.urls import reverse
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule

from jobs.models import AuditEntry, Backfill, Node, Policy, Run, RunLog, State, Step, Trigger, database_now
from jobs.schedules import calendar
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db

SCHEDULES = reverse("admin:django_celery_beat_periodictask_changelist")
NEW = reverse("admin:django_celery_beat_periodictask_add")
NEW_CRONTAB = reverse("admin:django_celery_beat_crontabschedule_add")
NEW_SOLAR = reverse("admin:django_celery_beat_solarschedule_add")
NEW_CLOCKED = reverse("admin:django_celery_beat_clockedschedule_add")
NEW_INTERVAL = reverse("admin:django_celery_beat_intervalschedule_add")
NODES = reverse("admin:jobs_node_changelist")
BACKFILLS = reverse("admin:jobs_backfill_changelist")
RUNS = reverse("admin:jobs_run_changelist")


def text(response) -> str:
    """The visible text of a page."""
    assert response.status_code == 200
    body = re.sub(r"(?s)<style.*?</style>|<script.*?</script>|<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(body))


def act(client, name: str, *schedules, **fields):
    """Apply an action to the schedules; with `fields`, submit the form that the action shows."""
    data = {"action": name, "_selected_action": [schedule.pk for schedule in schedules]}
    return client.post(SCHEDULES, data | fields | ({"step": "1"} if fields else {}), follow=True)


def history(schedule: PeriodicTask) -> list[str]:
    entries = AuditEntry.objects.filter(kind="schedule", key=schedule.pk).order_by("pk")
    return [entry.summary for entry in entries]


def page_of(client, schedule: PeriodicTask) -> str:
    return text(client.get(reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])))


def form(schedule: PeriodicTask | None = None, **fields) -> dict[str, object]:
    """The form data that a browser sends for a schedule."""
    policy = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1 if schedule else 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1}
    policy |= {"0-overlap": "skip", "0-catch_up": "latest", "0-catch_up_window": "1 00:00:00", "0-max_attempts": 1}
    policy |= {"0-retry_delay": "00:00:30", "0-rerun_if_lost": "on", "0-keep_result": "unknown"}
    policy |= {"0-catch_up_cap": 100, "0-jitter": "00:00:00", "0-skip_next": 0}
    policy |= {"0-late_after": "00:05:00", "0-failures_allowed": 0, "0-longest_pause": "7 00:00:00"}
    if schedule:
        policy["0-schedule"] = schedule.pk
    row = {"name": "new", "task": "tests.nothing", "enabled": "on", "args": "[]", "kwargs": "{}", "headers": "{}"}
    return row | {f"policy-{name}": value for name, value in policy.items()} | fields


@pytest.fixture
def viewer(client):
    """A client whose user may only view schedules and runs."""
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_periodictask", "view_run"]))
    client.force_login(user)
    return client


def test_it_shows_when_a_schedule_is_due_and_how_its_last_run_ended(admin_client):
    schedule = make_schedule("nightly")
    due_at = database_now() - timedelta(minutes=5)
    times = {"due_at": due_at, "started_at": due_at + timedelta(seconds=2)}
    make_run(schedule, State.FAILED, **times, finished_at=due_at + timedelta(seconds=6.5), reason="ValueError: no")
    make_run(schedule, State.SUCCEEDED, trigger=Trigger.BACKFILL)
    page = text(admin_client.get(SCHEDULES))
    assert f"{Policy.objects.get().next_due_at:%Y-%m-%d %H:%M:%S}" in page
    assert "failed ValueError: no 2.00 s 4.50 s" in page


def test_it_says_when_a_schedule_has_no_run_yet_or_cannot_run(admin_client):
    make_schedule("fresh")
    make_schedule("bad", cron={"day_of_month": "31", "month_of_year": "2"})
    page = text(admin_client.get(SCHEDULES))
    assert "no run yet" in page
    assert f"cannot run {Policy.objects.exclude(invalid_reason='').get().invalid_reason}" in page


def test_it_says_that_a_missing_policy_is_being_computed(admin_client):
    interval = make_schedule("other").interval
    [schedule] = PeriodicTask.objects.bulk_create([PeriodicTask(name="new", task="tests.nothing", interval=interval)])
    assert "being computed no run yet" in text(admin_client.get(SCHEDULES))
    assert "Next due: being computed Status: –" in page_of(admin_client, schedule)
    assert "Next due: – Status: –" in text(admin_client.get(NEW))


def test_it_says_whether_a_schedule_without_problems_is_enabled(admin_client):
    assert "Status: ok" in page_of(admin_client, make_schedule("on"))
    page = page_of(admin_client, make_schedule("off", enabled=False))
    assert "Next due: no further runs What happened at another moment? Status: disabled" in page


def test_it_makes_as_many_queries_for_many_schedules_as_for_one(admin_client, django_assert_num_queries):
    for number in range(3):
        make_run(make_schedule(f"s{number}"), State.SUCCEEDED)
    admin_client.get(SCHEDULES)
    with django_assert_num_queries(5):
        admin_client.get(SCHEDULES)
    for number in range(3, 30):
        make_run(make_schedule(f"s{number}"), State.SUCCEEDED)
    with django_assert_num_queries(5):
        admin_client.get(SCHEDULES)


def test_it_shows_runs_and_refuses_every_edit(admin_client):
    schedule = make_schedule("nightly")
    run = make_run(schedule, State.SKIPPED, count=3, reason="overlap: still running")
    page = text(admin_client.get(RUNS))
    assert "nightly" in page
    assert "skipped" in page
    assert "(3 times)" in page
    assert "overlap: still running" in page
    assert "overlap: still running" in text(admin_client.get(reverse("admin:jobs_run_change", args=[run.pk])))
    assert admin_client.get(reverse("admin:jobs_run_add")).status_code == 403
    assert admin_client.get(reverse("admin:jobs_run_delete", args=[run.pk])).status_code == 403
    assert admin_client.post(reverse("admin:jobs_run_change", args=[run.pk]), {"state": "failed"}).status_code == 403
    run.refresh_from_db()
    assert run.state == State.SKIPPED


def test_it_finds_runs_by_schedule_name_and_id(admin_client):
    wanted = make_run(make_schedule("wanted"))
    make_run(make_schedule("other"))
    for query in ("wan", str(wanted.id)):
        page = text(admin_client.get(RUNS, {"q": query}))
        assert "wanted" in page
        assert "other due" not in page
        assert "1 run" in page


@pytest.mark.parametrize(("value", "shown"), [("waiting", True), ("failed", False), ("x", True)])
def test_it_filters_runs_by_known_states_only(admin_client, value, shown):
    make_run(make_schedule("nightly"))
    page = text(admin_client.get(RUNS, {"state__exact": value}, follow=True))
    assert ("nightly" in page) is shown


def test_it_creates_a_schedule_with_its_policy(admin_client):
    make_schedule("other")
    interval = PeriodicTask.objects.get().interval_id
    fields = form(interval=interval, **{"policy-0-overlap": "allow", "policy-0-max_attempts": 4})
    page = text(admin_client.post(NEW, fields, follow=True))
    assert "was added successfully" in page
    policy = Policy.objects.get(schedule__name="new")
    assert (policy.overlap, policy.max_attempts) == ("allow", 4)
    assert policy.next_due_at > database_now()


def test_it_keeps_the_next_due_moment_when_a_policy_is_edited(admin_client):
    schedule = make_schedule()
    before = Policy.objects.get()
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    fields = form(schedule, name="it", interval=schedule.interval_id, **{"policy-0-catch_up": "none"})
    assert "was changed successfully" in text(admin_client.post(address, fields, follow=True))
    after = Policy.objects.get()
    assert (after.catch_up, after.next_due_at, after.fingerprint) == ("none", before.next_due_at, before.fingerprint)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": "tests.nothin"}, "Did you mean"),
        ({"task": "celery.starmap"}, "schedule the task itself"),
        ({"task": "tests.note"}, "do not fit"),
        ({"args": "{}"}, "must be a JSON list"),
        ({"kwargs": '["a"]'}, "must be a JSON object"),
        ({"headers": "[]"}, "must be a JSON object"),
        ({"args": "[" * 3000}, "not valid JSON"),
        ({"headers": '{"task": "tests.die"}'}, "belong to Celery"),
        ({"headers": '{"punctual_execution": 1}'}, "belong to Celery"),
        ({"args": '["\\u0000"]'}, "control characters"),
        ({"headers": '{"_get_custom_headers": 1}'}, "belong to Celery"),
        ({"queue": "unacked"}, "Choose a listed queue instead of unacked; the setting QUEUES lists more."),
        ({"queue": "new"}, "Choose a listed queue instead of new; the setting QUEUES lists more."),
        ({"queue": "celery"}, None),
        ({"name": "\x00"}, "Null characters are not allowed"),
        ({"task": "\x00"}, "Need name of task"),
        ({"headers": ""}, None),
        ({"interval": ""}, "exactly one"),
        ({"start_time_0": "x", "start_time_1": "y"}, "Enter a valid date"),
        ({"expire_seconds": "-1"}, "greater than or equal to 0"),
        ({"expire_seconds": "0"}, "Enter at least 1, or leave this empty"),
        ({"expires_0": "2020-01-01", "expires_1": "10:00"}, "It would never run"),
        ({"expires_0": "2020-01-01", "expires_1": "10:00", "enabled": ""}, None),
        ({"policy-0-soft_time_limit": "9", "policy-0-time_limit": "9"}, "Enter less than 9 s: at the time limit"),
        ({"priority": "999"}, "less than or equal to 255"),
        ({"policy-0-max_attempts": "0"}, "greater than or equal to 1"),
        ({"policy-0-retry_delay": "-1 00:00:00"}, "greater than or equal to"),
        ({"policy-0-catch_up_window": "9999999999 00:00:00"}, "number of days must be"),
        ({"policy-0-time_limit": "0"}, "greater than or equal to 1"),
        ({"args": '["https://ada:hunter2@example.org"]'}, "A URL contains a password"),
        ({"kwargs": '{"to": "redis://:hunter2@db"}'}, "A URL contains a password"),
        ({"description": "calls https://ada:hunter2@example.org"}, "A URL contains a password"),
    ],
)
def test_it_says_why_it_refuses_a_schedule_that_could_never_run(admin_client, fields, sentence):
    make_schedule("other")
    interval = PeriodicTask.objects.get().interval_id
    page = text(admin_client.post(NEW, form(**{"interval": interval, **fields}), follow=True))
    assert PeriodicTask.objects.filter(name="new").exists() is (sentence is None)
    if sentence:
        assert sentence in page


def test_it_accepts_edits_of_a_schedule_whose_time_is_over(admin_client):
    past = ClockedSchedule.objects.create(clocked_time=database_now() - timedelta(days=1))
    page = text(admin_client.post(NEW, form(clocked=past.pk, one_off="on"), follow=True))
    assert "It would never run: all its due moments are over." in page
    over = PeriodicTask.objects.create(name="over", task="tests.nothing", clocked=past, one_off=True)
    address = reverse("admin:django_celery_beat_periodictask_change", args=[over.pk])
    fields = form(over, name="over", clocked=past.pk, one_off="on", description="it has run")
    fields |= {"initial-enabled": "True"}  # the value that the page showed
    assert "was changed successfully" in text(admin_client.post(address, fields, follow=True))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"day_of_week": "-1"}, "day"),
        ({"day_of_week": "8"}, "day"),
        ({"minute": ""}, "Minute is empty; write * for all values."),
        ({"hour": "x" * 97}, "at most 96 characters"),
        ({"day_of_week": "1-7,1-7,1-7,1-7,1-7,1-7"}, "is longer than 64 characters: write it shorter, with ranges."),
        ({"line": "0 0 L * *"}, "Celery has no last day (L)"),
        ({"line": "@reboot"}, "cannot be read"),
        ({"minute": "0 0 12 * * MON"}, "A crontab line has five fields"),
        ({"day_of_month": "31", "month_of_year": "2"}, "month"),
        ({"minute": "*/0"}, "must be from 1 to 60"),
        ({"timezone": "Mars/Phobos"}, "Select a valid choice"),
    ],
)
def test_it_refuses_a_crontab_that_is_invalid_or_never_due(admin_client, fields, sentence):
    every = dict.fromkeys(("minute", "hour", "day_of_month", "month_of_year", "day_of_week"), "*")
    page = text(admin_client.post(NEW_CRONTAB, {**every, "timezone": "UTC", **fields}))
    assert sentence in page.split("Please correct the error")[1]
    assert not CrontabSchedule.objects.exists()


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"line": "0 9 * * MON-FRI", "minute": ""}, "0 9 * * mon-fri"),
        ({"minute": " 30, 45 22-2 * * 7 "}, "30,45 22-2 * * 0"),
        ({"line": "@daily"}, "0 0 * * *"),
        ({"hour": "0, 6, 12, 18"}, "* 0,6,12,18 * * *"),
        ({"hour": "22-2", "day_of_week": "monday,7", "month_of_year": "december"}, "* 22-2 * december monday,0"),
        ({"minute": "*/60"}, "*/60 * * * *"),
    ],
)
def test_it_stores_a_crontab_as_celery_reads_it(admin_client, fields, stored):
    every = dict.fromkeys(("minute", "hour", "day_of_month", "month_of_year", "day_of_week"), "*")
    page = text(admin_client.post(NEW_CRONTAB, {**every, "timezone": "UTC", **fields}, follow=True))
    assert "was added successfully" in page
    assert "as in Celery" not in page
    row = CrontabSchedule.objects.get()
    assert f"{row.minute} {row.hour} {row.day_of_month} {row.month_of_year} {row.day_of_week}" == stored
    assert row.schedule.hour  # Celery reads it


def test_it_warns_of_a_crontab_that_cron_would_read_in_another_way(admin_client):
    page = text(admin_client.post(NEW_CRONTAB, {"line": "0 0 13 * fri", "timezone": "UTC"}, follow=True))
    assert "days that match both day of month 13 and day of week fri, as in Celery. cron would" in page


def timing_page(client, timing, **query) -> str:
    name = timing._meta.model_name
    return text(client.get(reverse(f"admin:django_celery_beat_{name}_change", args=[timing.pk])))


def test_it_names_the_schedules_that_use_a_timing(admin_client):
    crontab = CrontabSchedule.objects.create(minute="5")
    for number in range(22):
        make_schedule(f"<b>{number:02}", crontab=crontab)
    make_schedule("another")
    page = timing_page(admin_client, crontab)
    assert "Used by: 22 schedules, the first 20: <b>00 ( change only this one )" in page
    assert "<b>19" in page
    assert "<b>20" not in page
    assert "0 schedules" in timing_page(admin_client, ClockedSchedule.objects.create(clocked_time=database_now()))
    assert "Timing used by: 21 other schedules ( change only this one )" in page_of(
        admin_client, PeriodicTask.objects.get(name="<b>00")
    )
    assert "Timing used by: no other schedule" in page_of(admin_client, PeriodicTask.objects.get(name="another"))
    assert "used by" not in text(admin_client.get(NEW_CRONTAB)).lower()


def test_it_changes_the_timing_of_one_schedule_only(admin_client, django_capture_on_commit_callbacks):
    crontab = CrontabSchedule.objects.create(minute="5", timezone="Asia/Tokyo")
    one, other = make_schedule("<one>", crontab=crontab), make_schedule("other", crontab=crontab)
    address = f"{NEW_CRONTAB}?schedule={one.pk}"
    page = admin_client.get(address)
    assert "Change the crontab of “<one>” only" in text(page)
    shown = {name: page.context["adminform"].form[name].value() for name in ("minute", "hour", "timezone")}
    assert {name: str(value) for name, value in shown.items()} == {"minute": "5", "hour": "*", "timezone": "Asia/Tokyo"}
    with django_capture_on_commit_callbacks(execute=True):
        page = admin_client.post(address, {"line": "7 4 * * *", "timezone": "Asia/Tokyo"}, follow=True)
    assert "“<one>” now has a crontab of its own: 7 4 * * *" in text(page)
    assert page.redirect_chain[-1][0] == reverse("admin:django_celery_beat_periodictask_change", args=[one.pk])
    one.refresh_from_db()
    other.refresh_from_db()
    assert (one.crontab.minute, one.crontab.hour, other.crontab) == ("7", "4", crontab)
    assert f"{Policy.objects.get(schedule=one).next_due_at:%H:%M}" == "19:07"
    assert history(one) == ["Given a timing of its own: 7 4 * * * (m/h/dM/MY/d) Asia/Tokyo."]


@pytest.mark.parametrize("kind", ["interval", "solar", "clocked"])
def test_it_changes_every_kind_of_timing_of_one_schedule_only(admin_client, kind):
    makers = {
        "interval": lambda: IntervalSchedule.objects.create(every=1, period="hours"),
        "solar": lambda: SolarSchedule.objects.create(event="sunset", latitude=52, longitude=13),
        "clocked": lambda: ClockedSchedule.objects.create(clocked_time=database_now() + timedelta(days=1)),
    }
    timing = makers[kind]()
    one, other = (make_schedule(name, **{kind: timing}, one_off=kind == "clocked") for name in ("one", "other"))
    assert "2 schedules" in timing_page(admin_client, timing)
    new = {"every": "2", "period": "hours", "event": "sunrise", "latitude": "52", "longitude": "13"}
    new |= {"clocked_time_0": "2099-01-01", "clocked_time_1": "00:00"}
    address = reverse(f"admin:django_celery_beat_{timing._meta.model_name}_add")
    assert admin_client.post(f"{address}?schedule={one.pk}", new).status_code == 302
    one.refresh_from_db()
    other.refresh_from_db()
    assert getattr(one, kind) != timing == getattr(other, kind)


@pytest.mark.parametrize("key", ["x", "0", "9" * 30, ""])
def test_it_knows_no_timing_of_a_schedule_that_does_not_exist(admin_client, key):
    make_schedule("hourly")
    assert admin_client.get(f"{NEW_CRONTAB}?schedule={key}").status_code == 404
    hourly = PeriodicTask.objects.get()
    assert admin_client.get(f"{NEW_CRONTAB}?schedule={hourly.pk}").status_code == 404  # it has an interval


def test_it_lets_only_users_who_may_change_a_schedule_change_its_timing(viewer):
    schedule = make_schedule("nightly", cron={"hour": "4"})
    user = User.objects.get()
    user.user_permissions.add(*Permission.objects.filter(codename__in=["add_crontabschedule", "view_crontabschedule"]))
    assert "Timing used by: no other schedule" in page_of(viewer, schedule)
    page = timing_page(viewer, schedule.crontab)
    assert "1 schedule: nightly" in page
    assert "Whole line" not in page
    assert "Line:" not in page
    assert "change only this one" not in page
    address = f"{NEW_CRONTAB}?schedule={schedule.pk}"
    assert viewer.get(address).status_code == 403
    assert viewer.post(address, {"line": "@daily", "timezone": "UTC"}).status_code == 403
    assert CrontabSchedule.objects.count() == 1
    user.user_permissions.remove(Permission.objects.get(codename="view_periodictask"))
    assert "nightly" not in timing_page(viewer, schedule.crontab)


def test_it_says_that_a_deleted_schedule_of_the_settings_comes_back(admin_client):
    schedule = make_schedule("installed", policy={"entry": "x", "owner": "punctual"})
    mine, removed = make_schedule("mine"), make_schedule("old", policy={"entry": "x", "removed_at": database_now()})
    sentence = "From the settings: installed. Deleted, such a schedule comes back when beat next starts."
    for row in (schedule, schedule.interval):
        address = reverse(f"admin:django_celery_beat_{row._meta.model_name}_delete", args=[row.pk])
        assert sentence in text(admin_client.get(address))
    for rows, said in (([mine, removed], False), ([schedule], True)):
        data = {"action": "delete_selected", "_selected_action": [row.pk for row in rows]}
        assert (sentence in text(admin_client.post(SCHEDULES, data))) is said
        assert (sentence in text(admin_client.post(SCHEDULES, data | {"post": "yes"}, follow=True))) is said
    assert not PeriodicTask.objects.exists()


def test_it_says_that_the_entry_of_a_schedule_is_gone(admin_client):
    policy = {"entry": "x", "owner": "punctual", "removed_at": database_now()}
    page = page_of(admin_client, make_schedule(policy=policy, enabled=False))
    assert "CELERY_BEAT_SCHEDULE of the project punctual, until" in page
    assert "Enable it to keep it as your own." in page
    assert "1 periodic task" in text(admin_client.get(f"{SCHEDULES}?condition=removed"))


def test_it_lists_an_invalid_crontab_that_was_created_without_the_form(admin_client):
    CrontabSchedule.objects.bulk_create([CrontabSchedule(day_of_week="-1")])
    assert "* * * * -1" in text(admin_client.get(reverse("admin:django_celery_beat_crontabschedule_changelist")))
    address = reverse("admin:django_celery_beat_crontabschedule_change", args=[CrontabSchedule.objects.get().pk])
    assert "-1" in admin_client.get(address).content.decode()


@pytest.mark.parametrize(("every", "period"), [("0", "days"), ("1", "microseconds"), ("1000000000", "days")])
def test_it_refuses_an_interval_that_is_too_short_or_too_long(admin_client, every, period):
    page = text(admin_client.post(NEW_INTERVAL, {"every": every, "period": period}))
    assert "Please correct the error" in page
    assert not IntervalSchedule.objects.exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"event": "sunset", "latitude": "89.9", "longitude": "0"}, "latitude"),
        ({"event": "sunset", "latitude": "NaN", "longitude": "0"}, "Enter a number"),
        ({"event": "sunset", "latitude": "", "longitude": ""}, "This field is required"),
        ({"event": "teatime", "latitude": "1", "longitude": "1"}, "Select a valid choice"),
        ({}, "This field is required"),
    ],
)
def test_it_refuses_a_solar_event_that_cannot_be_computed(admin_client, fields, sentence):
    assert sentence in text(admin_client.post(NEW_SOLAR, fields))
    assert not SolarSchedule.objects.exists()


def test_it_creates_a_solar_event_and_a_clocked_moment(admin_client):
    admin_client.post(NEW_SOLAR, {"event": "sunset", "latitude": "52.5", "longitude": "13.4"})
    admin_client.post(NEW_CLOCKED, {"clocked_time_0": "2031-01-01", "clocked_time_1": "04:00"})
    assert (SolarSchedule.objects.count(), ClockedSchedule.objects.count()) == (1, 1)
    assert "Enter a valid date" in text(admin_client.post(NEW_CLOCKED, {"clocked_time_0": "x", "clocked_time_1": "y"}))


def test_it_shows_the_next_due_moments_in_both_zones_and_why_some_will_not_run(admin_client):
    cron = {"minute": "0", "hour": "4", "timezone": "Asia/Kathmandu"}
    schedule = make_schedule(cron=cron, policy={"skip_next": 1, "remaining_runs": 2})
    policy = Policy.objects.get()
    first, *_ = calendar.upcoming(policy, 1)
    Policy.objects.all().pause(by="ada", reason="audit", until=first + timedelta(days=1, hours=1))
    page = page_of(admin_client, schedule)
    shown = page.split("Next due:")[1].split("Status:")[0]
    days = [first + timedelta(days=number) for number in range(4)]
    for day in days:
        next_day = day + timedelta(days=1)
        assert f"{day:%Y-%m-%d} 22:15:00 = {next_day:%Y-%m-%d} 04:00:00 Asia/Kathmandu" in shown
    assert f"{days[0] + timedelta(days=4):%Y-%m-%d} 22:15" not in shown  # two runs are left
    assert shown.count("will not run then:") == 2
    assert shown.index("by hand") < shown.index("paused by ada") < shown.index(f"{days[2]:%Y-%m-%d} 22:15")
    assert "Status: paused by ada until" in page
    assert "audit" in page


def test_it_says_where_a_schedule_comes_from_and_why_it_cannot_run(admin_client):
    schedule = make_schedule(cron={"day_of_month": "31", "month_of_year": "2"}, policy={"entry": "x"})
    page = page_of(admin_client, schedule)
    assert "Next due: no further runs" in page
    assert f"cannot run {Policy.objects.get().invalid_reason}" in page
    assert "CELERY_BEAT_SCHEDULE" in page


@pytest.mark.parametrize(
    ("condition", "shown"),
    [("paused", "tired"), ("flagged", "broken"), ("from_settings", "installed"), ("", "plain"), ("x", "plain")],
)
def test_it_filters_schedules_by_status(admin_client, condition, shown):
    for name in ("tired", "broken", "installed", "plain"):
        make_schedule(name)
    Policy.objects.filter(schedule__name="tired").pause(by="ada")
    Policy.objects.filter(schedule__name="broken").update(invalid_reason="no")
    Policy.objects.filter(schedule__name="installed").update(entry="x")
    page = text(admin_client.get(SCHEDULES, {"condition": condition}, follow=True))
    found = {
        name
        for name in ("tired", "broken", "installed", "plain")
        if f" {name} tests.nothing" in page or f" {name} " in page
    }
    assert shown in found
    assert len(found) == (4 if shown == "plain" else 1)


def test_it_keeps_the_numbers_that_beat_counted_down_while_a_user_edited(admin_client):
    schedule = make_schedule(policy={"skip_next": 3, "remaining_runs": 3})
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    shown = admin_client.get(address).content.decode()
    assert 'name="initial-policy-0-skip_next" value="3"' in shown
    Policy.objects.update(skip_next=2, remaining_runs=1)
    fields = form(schedule, name="it", interval=schedule.interval_id, **{"policy-0-jitter": "00:00:05"})
    for name in ("skip_next", "remaining_runs"):
        fields |= {f"policy-0-{name}": 3, f"initial-policy-0-{name}": 3}
    admin_client.post(address, fields)
    policy = Policy.objects.get()
    assert (policy.skip_next, policy.remaining_runs, policy.jitter) == (2, 1, timedelta(seconds=5))


def test_it_skips_moments_from_when_a_user_saved_the_number(admin_client):
    schedule = make_schedule()
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    before = database_now()
    admin_client.post(address, form(schedule, name="it", interval=schedule.interval_id, **{"policy-0-skip_next": 2}))
    policy = Policy.objects.get()
    assert policy.skip_next == 2
    assert before <= policy.skip_from <= database_now()


def test_it_refuses_a_limit_of_zero_runs_but_keeps_one_that_is_used_up(admin_client):
    schedule = make_schedule(policy={"remaining_runs": 4})
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    fields = form(schedule, name="it", interval=schedule.interval_id)
    page = text(
        admin_client.post(address, fields | {"policy-0-remaining_runs": 0, "initial-policy-0-remaining_runs": 4})
    )
    assert "Enter at least 1, or disable the schedule" in page
    Policy.objects.update(remaining_runs=0)
    used_up = {"policy-0-remaining_runs": 0, "initial-policy-0-remaining_runs": 0}
    assert "was changed successfully" in text(admin_client.post(address, fields | used_up, follow=True))


def test_it_pauses_with_a_reason_until_a_date_and_resumes(admin_client):
    schedule, other = make_schedule("nightly"), make_schedule("other")
    page = text(act(admin_client, "pause", schedule))
    assert "Pause 1 schedule" in page
    assert not Policy.objects.paused().exists()
    fields = {"reason": "audit", "until_0": "2099-01-01", "until_1": "06:00", "catch_up": "latest"}
    assert "1 schedule is paused." in text(act(admin_client, "pause", schedule, **fields))
    policy = Policy.objects.paused().get()
    assert (policy.schedule, policy.paused_by, policy.pause_reason) == (schedule, "admin", "audit")
    assert (policy.paused_until, policy.pause_catch_up) == (datetime(2099, 1, 1, 6, tzinfo=UTC), "latest")
    assert "paused by admin until 2099-01-01 06:00:00 UTC: audit" in text(admin_client.get(SCHEDULES))
    assert "1 schedule was resumed." in text(act(admin_client, "resume", schedule, other))
    assert not Policy.objects.paused().exists()
    assert history(schedule) == ["Paused.", "Resumed."]
    assert history(other) == []
    assert "None of the selected schedules is paused." in text(act(admin_client, "resume", other))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"until_0": "2001-01-01", "until_1": "06:00", "catch_up": "none"}, "next hundred years"),
        ({"until_0": "9999-12-31", "until_1": "23:59", "catch_up": "none"}, "next hundred years"),
        ({"until_0": "2099-01-01", "catch_up": "none"}, "Enter a valid time"),
        ({"catch_up": "sometimes"}, "Select a valid choice"),
        ({"reason": "x" * 501, "catch_up": "none"}, "at most 500"),
        ({"reason": "\x00", "catch_up": "none"}, "Null characters"),
        ({"reason": "no catch-up said"}, "This field is required"),
    ],
)
def test_it_shows_the_form_again_when_a_pause_is_invalid(admin_client, fields, sentence):
    assert sentence in text(act(admin_client, "pause", make_schedule(), **fields))
    assert not Policy.objects.paused().exists()


def test_it_skips_the_given_number_of_due_moments(admin_client):
    schedules = [make_schedule(f"s{number}") for number in range(3)]
    assert "How many of the next due moments" in text(act(admin_client, "skip_next", *schedules[:2]))
    page = text(act(admin_client, "skip_next", *schedules[:2], moments=2))
    assert "2 schedules will each skip the next 2 due moments." in page
    assert list(Policy.objects.order_by("pk").values_list("skip_next", flat=True)) == [2, 2, 0]
    for wrong in (-1, "x", 10**9, ""):
        assert "How many of the next due moments" in text(act(admin_client, "skip_next", *schedules, moments=wrong))
    assert history(schedules[0]) == ["Told to skip 2 due moments."]
    for moments, skipped in ((1, "the next due moment"), (0, "no due moment")):
        page = text(act(admin_client, "skip_next", schedules[0], moments=moments))
        assert f"1 schedule will skip {skipped}." in page


def test_it_acts_on_all_pages_of_a_search_when_the_user_selects_all(admin_client):
    for number in range(3):
        make_schedule(f"wanted{number}")
    first = make_schedule("other")
    form_page = admin_client.post(
        SCHEDULES + "?q=wanted", {"action": "pause", "select_across": 1, "_selected_action": first.pk}
    )
    assert "Pause 3 schedules" in text(form_page)
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form_page.content.decode()))
    admin_client.post(SCHEDULES + "?q=wanted", {**hidden, "catch_up": "none"})
    assert Policy.objects.paused().count() == 3
    assert not Policy.objects.paused().filter(schedule=first).exists()


def backfill_fields(**fields) -> dict[str, object]:
    today = database_now().replace(minute=0, second=0, microsecond=0) - timedelta(days=1)
    start, end = today - timedelta(hours=12), today
    moments = {
        "start_0": f"{start:%Y-%m-%d}",
        "start_1": f"{start:%H:%M}",
        "end_0": f"{end:%Y-%m-%d}",
        "end_1": f"{end:%H:%M}",
    }
    return moments | {"which": "missing", "at_once": 2} | fields


def hidden_of(response) -> dict[str, str]:
    return dict(
        re.findall(r'<input type="hidden" name="(request|previewed)" value="([^"]*)"', response.content.decode())
    )


def test_it_previews_a_backfill_and_creates_its_runs_once(admin_client):
    schedule = make_schedule("hourly", cron={"minute": "30"})
    previewed = act(admin_client, "backfill", schedule, **backfill_fields(preview="Preview"))
    assert "This backfill would create 12 runs. 12 runs lie before the timings of this schedule are known: " in text(
        previewed
    )
    assert "Create 12 runs" in previewed.content.decode()
    assert not Backfill.objects.exists()
    fields = backfill_fields(do="Create 12 runs", **hidden_of(previewed))
    page = text(act(admin_client, "backfill", schedule, **fields))
    assert "Created 12 runs of “hourly”, at most 2 at a time: show the runs" in page
    page = text(act(admin_client, "backfill", schedule, **fields))
    assert "Nothing was backfilled: this request has already created its runs." in page
    assert Run.objects.filter(trigger=Trigger.BACKFILL, actor="admin").count() == 12
    request = Backfill.objects.get()
    assert (request.at_once, request.actor) == (2, "admin")
    page = text(admin_client.get(reverse("admin:jobs_backfill_changelist")))
    assert "0 of 12 ended" in page
    shown = text(admin_client.get(RUNS, {"backfill__id__exact": request.pk}))
    assert "12 runs" in shown
    assert "waits for an earlier run to end" in shown
    assert len(history(schedule)) == 1


def test_it_previews_a_backfill_again_when_the_form_changed(admin_client):
    schedule = make_schedule("hourly", cron={"minute": "30"})
    previewed = act(admin_client, "backfill", schedule, **backfill_fields(preview="Preview"))
    fields = backfill_fields(do="Create 12 runs", **hidden_of(previewed)) | {"which": "all"}
    assert "This backfill would create 12 runs" in text(act(admin_client, "backfill", schedule, **fields))
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"end_0": "2001-01-01"}, "Choose a range in the past"),
        ({"start_0": "0001-01-01", "start_1": "00:00"}, "Choose a range in the past"),
        ({"end_0": "9999-12-31", "end_1": "23:59"}, "Choose a range in the past"),
        ({"start_0": "1971-01-01"}, "more than 10000 due moments"),
        ({"start_0": ""}, "This field is required"),
        ({"at_once": 0}, "greater than or equal to 1"),
        ({"which": "some"}, "Select a valid choice"),
        ({"request": "x", "previewed": "y", "do": "Create"}, "This backfill would create"),
    ],
)
def test_it_shows_the_form_again_when_a_backfill_is_invalid_or_without_preview(admin_client, fields, sentence):
    schedule = make_schedule("hourly", cron={"minute": "30"})
    assert sentence in text(act(admin_client, "backfill", schedule, **backfill_fields(**fields)))
    assert not Run.objects.exists()


def test_it_says_why_a_schedule_cannot_be_backfilled_or_has_nothing_to_backfill(admin_client):
    never = make_schedule("never", cron={"day_of_month": "31", "month_of_year": "2"})
    assert "month" in text(act(admin_client, "backfill", never, **backfill_fields()))
    hourly = make_schedule("hourly", cron={"minute": "30"})
    fields = backfill_fields(end_1=backfill_fields()["start_1"], end_0=backfill_fields()["start_0"])
    fields["end_1"] = f"{fields['start_1'][:3]}10"
    page = act(admin_client, "backfill", hourly, **fields)
    assert "This backfill would create 0 runs." in text(page)
    assert 'name="do"' not in page.content.decode()
    assert "select exactly one schedule" in text(act(admin_client, "backfill", never, hourly))


@pytest.mark.django_db(transaction=True)
def test_it_runs_a_schedule_now_and_records_the_user(admin_client, redis):
    schedule = make_schedule("nightly", enabled=False)
    response = act(admin_client, "run_now", schedule)
    run = Run.objects.get()
    assert (run.trigger, run.actor, run.state) == (Trigger.MANUAL, "admin", State.QUEUED)
    assert redis.llen("celery") == 1
    assert response.status_code == 200


@pytest.mark.django_db(transaction=True)
def test_it_keeps_a_run_waiting_when_the_broker_does_not_answer(admin_client, frozen_broker):
    page = text(act(admin_client, "run_now", make_schedule("nightly")))
    assert Run.objects.get().state == State.WAITING
    assert "“nightly” is waiting. Beat sends it as soon as the broker accepts messages." in page


@pytest.mark.django_db(transaction=True)
def test_it_says_that_a_retry_failed_when_its_message_cannot_be_made(admin_client):
    failed = make_run(make_schedule("nightly"), State.FAILED, options={"serializer": "none"})
    page = text(act_on_runs(admin_client, "retry", failed))
    assert "“nightly” failed: could not be sent: " in page
    assert "queued." not in page


def test_it_says_why_a_schedule_cannot_run_now(admin_client):
    schedule = make_schedule("nightly", task="tests.gone")
    assert "“nightly” cannot run: No job is named" in text(act(admin_client, "run_now", schedule))
    assert not Run.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_it_enables_and_disables_many_schedules_without_starting_runs(admin_client):
    schedules = [make_schedule(f"s{number}", enabled=False) for number in range(5)]
    assert "5 schedules are enabled" in text(act(admin_client, "enable", *schedules))
    assert Policy.objects.filter(next_due_at__gt=database_now()).count() == 5
    assert "5 schedules are disabled" in text(act(admin_client, "disable", *schedules))
    assert not Policy.objects.exclude(next_due_at=None).exists()
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        *(("run_now", {}), ("enable", {}), ("disable", {}), ("resume", {}), ("pause", {"catch_up": "none"})),
        *(("skip_next", {"moments": 3}), ("backfill", {"which": "all", "at_once": 1, "do": "Create"})),
    ],
)
def test_it_refuses_every_action_of_a_user_who_may_only_view(viewer, action, fields):
    schedule = make_schedule(enabled=action != "enable")
    Policy.objects.all().pause(by="ada") if action == "resume" else None
    assert "it" in text(viewer.get(SCHEDULES))
    before = Policy.objects.values().get()
    act(viewer, action, schedule, **fields)
    schedule.refresh_from_db()
    assert schedule.enabled is (action != "enable")
    assert Policy.objects.values().get() == before
    assert not Run.objects.exists()
    assert not Backfill.objects.exists()


def test_it_shows_the_policy_read_only_to_a_user_who_may_only_view(viewer):
    schedule = make_schedule(policy={"overlap": "queue_one"})
    assert "let one run wait until the earlier run ends" in page_of(viewer, schedule)
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    fields = form(schedule, name="it", interval=schedule.interval_id, **{"policy-0-overlap": "allow"})
    assert viewer.post(address, fields).status_code == 403
    assert Policy.objects.get().overlap == "queue_one"


def test_it_offers_no_stock_action_that_bypasses_the_ledger(admin_client):
    make_schedule()
    page = admin_client.get(SCHEDULES).content.decode()
    ours = {"run_now", "enable", "disable", "pause", "resume", "mute", "skip_next", "backfill"}
    assert set(re.findall(r'<option value="(\w+)"', page)) == {"delete_selected", *ours}


def test_it_deletes_schedules_and_keeps_their_runs(admin_client):
    schedule = make_schedule("nightly")
    make_run(schedule, State.SUCCEEDED)
    data = {"action": "delete_selected", "_selected_action": [schedule.pk], "post": "yes"}
    admin_client.post(SCHEDULES, data)
    assert not PeriodicTask.objects.exists()
    assert Run.objects.get().schedule_name == "nightly"


def test_it_deletes_a_schedule_that_was_backfilled(admin_client):
    schedule = make_schedule("hourly", cron={"minute": "30"})
    Backfill.objects.create(schedule=schedule, start=database_now(), end=database_now(), actor="ada")
    data = {"action": "delete_selected", "_selected_action": [schedule.pk], "post": "yes"}
    assert "Successfully deleted" in text(admin_client.post(SCHEDULES, data, follow=True))
    assert not PeriodicTask.objects.exists()


def test_it_keeps_a_schedule_disabled_that_beat_disabled_while_a_user_edited(admin_client):
    schedule = make_schedule()
    PeriodicTask.objects.update(enabled=False)  # as beat does after its last run
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    fields = form(schedule, name="it", interval=schedule.interval_id, description="new")
    admin_client.post(address, fields | {"initial-enabled": "True"})
    schedule.refresh_from_db()
    assert (schedule.description, schedule.enabled) == ("new", False)
    admin_client.post(address, fields | {"initial-enabled": "False"})
    schedule.refresh_from_db()
    assert schedule.enabled


@pytest.mark.parametrize("page", [SCHEDULES, RUNS, NODES, BACKFILLS])
@pytest.mark.parametrize("query", ["name__regex=(", "task=%00", "due_at__year=0", "kwargs__x__regex=(", "id=x", "x=y"])
def test_it_refuses_a_filter_that_the_page_does_not_offer(admin_client, page, query):
    make_run(make_schedule())
    assert admin_client.get(f"{page}?{query}").status_code in {302, 400}


@pytest.mark.parametrize(("page", "action"), [(SCHEDULES, "pause"), (SCHEDULES, "run_now"), (RUNS, "retry")])
@pytest.mark.parametrize("key", ["abc", "9" * 40, "\x00", "", "-1"])
def test_it_shows_the_list_again_when_the_selected_rows_do_not_exist(admin_client, page, action, key):
    response = admin_client.post(page, {"action": action, "_selected_action": [key]}, follow=True)
    assert response.status_code == 200
    assert not Run.objects.exists()


# --- runs -----------------------------------------------------------------------------------------------------------


def act_on_runs(client, name: str, *runs):
    return client.post(RUNS, {"action": name, "_selected_action": [str(run.pk) for run in runs]}, follow=True)


def page_of_run(client, run: Run) -> str:
    return text(client.get(reverse("admin:jobs_run_change", args=[run.pk])))


@pytest.fixture
def operator(client):
    """A client whose user may view runs, and change them: retry and cancel."""
    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_run", "change_run"]))
    client.force_login(user)
    return client


@pytest.mark.django_db(transaction=True)
def test_it_retries_a_run_as_a_new_run_that_names_the_first(operator, redis):
    schedule = make_schedule("nightly")
    failed = make_run(schedule, State.FAILED, args=[7], queue="slow", due_at=database_now() - timedelta(days=1))
    act_on_runs(operator, "retry", failed)
    new = Run.objects.get(parent=failed)
    assert (new.trigger, new.actor, new.args, new.due_at) == (Trigger.RETRY, "ada", [7], failed.due_at)
    assert (new.state, redis.llen("slow")) == (State.QUEUED, 1)
    failed.refresh_from_db()
    assert failed.state == State.FAILED
    assert f"Parent: {failed}" in page_of_run(operator, new)


@pytest.mark.parametrize(
    ("state", "columns", "sentence"),
    [
        (State.RUNNING, {}, "was not retried: it is still running."),
        (State.SKIPPED, {"count": 3}, "it stands for 3 due moments: backfill their range instead."),
        (State.LOST, {"task": "tests.gone"}, "no job is named 'tests.gone' any more."),
    ],
)
def test_it_says_why_a_run_cannot_be_retried(operator, state, columns, sentence):
    run = make_run(make_schedule(), state, **columns)
    assert sentence in text(act_on_runs(operator, "retry", run))
    assert Run.objects.count() == 1


def test_it_cancels_unstarted_runs_and_asks_running_ones_to_end(operator):
    runs = [make_run(state=state) for state in (State.WAITING, State.QUEUED, State.RUNNING, State.SUCCEEDED)]
    page = text(act_on_runs(operator, "cancel", *runs))
    assert "2 unstarted runs were cancelled." in page
    assert "1 running run was asked to end. A job has 10 s to clean up" in page
    for run in runs:
        run.refresh_from_db()
    assert [run.state for run in runs] == [State.CANCELLED, State.CANCELLED, State.RUNNING, State.SUCCEEDED]
    assert runs[0].reason == runs[2].cancel_reason == "cancelled: by ada"
    assert "was asked to end; cancelled: by ada" in page_of_run(operator, runs[2])
    assert "No run was cancelled: all selected runs have ended." in text(act_on_runs(operator, "cancel", runs[3]))


@pytest.mark.parametrize("action", ["retry", "cancel"])
def test_it_refuses_retry_and_cancel_to_a_user_who_may_only_view(viewer, action):
    failed, waiting = make_run(state=State.FAILED), make_run()
    act_on_runs(viewer, action, failed, waiting)
    assert Run.objects.count() == 2
    assert Run.objects.filter(state=State.WAITING).get() == waiting


def test_it_shows_the_progress_steps_and_log_of_a_run(operator):
    run = make_run(state=State.RUNNING, progress_done=1200, progress_total=5000, progress_message="rows")
    for number, state in enumerate((Step.State.SUCCEEDED, Step.State.RUNNING, Step.State.EXPECTED)):
        Step.objects.create(id=number, run=run, attempt=1, task=f"shop.step{number}", state=state, following=number)
    Step.objects.create(id="old", run=run, attempt=0, task="shop.old", state=Step.State.LOST)
    RunLog.append(run.id, 1, "first line <b>\n")
    page = page_of_run(operator, run)
    assert "Progress: 1 of 4 steps, 1,200 of 5,000, rows" in page
    assert "running shop.step1" in page
    assert "shop.old" not in page
    assert "attempt 1 first line <b>" in page


def test_it_shows_the_status_of_each_node_and_its_runs(admin_client):
    make_run(make_schedule("nightly"), State.RUNNING, node="celery@here", pid=7)
    Node.objects.create(name="celery@here", kind="worker", pid=1, queues="celery, slow", version="abc123")
    Node.objects.create(name="celery@gone", kind="worker", pid=2, seen_at=database_now() - timedelta(hours=1))
    Node.objects.create(name="beat@here", kind="beat", pid=3, stopped_at=database_now())
    Node.objects.create(
        name="celery@old", kind="stranger", pid=0, queues="celery", problem="It consumes queue celery: stop it."
    )
    page = text(admin_client.get(reverse("admin:jobs_node_changelist")))
    assert "celery@old Stranger live It consumes queue celery: stop it." in page
    assert re.search(r"celery@here Worker live .* nightly celery, slow .* abc123", page)
    assert "celery@gone Worker silent" in page
    assert "beat@here Beat stopped at" in page


def test_it_keeps_the_name_of_a_schedule_from_the_settings(admin_client):
    schedule = make_schedule("installed")
    Policy.objects.update(entry="x")
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    assert b'name="name"' not in admin_client.get(address).content
    fields = form(schedule, name="renamed", interval=schedule.interval.pk, description="edited")
    assert admin_client.post(address, fields).status_code == 302
    schedule.refresh_from_db()
    assert (schedule.name, schedule.description) == ("installed", "edited")


@pytest.mark.django_db(transaction=True)
def test_it_says_that_a_run_is_queued_where_each_request_is_a_transaction(admin_client, redis, monkeypatch):
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert "“nightly” is queued." in text(act(admin_client, "run_now", make_schedule("nightly")))
    assert Run.objects.get().state == State.QUEUED


def test_it_takes_acts_of_a_user_whose_name_is_an_email_address(client, redis, django_capture_on_commit_callbacks):
    """As a user model of one's own has it: its addresses may be longer than the names of Django's users."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE auth_user ALTER username TYPE varchar(254)")
    name = f"{'ada' * 80}@example.org"
    client.force_login(User.objects.create_superuser(name))
    schedule, failed = make_schedule("hourly", cron={"minute": "30"}), make_run(state=State.FAILED)
    with django_capture_on_commit_callbacks(execute=True):
        act(client, "run_now", schedule)
        act_on_runs(client, "retry", failed)
    assert set(Run.objects.exclude(pk=failed.pk).values_list("trigger", flat=True)) == {"manual", "retry"}
    assert "1 schedule is paused." in text(act(client, "pause", schedule, catch_up="none"))
    previewed = act(client, "backfill", schedule, **backfill_fields(preview="Preview"))
    fields = backfill_fields(do="Create 12 runs", **hidden_of(previewed))
    assert "Created 12 runs" in text(act(client, "backfill", schedule, **fields))
    assert set(Run.objects.exclude(pk=failed.pk).values_list("actor", flat=True)) == {name}
    assert (Policy.objects.get().paused_by, Backfill.objects.get().actor) == (name, name)
    act_on_runs(client, "cancel", *Run.objects.filter(trigger=Trigger.BACKFILL))
    assert set(Run.objects.filter(state=State.CANCELLED).values_list("reason", flat=True)) == {f"cancelled: by {name}"}
    assert f"paused by {name}" in text(client.get(SCHEDULES))
