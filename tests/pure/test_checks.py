"""Does `manage.py check` refuse settings that would make the ledger wrong?"""

import pytest
from celery import current_app
from celery.beat import PersistentScheduler
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django_celery_beat.schedulers import DatabaseScheduler

from jobs.beat import Scheduler, rivals
from jobs.messages.arguments import find_task


def test_it_refuses_messages_without_headers(monkeypatch):
    call_command("check", "jobs")
    monkeypatch.setitem(current_app.conf, "task_protocol", 1)
    with pytest.raises(SystemCheckError, match=r"jobs\.E002.*\n.*HINT: Remove the setting"):
        call_command("check", "jobs")


def test_it_refuses_queues_of_celery_s_own(monkeypatch):
    monkeypatch.setattr(find_task("tests.nothing"), "queue", "unacked", raising=False)
    monkeypatch.setitem(current_app.conf, "task_queues", {"_kombu.binding.x": {}})
    with pytest.raises(SystemCheckError, match=r"E004\) Choose another queue than '_kombu(?s:.)*E004.*'unacked'"):
        call_command("check", "jobs")


class Mine(DatabaseScheduler):
    pass


@pytest.mark.parametrize(
    "scheduler",
    [
        *("django", "django_celery_beat.schedulers:DatabaseScheduler", f"{__name__}:Mine"),
        *("celery.beat:PersistentScheduler", "celery.beat.Scheduler"),
    ],
)
def test_it_refuses_a_scheduler_that_would_run_the_same_schedules(monkeypatch, scheduler):
    monkeypatch.setitem(current_app.conf, "beat_scheduler", scheduler)
    with pytest.raises(SystemCheckError, match=r"jobs\.E003.*Write CELERY_BEAT_SCHEDULER = \"jobs\.beat:Scheduler\""):
        call_command("check", "jobs")


def test_it_names_another_scheduler_by_its_class():
    assert rivals.fault(PersistentScheduler).startswith("The scheduler PersistentScheduler would run the jobs")
    assert rivals.fault("django").startswith("The scheduler DatabaseScheduler would run the jobs")
    assert rivals.fault(type("Ours", (Scheduler,), {})) == ""
    assert rivals.fault("no.such:Scheduler") == ""  # Celery names it
