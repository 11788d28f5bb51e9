"""Each act is one audit row: who, by which door and token, when, on what, before and after."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from jobs.ledger import requests
from jobs.models import Actor, ApiToken, AuditEntry, Door, Policy, Run, State, StoredFile, database_now
from jobs.rules.errors import Forbidden, Invalid
from jobs.schedules import acts, calendar
from jobs.tasks.cleanup import cleanup
from jobs.toolkit import files
from tests.database.test_admin import act, form
from tests.making import make_run, make_schedule, only_where_rows_are_locked

pytestmark = pytest.mark.django_db
ADA = Actor("ada", door=Door.SHELL)
ALL = PeriodicTask.objects.all


def entries() -> list[tuple[str, str, str]]:
    return list(AuditEntry.objects.order_by("pk").values_list("act", "kind", "name"))


def token_of(user: User, *scopes: str, **limits) -> Actor:
    token, _ = ApiToken.objects.issue("ci", user, scopes, "code", **limits)
    AuditEntry.objects.all().delete()
    return Actor.of_user(user, Door.API, token)


def test_it_notes_only_the_changed_columns_before_and_after():
    schedule = make_schedule("nightly")
    acts.pause(ALL(), ADA, "supplier moves")
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.door, entry.act, entry.key) == ("ada", "shell", "pause", str(schedule.pk))
    assert set(entry.before) == set(entry.after) == {"paused_at", "paused_by", "pause_reason"}
    assert (entry.before["pause_reason"], entry.after["pause_reason"]) == ("", "supplier moves")


def test_it_notes_one_row_for_each_schedule_of_an_act():
    for name in ("a", "b"):
        make_schedule(name)
    acts.disable(ALL(), ADA)
    assert entries() == [("disable", "schedule", "a"), ("disable", "schedule", "b")]


def test_it_notes_thousands_of_schedules_in_a_few_statements(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    number, interval = 2_500, make_schedule("it").interval
    texts = {"task": "tests.nothing", "description": "of canary-1234", "kwargs": '{"token": "x"}'}
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"shop {each}", interval=interval, **texts) for each in range(number)
    )
    chosen = ALL().filter(name__startswith="shop").order_by("pk")
    names, keys = list(chosen.values_list("name", flat=True)), list(chosen.values_list("pk", flat=True))
    calendar.refresh(ALL())
    for act_on, changed in ((acts.disable, ("enabled",)), (acts.delete, None)):
        AuditEntry.objects.all().delete()
        with CaptureQueriesContext(connection) as queries:
            assert act_on(chosen.all(), ADA) == number
        noting = [query for query in queries.captured_queries if 'INTO "jobs_auditentry"' in query["sql"]]
        assert len(noting) <= (3 if connection.vendor == "postgresql" else number)
        rows = list(AuditEntry.objects.order_by("pk"))
        assert [(row.name, row.key) for row in rows] == [
            (name, str(key)) for name, key in zip(names, keys, strict=True)
        ]
        assert {(row.actor, row.door, row.kind, row.user_key, row.token) for row in rows} == {
            ("ada", "shell", "schedule", "", "")
        }
        assert {row.after is None for row in rows} == {changed is None}
        assert {tuple(row.after or ()) for row in rows} == {changed or ()}
        assert all(timedelta(0) <= database_now() - row.at < timedelta(minutes=5) for row in rows)
    assert {(row.before["description"], row.before["kwargs"]) for row in rows} == {("of ***", '{"token": ***}')}


@only_where_rows_are_locked
@pytest.mark.django_db(transaction=True)
def test_it_computes_many_schedules_slice_by_slice(monkeypatch):
    monkeypatch.setattr(calendar, "SLICE", 3)
    for number in range(8):
        make_schedule(f"{number}", enabled=False)
    with CaptureQueriesContext(connection) as queries:
        acts.enable(ALL(), ADA)
    after_commit = [query["sql"] for query in queries.captured_queries if "fingerprint" in query["sql"]]
    lists = [found.count(",") + 1 for sql in after_commit for found in re.findall(r" IN \(([\d, ]+)\)", sql)]
    assert lists
    assert max(lists) == 3
    assert not Policy.objects.filter(next_due_at=None).exists()


def test_it_saves_a_new_and_a_changed_schedule_with_its_policy_as_one_act_each():
    interval = make_schedule("other").interval
    schedule = PeriodicTask(name="nightly", task="tests.nothing", interval=interval)
    acts.save(schedule, {"max_attempts": 3}, ADA)
    assert Policy.objects.get(schedule=schedule).max_attempts == 3
    schedule.description, schedule.enabled = "new", False
    acts.save(schedule, {"max_attempts": 5, "skip_next": 2}, ADA, ["description"])
    schedule.refresh_from_db()
    assert (schedule.description, schedule.enabled) == ("new", True)
    first, second = AuditEntry.objects.order_by("pk")
    assert (first.act, first.before, first.after["name"]) == ("add", None, "nightly")
    assert second.before == {"description": "", "max_attempts": 3, "skip_next": 0}
    assert second.after == {"description": "new", "max_attempts": 5, "skip_next": 2}


@pytest.mark.parametrize(
    ("columns", "policy", "sentence"),
    [
        ({"task": "tests.gone"}, {}, "No job is named"),
        ({"interval": None}, {}, "must be set"),
        ({"name": "other"}, {}, "already exists"),
        ({"task": "jobs.heartbeat", "args": "[1]"}, {}, "do not fit"),
        ({}, {"max_attempts": 0}, "max_attempts: "),
        ({}, {"max_attempts": None}, "max_attempts: "),
        ({}, {"next_due_at": None}, "has no column next_due_at"),
        ({}, {"overlap": "sometimes"}, "overlap: "),
        ({}, {"time_limit": 5, "soft_time_limit": 5}, "soft_time_limit: Enter less than 5 s"),
        ({}, {"remaining_runs": 0}, "remaining_runs: Enter at least 1"),
    ],
)
def test_it_saves_nothing_of_a_schedule_that_cannot_be(columns, policy, sentence):
    interval = make_schedule("other").interval
    schedule = PeriodicTask(**{"name": "nightly", "task": "tests.nothing", "interval": interval} | columns)
    with pytest.raises(Invalid, match=sentence):
        acts.save(schedule, policy, ADA)
    assert (ALL().count(), entries()) == (1, [])


def test_it_deletes_schedules_and_keeps_what_they_were():
    make_schedule("nightly", args=[])
    assert acts.delete(ALL(), ADA) == 1
    entry = AuditEntry.objects.get()
    assert (entry.act, entry.after, entry.before["task"]) == ("delete", None, "tests.nothing")
    assert not ALL().exists()


def test_it_notes_what_users_save_and_delete_in_the_admin(admin_client):
    interval = make_schedule("other").interval
    address = reverse("admin:django_celery_beat_periodictask_add")
    assert admin_client.post(address, form(interval=interval.pk)).status_code == 302
    act(admin_client, "delete_selected", ALL().get(name="new"), post="yes")
    assert entries() == [("add", "schedule", "new"), ("delete", "schedule", "new")]
    assert set(AuditEntry.objects.values_list("actor", "door")) == {("admin", "admin")}


def test_it_notes_what_users_do_to_timings_and_the_schedules_that_go_with_them(admin_client):
    crontab = make_schedule("nightly", cron={"minute": "30"}).crontab
    address = reverse("admin:django_celery_beat_crontabschedule_change", args=[crontab.pk])
    fields = {"minute": "5", "hour": "*", "day_of_month": "*", "month_of_year": "*", "day_of_week": "*"}
    assert admin_client.post(address, fields | {"timezone": "UTC"}).status_code == 302
    assert admin_client.post(address.replace("change", "delete"), {"post": "yes"}).status_code == 302
    assert [row[:2] for row in entries()] == [("change", "timing"), ("delete", "schedule"), ("delete", "timing")]
    first = AuditEntry.objects.order_by("pk").first()
    assert (first.key, first.before, first.after) == (f"crontab {crontab.pk}", {"minute": "30"}, {"minute": "5"})


def test_it_notes_uploads_and_deleted_files(admin_client, settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    address = reverse("admin:jobs_storedfile_add")
    assert admin_client.post(address, {"file": SimpleUploadedFile("a.csv", b"a,b\n1,2\n")}).status_code == 302
    row = StoredFile.objects.get()
    assert files.delete(StoredFile.objects.all(), ADA) == 1
    assert entries() == [("upload", "file", "a.csv"), ("delete", "file", "a.csv")]
    assert set(AuditEntry.objects.values_list("key", flat=True)) == {str(row.pk)}


def test_it_notes_no_change_that_changes_nothing(admin_client):
    schedule = make_schedule("nightly", cron={"minute": "30"})
    acts.save(schedule, {}, ADA)
    acts.save_timing(schedule.crontab, ADA)
    fields = form(schedule, name="nightly", crontab=schedule.crontab_id, **{"initial-enabled": "on"})
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    assert admin_client.post(address, fields).status_code == 302
    assert entries() == []


def test_it_notes_each_request_to_end_a_run_with_the_one_before():
    run = make_run(state=State.RUNNING)
    for name in ("ada", "bob", "bob"):
        requests.cancel(Run.objects.all(), name)
    run.refresh_from_db()
    told = [(entry.before, entry.after) for entry in AuditEntry.objects.order_by("pk")]
    by_ada, by_bob = ({"cancel_reason": f"cancelled: by {name}"} for name in ("ada", "bob"))
    assert told == [({"cancel_reason": ""}, by_ada), (by_ada, by_bob)]
    assert run.cancel_reason == by_bob["cancel_reason"]


@pytest.mark.parametrize("timing", [None, "every hour", CrontabSchedule(minute="5")])
def test_it_leaves_no_schedule_without_a_timing(timing):
    make_schedule("nightly")
    with pytest.raises(Invalid, match="is a saved crontab"):
        acts.retime(ALL(), ADA, timing)
    assert (ALL().filter(interval=None).count(), entries()) == (0, [])


def test_it_deletes_old_entries_only():
    make_schedule("nightly")
    for _ in range(2):
        acts.disable(ALL(), ADA)
    old = AuditEntry.objects.order_by("pk").first()
    AuditEntry.objects.filter(pk=old.pk).update(at=database_now() - timedelta(days=800))
    cleanup()
    assert old not in AuditEntry.objects.all()
    assert AuditEntry.objects.count() == 1


def test_it_notes_requests_and_masks_secrets():
    schedule = make_schedule("nightly")
    failed, waiting = make_run(schedule, State.FAILED), make_run(schedule)
    requests.run_now([schedule], ADA)
    requests.retry([failed], ADA)
    requests.cancel(Run.objects.filter(pk=waiting.pk), ADA)
    requests.start("tests.nothing", {}, ADA)
    acts.pause(ALL(), ADA, "password=hunter2")
    assert [row[:2] for row in entries()] == [
        ("run", "schedule"),
        ("retry", "run"),
        ("cancel", "run"),
        ("start", "run"),
        ("pause", "schedule"),
    ]
    cancelled = AuditEntry.objects.get(act="cancel")
    assert (cancelled.before, cancelled.after) == ({"state": "waiting"}, {"state": "cancelled"})
    assert "hunter2" not in str(list(AuditEntry.objects.values()))


def test_it_writes_no_row_for_runs_that_code_starts():
    run = requests.run_job("tests.nothing")
    assert (run.trigger, run.actor, entries()) == ("code", "code", [])


def test_it_lets_a_token_do_only_what_both_its_scopes_and_its_user_may():
    schedule, user = make_schedule("nightly"), User.objects.create_user("eve")
    user.user_permissions.set(Permission.objects.filter(codename__in=["change_periodictask", "add_run"]))
    actor = token_of(user, "django_celery_beat.change_periodictask")
    assert acts.disable(ALL(), actor) == 1
    assert AuditEntry.objects.get().token == "ci"
    with pytest.raises(Forbidden, match=r"does not include jobs\.add_run"):
        requests.start("tests.nothing", {}, actor)
    user.user_permissions.clear()
    with pytest.raises(Forbidden, match=r"eve lacks the permission django_celery_beat\.change_periodictask"):
        acts.enable(ALL(), Actor.of_user(User.objects.get(pk=user.pk), Door.API, actor.token))
    assert (ALL().get(pk=schedule.pk).enabled, AuditEntry.objects.count()) == (False, 1)


def test_it_limits_a_token_to_its_schedules_and_jobs():
    mine, other = make_schedule("mine"), make_schedule("other")
    job = make_schedule("of the job", task="tests.text", args=[1])
    actor = token_of(
        User.objects.create_superuser("root"),
        *("django_celery_beat.change_periodictask", "jobs.add_run"),
        jobs=["tests.te*"],
        schedules=[mine.pk],
    )
    assert list(actor.limit(ALL()).order_by("pk")) == [mine, job]
    runs = [make_run(each, task=each.task) for each in (mine, other, job)]
    assert set(actor.limit(Run.objects.all())) == {runs[0], runs[2]}
    assert acts.disable(ALL().exclude(pk=other.pk), actor) == 2
    with pytest.raises(Forbidden, match="limited to other schedules and jobs than"):
        acts.disable(ALL(), actor)
    assert requests.run_now([mine], actor).runs
    assert requests.run_now([other], actor).refused
    with pytest.raises(Forbidden, match="limited to other"):
        requests.start("tests.nothing", {}, actor)


def test_it_lets_a_token_for_a_schedule_give_it_no_other_job():
    mine = make_schedule("mine")
    scopes = ["django_celery_beat.change_periodictask"]
    actor = token_of(User.objects.create_superuser("root"), *scopes, schedules=[mine.pk])
    mine.description = "new"
    acts.save(mine, {}, actor, ["description"])
    mine.task = "jobs.heartbeat"
    with pytest.raises(Forbidden, match="limited to other schedules and jobs"):
        acts.save(mine, {}, actor, ["task"])
    assert set(ALL().values_list("description", "task")) == {("new", "tests.nothing")}


def test_it_keeps_the_audit_of_what_is_gone():
    make_schedule("nightly")
    user = User.objects.create_superuser("ada")
    acts.disable(ALL(), Actor.of_user(user, Door.ADMIN))
    ALL().delete()
    user.delete()
    assert str(AuditEntry.objects.get()) == "ada (Admin): disable schedule “nightly”"
    assert AuditEntry.objects.get().at <= database_now()
