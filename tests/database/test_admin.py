"""The admin: it shows what the ledger says, refuses what could never run, and acts only for those who may."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs.models import Policy, Run, State, Trigger, database_now
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db

SCHEDULES = reverse("admin:django_celery_beat_periodictask_changelist")
NEW = reverse("admin:django_celery_beat_periodictask_add")
NEW_CRONTAB = reverse("admin:django_celery_beat_crontabschedule_add")
NEW_INTERVAL = reverse("admin:django_celery_beat_intervalschedule_add")
RUNS = reverse("admin:jobs_run_changelist")


def text(response) -> str:
    """The page as a person reads it."""
    assert response.status_code == 200
    body = re.sub(r"(?s)<style.*?</style>|<script.*?</script>|<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(body))


def act(client, name: str, *schedules):
    data = {"action": name, "_selected_action": [schedule.pk for schedule in schedules]}
    return client.post(SCHEDULES, data, follow=True)


def form(schedule: PeriodicTask | None = None, **fields) -> dict[str, object]:
    """What a browser sends for the form of a schedule."""
    policy = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 1 if schedule else 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1}
    policy |= {"0-overlap": "skip", "0-catch_up": "latest", "0-catch_up_window": "1 00:00:00", "0-max_attempts": 1}
    policy |= {"0-retry_delay": "00:00:30", "0-rerun_if_lost": "on", "0-keep_result": "unknown"}
    policy |= {"0-catch_up_cap": 100, "0-jitter": "00:00:00", "0-skip_next": 0}
    if schedule:
        policy["0-schedule"] = schedule.pk
    row = {"name": "new", "task": "tests.nothing", "enabled": "on", "args": "[]", "kwargs": "{}", "headers": "{}"}
    return row | {f"policy-{name}": value for name, value in policy.items()} | fields


@pytest.fixture
def viewer(client):
    """A client of somebody who may look at schedules and runs, and no more."""
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_periodictask", "view_run"]))
    client.force_login(user)
    return client


def test_it_shows_when_a_schedule_is_due_and_how_its_last_run_ended(admin_client):
    schedule = make_schedule("nightly")
    due_at = database_now() - timedelta(minutes=5)
    times = {"due_at": due_at, "started_at": due_at + timedelta(seconds=2)}
    make_run(schedule, State.FAILED, **times, finished_at=due_at + timedelta(seconds=6.5), reason="ValueError: no")
    page = text(admin_client.get(SCHEDULES))
    assert f"{Policy.objects.get().next_due_at:%Y-%m-%d %H:%M:%S}" in page
    assert "failed ValueError: no 2.00 s 4.50 s" in page


def test_it_says_what_was_never_due_and_what_cannot_run(admin_client):
    make_schedule("fresh")
    make_schedule("bad", cron={"day_of_month": "31", "month_of_year": "2"})
    page = text(admin_client.get(SCHEDULES))
    assert "has not been due yet" in page
    assert f"cannot run {Policy.objects.exclude(invalid_reason='').get().invalid_reason}" in page


def test_it_asks_the_database_as_often_for_many_schedules_as_for_one(admin_client, django_assert_num_queries):
    for number in range(3):
        make_run(make_schedule(f"s{number}"), State.SUCCEEDED)
    admin_client.get(SCHEDULES)
    with django_assert_num_queries(5):
        admin_client.get(SCHEDULES)
    for number in range(3, 30):
        make_run(make_schedule(f"s{number}"), State.SUCCEEDED)
    with django_assert_num_queries(5):
        admin_client.get(SCHEDULES)


def test_it_shows_the_ledger_and_lets_nobody_change_it(admin_client):
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


@pytest.mark.parametrize(("value", "shown"), [("waiting", True), ("failed", False), ("\x00", True), ("x", True)])
def test_it_filters_runs_by_known_states_only(admin_client, value, shown):
    make_run(make_schedule("nightly"))
    page = text(admin_client.get(RUNS, {"state__exact": value}, follow=True))
    assert ("nightly" in page) is shown


def test_it_makes_a_schedule_with_its_policy(admin_client):
    make_schedule("other")
    interval = PeriodicTask.objects.get().interval_id
    fields = form(interval=interval, **{"policy-0-overlap": "allow", "policy-0-max_attempts": 4})
    page = text(admin_client.post(NEW, fields, follow=True))
    assert "was added successfully" in page
    policy = Policy.objects.get(schedule__name="new")
    assert (policy.overlap, policy.max_attempts) == ("allow", 4)
    assert policy.next_due_at > database_now()


def test_it_changes_a_policy_and_leaves_the_next_due_moment_alone(admin_client):
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
        ({"args": '["\\u0000"]'}, "control characters"),
        ({"name": "\x00"}, "Null characters are not allowed"),
        ({"task": "\x00"}, "Need name of task"),
        ({"headers": ""}, None),
        ({"interval": ""}, "exactly one"),
        ({"start_time_0": "x", "start_time_1": "y"}, "Enter a valid date"),
        ({"expire_seconds": "-1"}, "greater than or equal to 0"),
        ({"priority": "999"}, "less than or equal to 255"),
        ({"policy-0-max_attempts": "0"}, "greater than or equal to 1"),
        ({"policy-0-retry_delay": "-1 00:00:00"}, "greater than or equal to"),
        ({"policy-0-catch_up_window": "9999999999 00:00:00"}, "number of days must be"),
        ({"policy-0-time_limit": "0"}, "greater than or equal to 1"),
    ],
)
def test_it_refuses_what_could_never_run_with_a_sentence(admin_client, fields, sentence):
    make_schedule("other")
    interval = PeriodicTask.objects.get().interval_id
    page = text(admin_client.post(NEW, form(**{"interval": interval, **fields}), follow=True))
    assert PeriodicTask.objects.filter(name="new").exists() is (sentence is None)
    if sentence:
        assert sentence in page


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"day_of_week": "-1"}, "day"),
        ({"day_of_week": "7"}, "day"),
        ({"day_of_month": "31", "month_of_year": "2"}, "month"),
        ({"minute": "*/0"}, "must be from 1 to 60"),
        ({"timezone": "Mars/Phobos"}, "Select a valid choice"),
    ],
)
def test_it_refuses_a_crontab_that_never_comes(admin_client, fields, sentence):
    every = dict.fromkeys(("minute", "hour", "day_of_month", "month_of_year", "day_of_week"), "*")
    page = text(admin_client.post(NEW_CRONTAB, {**every, "timezone": "UTC", **fields}))
    assert sentence in page.split("Please correct the error")[1]
    assert not CrontabSchedule.objects.exists()


def test_it_lists_a_crontab_that_was_written_past_the_form(admin_client):
    CrontabSchedule.objects.bulk_create([CrontabSchedule(day_of_week="-1")])
    assert "* * * * -1" in text(admin_client.get(reverse("admin:django_celery_beat_crontabschedule_changelist")))
    address = reverse("admin:django_celery_beat_crontabschedule_change", args=[CrontabSchedule.objects.get().pk])
    assert "-1" in admin_client.get(address).content.decode()


@pytest.mark.parametrize(("every", "period"), [("0", "days"), ("1", "microseconds"), ("1000000000", "days")])
def test_it_refuses_an_interval_that_cannot_be_kept(admin_client, every, period):
    page = text(admin_client.post(NEW_INTERVAL, {"every": every, "period": period}))
    assert "Please correct the error" in page
    assert not IntervalSchedule.objects.exists()


def test_it_runs_a_schedule_now_for_the_person_who_asked(admin_client, redis, django_capture_on_commit_callbacks):
    schedule = make_schedule("nightly", enabled=False)
    with django_capture_on_commit_callbacks(execute=True):
        response = act(admin_client, "run_now", schedule)
    run = Run.objects.get()
    assert (run.trigger, run.actor, run.state) == (Trigger.MANUAL, "admin", State.QUEUED)
    assert redis.llen("celery") == 1
    assert response.status_code == 200


@pytest.mark.django_db(transaction=True)
def test_it_keeps_a_run_for_later_while_the_broker_is_frozen(admin_client, frozen_broker):
    page = text(act(admin_client, "run_now", make_schedule("nightly")))
    assert Run.objects.get().state == State.WAITING
    assert "“nightly” waits: the broker is away." in page


def test_it_says_why_a_schedule_cannot_run_now(admin_client):
    schedule = make_schedule("nightly", task="tests.gone")
    assert "“nightly” cannot run: No job is named" in text(act(admin_client, "run_now", schedule))
    assert not Run.objects.exists()


def test_it_switches_many_schedules_and_fires_none(admin_client):
    schedules = [make_schedule(f"s{number}", enabled=False) for number in range(5)]
    assert "5 schedules are enabled" in text(act(admin_client, "enable", *schedules))
    assert Policy.objects.filter(next_due_at__gt=database_now()).count() == 5
    assert "5 schedules are disabled" in text(act(admin_client, "disable", *schedules))
    assert not Policy.objects.exclude(next_due_at=None).exists()
    assert not Run.objects.exists()


@pytest.mark.parametrize("action", ["run_now", "enable", "disable"])
def test_it_lets_nobody_act_who_may_only_look(viewer, action):
    schedule = make_schedule(enabled=action != "enable")
    assert "it" in text(viewer.get(SCHEDULES))
    act(viewer, action, schedule)
    schedule.refresh_from_db()
    assert schedule.enabled is (action != "enable")
    assert not Run.objects.exists()


def test_it_keeps_the_stock_actions_that_bypass_the_ledger_away(admin_client):
    make_schedule()
    page = admin_client.get(SCHEDULES).content.decode()
    assert set(re.findall(r'<option value="(\w+)"', page)) == {"delete_selected", "run_now", "enable", "disable"}


def test_it_removes_schedules_and_keeps_their_runs(admin_client):
    schedule = make_schedule("nightly")
    make_run(schedule, State.SUCCEEDED)
    data = {"action": "delete_selected", "_selected_action": [schedule.pk], "post": "yes"}
    admin_client.post(SCHEDULES, data)
    assert not PeriodicTask.objects.exists()
    assert Run.objects.get().schedule_name == "nightly"
