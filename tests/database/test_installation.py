"""A database belongs to one installation: processes of another leave its runs and schedules alone."""

from datetime import timedelta
from io import StringIO

import pytest
from celery import current_app
from celery.exceptions import Ignore
from django.core.management import CommandError, call_command
from django.urls import reverse
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from jobs.alerts import watching
from jobs.beat import claim, rescue
from jobs.beat.scheduler import REFUSED_SLEEP, Scheduler
from jobs.ledger import backfills, requests
from jobs.models import (
    Backfill,
    Channel,
    Installation,
    Node,
    Notice,
    Policy,
    Run,
    State,
    Watch,
    database_now,
    installation,
)
from jobs.rules.errors import Invalid
from jobs.worker import context, pulse
from tests.making import expire_lease, make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)

SENTENCE = "This database belongs to the installation 'production', and this process to 'staging'"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _forgets():
    yield
    installation._Known.until = 0.0


@pytest.fixture
def copied(settings) -> None:
    """This process is one of staging, on a copy of production's database."""
    Installation.objects.create(name="production")
    settings.INSTALLATION = "staging"


def tick() -> float:
    return Scheduler(app=current_app).tick()


def start(run: Run) -> None:
    """Start the run in this process, as a worker does."""
    job = current_app.tasks[run.task]
    job.push_request(id=str(run.id), hostname="celery@here", called_directly=False, punctual_attempt=run.attempt)
    try:
        job.before_start(str(run.id), (), {})
        execution = context.of(job.request)
        pulse.release(execution)
        context.leave(execution)
    finally:
        job.pop_request()


def test_the_first_beat_with_a_name_adopts_the_database(settings):
    tick()
    assert not Installation.objects.exists()
    settings.INSTALLATION = "production"
    tick()
    settings.INSTALLATION = "staging"
    tick()
    assert Installation.objects.get().name == "production"


def test_a_beat_of_another_installation_claims_sends_rescues_and_releases_nothing(copied, redis, caplog):
    make_due(make_schedule("nightly"))
    make_run()
    make_run(not_before=None)
    expire_lease(make_run(state=State.RUNNING))
    before = list(Run.objects.order_by("pk").values()), list(Policy.objects.values())
    scheduler = Scheduler(app=current_app)
    assert [scheduler.tick(), scheduler.tick()] == [REFUSED_SLEEP] * 2
    assert (list(Run.objects.order_by("pk").values()), list(Policy.objects.values())) == before
    assert redis.llen("celery") == 0
    assert sum(SENTENCE in line and "manage.py take_over" in line for line in caplog.messages) == 1
    assert Node.objects.get().problem.startswith(SENTENCE)
    Installation.objects.update(name="staging")
    installation._Known.until = 0.0
    scheduler.tick()
    assert Run.objects.filter(schedule__name="nightly").exists()


def test_a_process_without_a_name_refuses_nothing_and_says_so(django_assert_num_queries, capsys):
    Installation.objects.create(name="production")
    with django_assert_num_queries(0):
        assert installation.refusal() == ""
    make_due(make_schedule("nightly"))
    tick()
    assert Run.objects.exists()
    assert "but this beat has no name" in capsys.readouterr().err


def test_it_requests_no_run_of_another_installation(copied):
    schedule = make_schedule("nightly")
    past = make_run(schedule, State.FAILED)
    for requested in (
        requests.run_now([schedule], "ada"),
        requests.retry([past], "ada"),
        requests.start_each("tests.nothing", [{}], "ada"),
    ):
        assert requested.runs == []
        assert requested.refused[0][1].startswith(SENTENCE)
    with pytest.raises(Invalid, match=SENTENCE):
        requests.start("tests.nothing", {}, "ada")
    now = database_now()
    with pytest.raises(Invalid, match=SENTENCE):
        backfills.backfill(Backfill(schedule=schedule, start=now - 3 * HOUR, end=now), "ada")
    assert Run.objects.get() == past
    assert not Backfill.objects.exists()


def test_it_shows_users_why_nothing_runs(copied, admin_client):
    schedule = make_schedule("nightly")
    page = reverse("admin:django_celery_beat_periodictask_changelist")
    for name in ("django_celery_beat_periodictask", "jobs_run", "jobs_node"):
        assert SENTENCE.replace("'", "&#x27;") in admin_client.get(reverse(f"admin:{name}_changelist")).content.decode()
    data = {"action": "run_now", "_selected_action": [schedule.pk]}
    assert "cannot run: This database belongs to" in admin_client.post(page, data, follow=True).content.decode()


