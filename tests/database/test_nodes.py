"""Nodes: stopped ones are marked, and strangers are named: other schedulers, and workers that do not report."""

from datetime import timedelta

import pytest
from celery import current_app
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask

from jobs import zones
from jobs.beat import claim
from jobs.models import Node, Policy, database_now
from jobs.monitoring import nodes, strangers
from jobs.worker import refusals
from tests.making import make_due, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_marks_a_stopped_node_though_its_signal_broke_the_connection():
    nodes.heartbeat("beat@here", kind=Node.Kind.BEAT)
    connection.connection.close()  # as a query leaves it that a signal has interrupted
    nodes.mark_stopped("beat@here")
    assert Node.objects.get().stopped_at is not None


@pytest.fixture
def looks_at_once():
    refusals._Rivals.again_at = 0.0


def execute(task: str, **headers) -> None:
    """Execute a task in this process as a worker does, with these headers of its message."""
    job = current_app.tasks[task]
    job.push_request(id="1", hostname="celery@here", called_directly=False, **headers)
    try:
        job.before_start("1", (), {})
    finally:
        job.pop_request()


def test_it_names_a_beat_whose_message_for_a_schedule_reaches_a_worker(looks_at_once, caplog):
    make_schedule("nightly")
    for _ in range(2):
        refusals._Rivals.again_at = 0.0
        execute("tests.nothing", periodic_task_name="nightly", origin="gen7@stock")
    stranger = Node.objects.live().get()
    assert (stranger.name, stranger.kind, stranger.queues) == ("beat at gen7@stock", Node.Kind.STRANGER, "")
    assert stranger.problem.startswith("beat at gen7@stock runs these schedules a second time, without a row")
    assert caplog.messages.count(stranger.problem) == 1
    assert not Node.objects.consumers().exists()


def test_it_names_no_beat_for_messages_of_other_projects_or_of_its_own(looks_at_once):
    make_schedule("nightly")
    execute("tests.nothing", periodic_task_name="a job of another project", origin="gen7@other")
    refusals._Rivals.again_at = 0.0
    execute("tests.nothing", origin="gen7@web")
    assert not Node.objects.exists()


def test_it_executes_a_message_though_its_sender_cannot_be_recorded(looks_at_once, caplog):
    execute("tests.nothing", periodic_task_name="no text that a database stores: \0", origin="gen7@stock")
    refusals._Rivals.again_at = 0.0
    execute("tests.nothing", periodic_task_name=["no", "text"], origin=None)
    assert not Node.objects.exists()


def test_it_names_a_beat_that_writes_down_runs_which_were_not_claimed():
    make_schedule("daily")
    PeriodicTask.objects.update(last_run_at=database_now() - timedelta(days=1))
    before = strangers.compare({})
    before = strangers.compare(before)
    assert not Node.objects.exists()
    PeriodicTask.objects.update(last_run_at=Now(), total_run_count=F("total_run_count") + 1)  # as its `sync` does
    before = strangers.compare(before)
    assert Node.objects.live().get().problem.startswith("another beat runs these schedules a second time")
    Node.objects.all().delete()
    before = strangers.compare(before)
    assert not Node.objects.exists()
    Node.objects.create(name="beat at gen7@stock", kind=Node.Kind.STRANGER, pid=0)  # a worker has named it
    PeriodicTask.objects.update(last_run_at=Now())
    strangers.compare(before)
    assert Node.objects.get().name == "beat at gen7@stock"


def test_it_takes_claims_and_saved_forms_for_its_own():
    schedule = make_schedule("hourly", policy={"overlap": "allow"})
    make_due(schedule)
    before = strangers.compare({})
    list(claim.claim_due())
    stale = PeriodicTask.objects.get()
    before = strangers.compare(before)
    make_due(schedule)
    list(claim.claim_due())
    before = strangers.compare(before)
    stale.save()
    strangers.compare(before)
    assert Policy.objects.get().next_due_at
    assert not Node.objects.exists()


def test_it_tells_of_the_problems_of_live_nodes_in_a_check_of_the_database(capsys):
    nodes.heartbeat("beat@here", kind=Node.Kind.BEAT)
    call_command("check", "--database", "default")
    Node.objects.create(name="beat@old", kind=Node.Kind.BEAT, pid=1, tzdata="2001a")
    Node.objects.create(name="gone", kind=Node.Kind.BEAT, pid=1, tzdata="2002a", stopped_at=database_now())
    Node.objects.create(name="another beat", kind=Node.Kind.STRANGER, pid=0, problem="It runs all twice: stop it.")
    assert "jobs.W" not in capsys.readouterr().err
    call_command("check", "--database", "default")
    shown = capsys.readouterr().err
    assert "(jobs.W003) It runs all twice: stop it." in shown
    assert f"(jobs.W004) Live beats and workers use different rules of time zones: 2001a, {zones.version()}." in shown
    assert zones.version() == Node.objects.get(name="beat@here").tzdata
