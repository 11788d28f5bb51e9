"""The page that says what a schedule did at a moment: the sentence of the ledger, for users who may view schedules."""

from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from django.utils import timezone

from jobs.models import Policy, State, database_now
from jobs.monitoring.history import what_happened
from jobs.schedules import calendar
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


@pytest.fixture
def schedule():
    schedule = make_schedule("Invoices <b>")
    calendar.find_changes(None)
    long_ago = database_now() - 24 * HOUR
    Policy.objects.update(known_since=long_ago, timing_since=long_ago)
    return schedule


def ask(client, schedule, at=None, **fields):
    if at is not None:
        local = timezone.localtime(at)
        fields = {"at_0": f"{local:%Y-%m-%d}", "at_1": f"{local:%H:%M:%S}"}
    return client.get(reverse("admin:jobs_happened", args=[schedule.pk]), fields)


def test_it_shows_the_sentence_and_leads_to_the_run_and_the_moments_beside_it(admin_client, schedule):
    due = (database_now() - HOUR).replace(microsecond=0)
    run = make_run(schedule, State.FAILED, due_at=due, last_due_at=due, reason="failed: KeyError: 'a'")
    page = unescape(ask(admin_client, schedule, due).content.decode())
    assert what_happened(schedule, due).sentence in page
    assert "failed: KeyError: 'a'" in page
    assert reverse("admin:jobs_run_change", args=[run.pk]) in page
    assert "later: " in page


def test_it_asks_first_and_names_wrong_moments(admin_client, schedule):
    page = ask(admin_client, schedule)
    assert page.status_code == 200
    assert "It was" not in page.content.decode()
    assert "Invoices &lt;b&gt;" in page.content.decode()
    for wrong in (
        {"at_0": "yesterday", "at_1": "04:00"},
        {"at_0": "2026-03-01"},
        {"at_0": "0001-01-01", "at_1": "0:00"},
    ):
        assert ask(admin_client, schedule, **wrong).status_code == 200


def test_the_page_of_a_schedule_leads_there(admin_client, schedule):
    page = admin_client.get(reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk]))
    assert reverse("admin:jobs_happened", args=[schedule.pk]) in page.content.decode()


def test_it_needs_the_permission_to_view_schedules(client, schedule):
    user = User.objects.create_user("tom", is_staff=True)
    client.force_login(user)
    assert ask(client, schedule).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_periodictask"))
    due = (database_now() - HOUR).replace(microsecond=0)
    run = make_run(schedule, State.SUCCEEDED, due_at=due, last_due_at=due)
    page = ask(client, schedule, due)
    assert page.status_code == 200
    assert reverse("admin:jobs_run_change", args=[run.pk]) not in page.content.decode()


@pytest.mark.parametrize("key", ["0", "nothing", "9" * 40])
def test_a_schedule_that_does_not_exist_is_not_found(admin_client, key):
    assert admin_client.get(f"/admin/django_celery_beat/periodictask/{key}/happened/").status_code == 404