def test_a_worker_gives_back_a_run_of_another_installation(copied):
    run = make_run(state=State.QUEUED)
    with pytest.raises(Ignore):
        start(run)
    run.refresh_from_db()
    assert (run.state, run.started_at) == (State.WAITING, None)
    assert run.reason.startswith(f"celery@here starts nothing here: {SENTENCE}")
    Installation.objects.update(name="staging")
    installation._Known.until = 0.0
    Run.objects.update(state=State.QUEUED)
    start(run)
    run.refresh_from_db()
    assert run.state == State.RUNNING


def test_taking_over_cancels_unfinished_runs_and_runs_no_past_moment(copied):
    due = make_schedule("due", policy={"catch_up": "all", "catch_up_window": timedelta(days=9)})
    make_due(due, ago=5 * HOUR)
    coming, off = make_schedule("coming"), make_schedule("off", enabled=False)
    paused = make_schedule("paused")
    make_due(paused, ago=5 * HOUR)
    Policy.objects.filter(schedule=paused).pause(by="ada", reason="stock-taking", catch_up="all")
    waiting, running, over = make_run(), make_run(state=State.RUNNING), make_run(state=State.SUCCEEDED)
    next_due_at = Policy.objects.get(schedule=coming).next_due_at
    out = StringIO()
    call_command("take_over", no_input=True, stdout=out)
    assert "belongs to staging now. Cancelled runs: 1; running ones that beat ends" in out.getvalue()
    assert "lease is over: 1." in out.getvalue()
    tick()
    expire_lease(running)
    rescue.rescue()
    states = dict(Run.objects.filter(schedule=None).values_list("id", "state"))
    assert states == {waiting.id: "cancelled", running.id: "cancelled", over.id: "succeeded"}
    waiting.refresh_from_db()
    assert waiting.reason == "cancelled: staging took the database over, which belonged to production"
    skipped = Run.objects.get(schedule=due)
    assert (skipped.state, skipped.count) == (State.SKIPPED, 6)
    assert "staging took the database over" in skipped.reason
    assert Policy.objects.get(schedule=coming).next_due_at == next_due_at
    assert not Run.objects.filter(schedule__in=[coming, off]).exists()
    assert Policy.objects.paused().get().schedule == paused
    Policy.objects.paused().resume()
    tick()
    assert set(Run.objects.filter(schedule=paused).values_list("state", flat=True)) == {State.SKIPPED}
    assert Policy.objects.get(schedule=due).next_due_at > database_now()


def test_taking_over_runs_no_one_off_that_no_beat_has_read(copied):
    past = ClockedSchedule.objects.create(clocked_time=database_now() - HOUR)
    PeriodicTask.objects.bulk_create([PeriodicTask(name="it", task="tests.nothing", clocked=past, one_off=True)])
    call_command("take_over", no_input=True, stdout=StringIO())
    assert [run for runs in claim.claim_due() for run in runs] == []
    assert "took the database over" in Run.objects.get().reason


def test_taking_over_asks_first_and_needs_a_name(copied, settings, monkeypatch):
    run, out = make_run(), StringIO()
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    with pytest.raises(CommandError, match="Nothing was changed"):
        call_command("take_over", stdout=out)
    assert "This database belongs to production. It will belong to staging" in out.getvalue()
    assert Installation.objects.get().name == "production"
    monkeypatch.setattr("builtins.input", lambda _: "staging")
    call_command("take_over", stdout=out)
    assert Run.objects.get(id=run.id).state == State.CANCELLED
    call_command("take_over", stdout=out)
    assert "belongs to staging already" in out.getvalue()
    settings.INSTALLATION = ""
    with pytest.raises(CommandError, match="set INSTALLATION"):
        call_command("take_over", stdout=out)


def test_a_beat_of_another_installation_looks_at_no_health_and_sends_no_alert(copied):
    watching.look()
    Watch.objects.update(looked_at=None)
    channel = Channel.objects.create(name="hook", kind="webhook", url="HOOK")
    notice = Notice.objects.create(channel=channel, run=make_run().id, event="start", not_before=database_now())
    before = Watch.objects.get().number
    assert watching._watch(True)
    notice.refresh_from_db()
    assert (Watch.objects.get().number, notice.state, watching._sending) == (before, "waiting", set())
