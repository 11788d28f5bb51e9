"""The statistics: which runs do they count, by which index, who may see them, and when are they new?"""

import json
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django_celery_beat.models import PeriodicTask

from jobs.models import Policy, Run, State, Trigger, database_now
from jobs.monitoring import statistics
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)
PAGE = "/statistics"
SCHEDULES = reverse("admin:django_celery_beat_periodictask_changelist")


def test_it_counts_runs_by_state_but_none_that_ended_over_a_day_ago():
    for state in (State.WAITING, State.RUNNING, State.RUNNING, State.FAILED, State.SUCCEEDED):
        make_run(state=state)
    make_run(state=State.FAILED, finished_at=database_now() - timedelta(days=1, seconds=1))
    figures = statistics.figures()
    assert figures["active"] == {"queued": 0, "running": 2, "waiting": 1}
    ended = {"cancelled": 0, "expired": 0, "failed": 1, "lost": 0, "skipped": 0, "succeeded": 1}
    assert figures["ended_in_24_hours"] == ended


def test_it_counts_schedules_by_condition():
    for number, enabled in enumerate((True, True, True, False)):
        make_schedule(f"schedule {number}", enabled=enabled)
    Policy.objects.filter(schedule__name__in=["schedule 0", "schedule 3"]).pause(by="ada")
    Policy.objects.filter(schedule__name="schedule 1").update(invalid_reason="It never comes.")
    assert statistics.figures()["schedules"] == {"total": 4, "enabled": 3, "paused": 1, "flagged": 1}


def test_it_shows_how_late_scheduled_runs_started_in_the_last_hour():
    now = database_now()
    for late in range(1, 101):
        started = {"due_at": now - timedelta(seconds=late), "started_at": now}
        make_run(state=State.SUCCEEDED, **started)
    excepted = {"due_at": now - timedelta(days=1), "started_at": now}
    make_run(state=State.SUCCEEDED, trigger=Trigger.MANUAL, **excepted)
    make_run(state=State.SUCCEEDED, attempt=2, **excepted)
    make_run(state=State.SUCCEEDED, finished_at=now - timedelta(hours=2), **excepted)
    make_run(state=State.SKIPPED)
    assert statistics.figures()["late_by_seconds_in_1_hour"] == {"runs": 100, "p50": 50.0, "p95": 95.0}


def test_it_shows_no_lateness_when_nothing_ran():
    assert statistics.figures()["late_by_seconds_in_1_hour"] == {"runs": 0, "p50": None, "p95": None}


def test_it_reads_only_recent_runs_of_a_large_ledger():
    if connection.vendor == "sqlite":
        pytest.skip("Only PostgreSQL names the index of a query here.")
    now = database_now()
    days = (now - timedelta(days=number / 10) for number in range(3_000))
    Run.objects.bulk_create(
        Run(task="tests.nothing", due_at=day, last_due_at=day, finished_at=day, state=State.SUCCEEDED) for day in days
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_run")
    with CaptureQueriesContext(connection) as captured:
        statistics.figures()
    asked = [query["sql"] for query in captured if 'FROM "jobs_run"' in query["sql"]]
    plans = [explained(sql) for sql in asked]
    assert [re.findall(r"run_\w+|Seq Scan", plan) for plan in plans] == [["run_active"], *2 * [["run_finished"]]]


def explained(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}")
        return "\n".join(line for (line,) in cursor.fetchall())


def test_it_answers_staff_from_the_cache_and_shows_its_hit_rate(admin_client):
    make_run(state=State.FAILED)
    first, second = (admin_client.get(PAGE) for _ in range(2))
    assert json.loads(first.content)["ended_in_24_hours"]["failed"] == 1
    assert json.loads(first.content)["cache"] == {"hits": 0, "misses": 1, "hit_rate": 0.0}
    assert json.loads(second.content)["cache"] == {"hits": 1, "misses": 1, "hit_rate": 0.5}
    assert json.loads(first.content)["generated_at"] == json.loads(second.content)["generated_at"]


def test_it_lets_a_browser_store_an_answer_and_revalidate_it(admin_client):
    first = admin_client.get(PAGE)
    assert first["Cache-Control"] == "private, max-age=0, must-revalidate"
    assert "Cookie" in first["Vary"]
    assert admin_client.get(PAGE, headers={"If-None-Match": first["ETag"]}).status_code == 304
    make_schedule()
    again = admin_client.get(PAGE, headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, json.loads(again.content)["schedules"]["total"]) == (200, 1)


def test_it_redirects_non_staff_users_to_the_login_page(client):
    assert client.get(PAGE).url.startswith(reverse("admin:login"))
    client.force_login(User.objects.create_user("eve"))
    assert client.get(PAGE).url.startswith(reverse("admin:login"))


def test_it_refuses_post(admin_client):
    assert admin_client.post(PAGE).status_code == 405


def test_it_answers_while_redis_is_frozen(admin_client, frozen_broker):
    answer = json.loads(admin_client.get(PAGE).content)
    assert (answer["cache"], answer["schedules"]["total"]) == (None, 0)


def test_it_is_new_after_a_schedule_or_policy_is_saved_or_deleted():
    seen = [statistics.figures()["generated_at"]]

    def is_new() -> bool:
        seen.append(statistics.figures()["generated_at"])
        return seen[-1] != seen[-2]

    assert not is_new()
    schedule = make_schedule()
    assert is_new()
    schedule.save()
    assert is_new()
    schedule.policy.save()
    assert is_new()
    schedule.policy.delete()
    assert is_new()
    PeriodicTask.objects.all().delete()
    assert is_new()


@pytest.mark.parametrize("action", ["disable", "pause"])
def test_it_is_new_after_schedules_are_changed_in_the_admin(admin_client, action):
    schedule = make_schedule()
    before = statistics.figures()["schedules"]
    fields = {"step": "1", "catch_up": "none"} if action == "pause" else {}
    admin_client.post(SCHEDULES, {"action": action, "_selected_action": [schedule.pk]} | fields)
    after = statistics.figures()["schedules"]
    assert (before["enabled"] - before["paused"], after["enabled"] - after["paused"]) == (1, 0)
