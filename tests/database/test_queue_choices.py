"""A schedule's page offers the queues of settings, jobs and live workers, and refuses all others."""

import re

import pytest
from django.urls import reverse
from django_celery_beat.models import PeriodicTask

from jobs.messages.arguments import find_task
from jobs.models import Node, database_now
from tests.database.test_admin import NEW, form, page_of, text
from tests.making import make_schedule

pytestmark = pytest.mark.django_db


def options_of(page: str) -> list[tuple[str, str]]:
    """The queues to choose from: their values and labels."""
    select = re.search(r'<select name="queue".*?</select>', page, re.DOTALL)[0]
    return re.findall(r'<option value="(.*?)".*?>(.*?)</option>', select)


def test_it_offers_the_queues_of_settings_jobs_and_live_workers(admin_client, monkeypatch):
    task = find_task("tests.note")
    monkeypatch.setattr(task, "queue", "prices", raising=False)
    Node.objects.create(name="celery@here", kind="worker", pid=1, queues="backup, celery")
    Node.objects.create(name="celery@plain", kind="stranger", pid=0, queues="plain, unacked")
    Node.objects.create(name="celery@gone", kind="worker", pid=1, queues="old", stopped_at=database_now())
    Node.objects.create(name="celery@many", kind="worker", pid=1, queues=("many, " * 84)[:500])  # cut off: "ma"
    offered = options_of(admin_client.get(NEW).content.decode())
    assert offered == [
        ("", "as the job says"),
        ("backup", "backup"),
        ("celery", "celery"),
        ("many", "many"),
        ("plain", "plain"),
        ("prices", "prices (no live worker consumes it)"),
    ]


def test_it_keeps_a_stored_queue_and_changes_it_only_to_a_known_one(admin_client):
    schedule = make_schedule(queue="from.sql")
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    page = admin_client.get(address).content.decode()
    assert ("from.sql", "from.sql (no live worker consumes it)") in options_of(page)
    for queue, stored in (("from.sql", "from.sql"), ("celery", "celery"), ("", None)):
        fields = form(schedule, name="it", interval=schedule.interval_id, queue=queue)
        assert "was changed successfully" in text(admin_client.post(address, fields, follow=True))
        schedule.refresh_from_db()
        assert schedule.queue == stored
    fields["queue"] = "from.sql"
    assert "Choose a listed queue instead of from.sql" in text(admin_client.post(address, fields, follow=True))


def test_it_refuses_to_save_a_stored_queue_of_kombu_s(admin_client):
    schedule = make_schedule()
    PeriodicTask.objects.update(queue="unacked")
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    fields = form(schedule, name="it", interval=schedule.interval_id, queue="unacked")
    assert "Choose another queue than &#x27;unacked&#x27;" in admin_client.post(address, fields).content.decode()


def test_it_shows_an_exchange_only_where_a_row_has_one_and_lets_no_user_change_it(admin_client):
    schedule = make_schedule()
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    for page in (admin_client.get(NEW), admin_client.get(address)):
        assert "exchange" not in page.content.decode().lower()
    PeriodicTask.objects.update(exchange="topics", routing_key="a.b")
    page = page_of(admin_client, schedule)
    assert "topics" in page
    assert "a.b" in page
    fields = form(schedule, name="it", interval=schedule.interval_id, exchange="celery.pidbox", routing_key="")
    assert "was changed successfully" in text(admin_client.post(address, fields, follow=True))
    admin_client.post(NEW, form(interval=schedule.interval_id, exchange="celery.pidbox", routing_key="x"))
    stored = PeriodicTask.objects.order_by("pk").values_list("exchange", "routing_key")
    assert list(stored) == [("topics", "a.b"), (None, None)]
