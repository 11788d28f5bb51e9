"""An unknown time zone in a row, stored by SQL or another machine, stops no page and no other job."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.urls import reverse
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from jobs.beat import claim
from jobs.models import PastTiming, Policy, Run, database_now
from jobs.rules.moments import FIRST
from jobs.schedules import calendar
from tests.making import make_due, make_schedule

pytestmark = pytest.mark.django_db

NAMES = ["Mars/Base", "../../etc/passwd", "Europe", "é\n"]


@pytest.fixture(params=NAMES)
def schedule(request) -> PeriodicTask:
    """A schedule whose timing, now and in the past, names an unknown zone; another one is due beside it."""
    stored = make_schedule("foreign", cron={"minute": "5"})
    make_due(stored)
    timing = Policy.objects.get(schedule=stored).timing.replace('"UTC"', f'"{request.param}"')
    now = database_now()
    PastTiming.objects.create(schedule=stored, timing=timing, since=FIRST, until=now)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_crontabschedule SET timezone = %s", [request.param])
        cursor.execute("UPDATE jobs_policy SET timing = %s WHERE timing <> ''", [timing])
    make_due(make_schedule("neighbour"))
    return stored


def address(name: str, *arguments: object) -> str:
    return reverse(f"admin:django_celery_beat_{name}", args=arguments)


def pages(schedule: PeriodicTask) -> list[str]:
    crontab = schedule.crontab_id
    lists = [address(f"{name}_changelist") for name in ("crontabschedule", "periodictask")]
    return [
        *lists,
        *(f"{each}?q=foreign" for each in lists),
        address("crontabschedule_change", crontab),
        address("crontabschedule_delete", crontab),
        address("crontabschedule_history", crontab),
        address("crontabschedule_add") + f"?schedule={schedule.pk}",
        address("periodictask_change", schedule.pk),
        address("periodictask_delete", schedule.pk),
        address("periodictask_add"),
        reverse("admin:jobs_run_changelist"),
    ]


def test_it_shows_every_page(admin_client, schedule):
    for page in pages(schedule):
        assert admin_client.get(page, follow=True).status_code == 200, page


def test_it_shows_every_page_to_users_who_may_not_edit(client, schedule):
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    for page in pages(schedule):
        assert client.get(page, follow=True).status_code in {200, 403}, page


def test_it_flags_the_schedule_and_runs_all_others(schedule):
    calendar.sweep()
    assert list(claim.claim_due())
    policy = Policy.objects.get(schedule=schedule)
    assert re.search("There is no time zone|does not describe a schedule", policy.invalid_reason)
    assert policy.next_due_at is None
    assert Run.objects.get(schedule_name="neighbour").state == "waiting"


def test_it_keeps_the_name_when_the_row_is_stored_again(schedule):
    row = CrontabSchedule.objects.get()
    row.save()
    with connection.cursor() as cursor:
        cursor.execute("SELECT timezone FROM django_celery_beat_crontabschedule")
        assert cursor.fetchone() == (str(row.timezone),)


def test_it_never_replaces_the_zone_silently(admin_client, schedule):
    page, stored = address("crontabschedule_change", schedule.crontab_id), str(CrontabSchedule.objects.get().timezone)
    select = admin_client.get(page).context["adminform"].form["timezone"]
    assert stored in [value for value, _ in select.field.choices]
    assert str(select).count(" selected>") == 1
    posted = {"minute": "6", "hour": "*", "day_of_month": "*", "month_of_year": "*", "day_of_week": "*"}
    answer = admin_client.post(page, posted | {"timezone": stored})
    assert answer.context["adminform"].form.errors["timezone"]
    assert CrontabSchedule.objects.get().minute == "5"
    assert admin_client.post(page, posted | {"timezone": "Europe/Berlin"}).status_code == 302
    assert str(CrontabSchedule.objects.get().timezone) == "Europe/Berlin"


def test_it_names_an_empty_zone_as_it_is():
    stored = make_schedule("foreign", cron={"minute": "5"})
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_crontabschedule SET timezone = ''")
    make_due(stored)
    Policy.objects.update(timing="")
    calendar.sweep()
    assert "There is no time zone ''" in Policy.objects.get(schedule=stored).invalid_reason
