"""Every stored moment shows: at the end of the years, and in zones in which it lies outside of them."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from jobs.beat import claim
from jobs.management.commands.up import describe
from jobs.models import Attempt, Backfill, Delivery, FeedEntry, Measurement, Node, Policy, Run, State
from jobs.schedules import calendar
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
EVERYWHERE = pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles", "UTC"])
AT_THE_ENDS = pytest.mark.parametrize("moment", [FIRST, LAST])
DATES = (
    *((PeriodicTask, ("start_time", "expires", "last_run_at")), (ClockedSchedule, ("clocked_time",))),
    (Policy, ("next_due_at", "owed_from", "timing_since", "paused_at", "paused_until", "forgotten_until")),
    (Run, ("due_at", "last_due_at", "not_before", "expires_at", "queued_at", "started_at", "finished_at")),
    *((Attempt, ("started_at", "ended_at")), (Backfill, ("start", "end", "created_at"))),
    *((Node, ("started_at", "seen_at", "stopped_at")), (Delivery, ("begun_at",)), (Measurement, ("at", "loaded_at"))),
    (FeedEntry, ("published_at", "imported_at")),
)


@pytest.fixture
def rows(zone, settings):
    """A row of each kind that has dates."""
    settings.TIME_ZONE = zone
    schedule = make_schedule(cron={"minute": "5", "timezone": zone})
    run = make_run(schedule, State.SUCCEEDED, started_at=FIRST)
    Attempt.objects.create(run=run, number=1, outcome=Attempt.Outcome.LOST, started_at=LAST)
    Backfill.objects.create(schedule=schedule, start=FIRST, end=LAST)
    Node.objects.create(name="beat@here", kind=Node.Kind.BEAT, pid=1, stopped_at=LAST)
    Delivery.objects.create(id=uuid4(), run=run, address="a@example.com")
    FeedEntry.objects.create(feed="f", guid="g", title="t", published_at=LAST)
    Measurement.objects.create(dataset="d", key="k", column="c", value=1, at=LAST, loaded_at=LAST)
    clocked = make_schedule("once", clocked=ClockedSchedule.objects.create(clocked_time=LAST), one_off=True)
    return [schedule, clocked, run]


def set_all(moment: datetime) -> None:
    for model, columns in DATES:
        model.objects.update(**dict.fromkeys(columns, moment))


def pages(*rows) -> list[str]:
    lists = [
        reverse(f"admin:{model._meta.label_lower.replace('.', '_')}_changelist")
        for model, _ in DATES
        if model not in (Policy, Attempt)
    ]
    kept = [*rows, ClockedSchedule.objects.get(), Backfill.objects.get(), Node.objects.get(), Delivery.objects.get()]
    return lists + [reverse(f"admin:{row._meta.label_lower.replace('.', '_')}_change", args=[row.pk]) for row in kept]


@EVERYWHERE
@AT_THE_ENDS
def test_it_shows_every_stored_moment_on_every_page(admin_client, rows, moment):
    set_all(moment)
    for page in pages(*rows):
        assert admin_client.get(page).status_code == 200, page
    for run in Run.objects.all():
        assert describe(run)


@EVERYWHERE
@AT_THE_ENDS
def test_it_shows_every_stored_moment_to_users_who_may_not_edit(client, rows, moment):
    set_all(moment)
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    for page in pages(*rows):
        assert client.get(page).status_code == 200, page


@EVERYWHERE
@pytest.mark.parametrize(("start", "end"), [(FIRST, LAST), (LAST, None), (None, FIRST)])
def test_it_saves_a_form_that_shows_a_moment_at_the_end_of_the_years(admin_client, rows, start, end):
    schedule = rows[0]
    PeriodicTask.objects.filter(pk=schedule.pk).update(start_time=start, expires=end, enabled=False)
    page = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    html = admin_client.get(page).content.decode()
    inputs = re.findall(r'<input type="(?:text|hidden|number)" name="([^"]+)" value="([^"]*)"', html)
    chosen = {"task": schedule.task, "crontab": schedule.crontab_id, "args": "[]", "kwargs": "{}", "headers": "{}"}
    chosen |= {f"policy-0-{name}": value for name, value in (("overlap", "skip"), ("catch_up", "latest"))}
    chosen |= {"policy-0-keep_result": "unknown", "description": "saved"}
    answer = admin_client.post(page, dict(inputs) | chosen)
    assert answer.status_code == 302, answer.context["errors"]
    saved = PeriodicTask.objects.get(pk=schedule.pk)
    assert saved.description == "saved"
    for was, now in ((start, saved.start_time), (end, saved.expires)):
        assert was is now or abs(was - now) < DAY


@pytest.mark.parametrize(
    ("text", "read"), [("infinity", LAST), ("12000-01-01", LAST), ("-infinity", FIRST), ("0044-03-15 BC", FIRST)]
)
def test_it_reads_moments_that_only_the_database_can_hold(admin_client, text, read):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite stores any text as a date.")
    make_schedule(cron={"minute": "5"})
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_periodictask SET expires = %s", [text])
    assert PeriodicTask.objects.get().expires == read
    assert admin_client.get(reverse("admin:django_celery_beat_periodictask_changelist")).status_code == 200
    calendar.sweep()
    assert Policy.objects.get().invalid_reason == ""
    assert (Policy.objects.get().next_due_at is None) == (read == FIRST)


def test_it_changes_no_other_moment():
    moment = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    with timezone.override("Europe/Berlin"):
        assert timezone.localtime(moment).isoformat() == "2026-03-29T03:30:00+02:00"
        assert timezone.make_naive(moment) == datetime(2026, 3, 29, 3, 30)  # noqa: DTZ001 - as Django answers


@pytest.mark.skipif(
    "connection.vendor != 'postgresql'", reason="a column of SQLite holds numbers, all of which Python has"
)
@pytest.mark.parametrize("text", ["100000000 years", "-100000000 years"])
@pytest.mark.parametrize("column", ["retry_delay", "catch_up_window", "jitter"])
def test_it_stops_no_other_schedule_for_a_duration_that_python_cannot_hold(admin_client, column, text):
    schedules = [make_schedule(name) for name in ("bad", "good")]
    due_at = [make_due(schedule) for schedule in schedules]
    with connection.cursor() as cursor:
        sql = f"UPDATE jobs_policy SET {column} = %s::interval WHERE schedule_id = %s"
        cursor.execute(sql, [text, schedules[0].pk])
    calendar.sweep()
    for _ in claim.claim_due():
        pass
    assert Run.objects.get(schedule=schedules[1]).due_at == due_at[1]
    for name, keys in (("changelist", []), ("change", [schedules[0].pk])):
        assert admin_client.get(reverse(f"admin:django_celery_beat_periodictask_{name}", args=keys)).status_code == 200
