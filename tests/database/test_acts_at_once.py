"""Two acts at once on the same rows: one comes after the other, and each audit entry tells what its act changed."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from jobs.ledger import outcomes, requests, webhooks
from jobs.models import ApiToken, AuditEntry, Policy, Run, State, WebhookSource, database_now
from jobs.rules.errors import Invalid
from jobs.schedules import acts
from tests.database.test_admin import form, text
from tests.making import blocked, make_run, make_schedule, only_where_rows_are_locked

pytestmark = [pytest.mark.django_db(transaction=True), only_where_rows_are_locked]
ALL = PeriodicTask.objects.all


def entries() -> list[tuple[str, str, Any, Any]]:
    rows = AuditEntry.objects.order_by("pk")
    return [(entry.act, entry.kind, entry.before, entry.after) for entry in rows]


def after(first: Callable[[], object], second: Callable[[], Any]) -> Any:
    """What `second` returns or raises, which came to wait for the transaction of `first`."""
    came: list[Any] = []

    def call() -> None:
        try:
            came.append(second())
        except Invalid as error:
            came.append(error)

    with transaction.atomic():
        first()
        thread = blocked(call)
    thread.join()
    return came[0]


def test_it_deletes_a_schedule_that_is_being_saved():
    schedule = make_schedule()

    def save() -> None:
        with acts.saving(schedule, "ada"):
            thread.append(blocked(lambda: acts.delete(ALL(), "bob")))
            Policy.objects.update(max_attempts=4)  # an act that held the policy would wait for us here

    thread: list[Any] = []
    save()
    thread[0].join()
    changed, deleted = entries()
    assert changed == ("change", "schedule", {"max_attempts": 1}, {"max_attempts": 4})
    assert (deleted[0], deleted[2]["max_attempts"], ALL().count()) == ("delete", 4, 0)


@pytest.mark.parametrize("switched", [False, True])
def test_it_does_not_bring_a_schedule_back_that_was_deleted_while_a_user_saved_it(switched):
    schedule, client = make_schedule("it"), Client()
    client.force_login(User.objects.create_superuser("ada"))
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    data = form(schedule, name="it", interval=schedule.interval_id, description="new", **{"initial-enabled": "on"})
    if switched:
        del data["enabled"]
    page = after(lambda: acts.delete(ALL(), "bob"), lambda: client.post(address, data, follow=True))
    assert "The schedule was deleted meanwhile." in text(page)
    assert (ALL().count(), [entry[0] for entry in entries()]) == (0, ["delete"])


@pytest.mark.parametrize("kind", ["django_celery_beat_crontabschedule", "jobs_webhooksource"])
def test_it_does_not_bring_back_other_rows_either(kind, settings):
    rows: Any = {"django_celery_beat_crontabschedule": CrontabSchedule, "jobs_webhooksource": WebhookSource}[
        kind
    ].objects
    settings.WEBHOOK_KEYS = {"SHOP": ["0123456789abcdef0123456789abcdef"]}
    columns = {"name": "shop", "form": "github", "keys": "SHOP", "job": "tests.nothing"}
    fields = dict.fromkeys(("hour", "day_of_month", "month_of_year", "day_of_week"), "*") | {"timezone": "UTC"}
    row = rows.create(**(columns if kind == "jobs_webhooksource" else {"minute": "3"}))
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    address = reverse(f"admin:{kind}_change", args=[row.pk])
    data = {**columns, "arguments": "{}", **fields, "minute": "5"}
    delete = webhooks.delete if kind == "jobs_webhooksource" else acts.delete_timings
    page = after(lambda: delete(rows.all(), "bob"), lambda: client.post(address, data, follow=True))
    assert "was deleted meanwhile." in text(page)
    assert (rows.count(), [entry[0] for entry in entries()]) == (0, ["delete"])


def test_it_notes_once_that_a_token_was_deleted():
    token, _ = ApiToken.objects.issue("ci", User.objects.create_superuser("ada"), ["jobs.view_run"], "ada")
    ApiToken.objects.all().revoke("ada")
    AuditEntry.objects.all().delete()
    ask = ApiToken.objects.filter(pk=token.pk)
    assert after(lambda: ask.all().remove("ada"), lambda: ask.all().remove("bob")) == 0
    assert AuditEntry.objects.get().actor == "ada"


def test_it_saves_nothing_of_a_schedule_that_was_deleted_meanwhile():
    schedule = make_schedule()
    error = after(schedule.delete, lambda: acts.save(PeriodicTask.objects.get(), {}, "ada", ["description"]))
    assert str(error) == "The schedule was deleted meanwhile."
    assert (ALL().count(), entries()) == (0, [])


def test_it_checks_a_schedule_with_the_columns_that_another_user_has_saved():
    mine = make_schedule()
    mine.kwargs = '{"x": 1}'
    others = {"task": "tests.note", "args": '["a"]', "kwargs": "{}"}
    error = after(lambda: ALL().update(**others), lambda: acts.save(mine, {}, "ada", ["kwargs"]))
    assert "do not fit" in str(error)
    assert (ALL().values(*others).get(), entries()) == (others, [])


def test_it_resumes_a_schedule_once():
    make_schedule(policy={"paused_at": database_now()})
    assert after(lambda: acts.resume(ALL(), "ada"), lambda: acts.resume(ALL(), "bob")) == 0
    assert AuditEntry.objects.get().actor == "ada"


def test_it_notes_only_the_runs_that_a_cancellation_ended():
    run = make_run()
    end = {"state": State.SUCCEEDED, "finished_at": database_now()}
    cancelled = after(
        lambda: Run.objects.filter(pk=run.pk).update(**end), lambda: requests.cancel(Run.objects.all(), "ada")
    )
    assert (cancelled, entries()) == (outcomes.Cancelled(ended=0, asked=0), [])


def test_it_notes_that_a_run_was_asked_to_end_which_had_started_meanwhile():
    run = make_run()
    started = {"state": State.RUNNING, "started_at": database_now()}
    cancelled = after(
        lambda: Run.objects.filter(pk=run.pk).update(**started), lambda: requests.cancel(Run.objects.all(), "ada")
    )
    assert cancelled == outcomes.Cancelled(ended=0, asked=1)
    assert entries() == [("cancel", "run", {"cancel_reason": ""}, {"cancel_reason": "cancelled: by ada"})]


def test_it_notes_what_a_timing_was_before_the_act():
    crontab = CrontabSchedule.objects.create(minute="3")
    other = CrontabSchedule.objects.get()
    crontab.minute, other.minute = "5", "10"
    after(lambda: acts.save_timing(crontab, "ada"), lambda: acts.save_timing(other, "bob"))
    assert entries() == [
        ("change", "timing", {"minute": "3"}, {"minute": "5"}),
        ("change", "timing", {"minute": "5"}, {"minute": "10"}),
    ]


def test_it_notes_each_schedule_that_goes_with_its_timing():
    crontab = CrontabSchedule.objects.create(minute="3")

    def use() -> None:
        CrontabSchedule.objects.select_for_update().get()
        make_schedule(crontab=crontab)

    assert after(use, lambda: acts.delete_timings(CrontabSchedule.objects.all(), "ada")) == 1
    assert [entry[:2] for entry in entries()] == [("delete", "schedule"), ("delete", "timing")]
