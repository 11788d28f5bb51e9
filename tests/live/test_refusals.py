"""A worker that cannot take a message says so in the ledger, and another worker may execute the run."""

import json

import pytest
from celery import current_app
from django_celery_results.models import TaskResult

from jobs.ledger import outbox
from jobs.models import Run, State, Step, database_now
from tests.making import ends, lines, make_run, send

pytestmark = pytest.mark.django_db(transaction=True)

OLD_CODE = {"DJANGO_SETTINGS_MODULE": "project.settings"}  # without the app whose tasks the tests send


def given_back(run: Run) -> bool:
    run.refresh_from_db()
    return run.state == State.WAITING and bool(run.reason)


def test_it_gives_a_run_back_that_its_worker_does_not_know_until_another_one_takes_it(processes, eventually, tmp_path):
    path = tmp_path / "lines"
    old = processes.start_worker("--pool=solo", env=OLD_CODE)
    run = send("tests.note", str(path))
    eventually(lambda: given_back(run))
    assert run.reason == (
        "worker0@localhost knows no task tests.note: deploy the code to it, or let another worker take the queue"
    )
    assert (run.attempt, run.sends, run.queued_at) == (1, 1, None)
    assert run.not_before > database_now()
    assert not TaskResult.objects.exists()
    old.stop()
    processes.start_worker("--pool=solo")
    Run.objects.update(not_before=database_now())
    outbox.send_waiting()
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, run.sends, run.reason) == (State.SUCCEEDED, 1, 2, "")
    assert lines(path) == [str(run.id)]


def test_it_gives_back_every_run_whose_message_it_cannot_take(processes, eventually, redis):
    refused, broken, good = make_run(options={"serializer": "pickle"}), make_run(), make_run(task="jobs.heartbeat")
    outbox.send([refused])
    outbox.send([broken])
    message = json.loads(redis.lpop("celery"))
    redis.lpush("celery", json.dumps({**message, "body": "ew=="}))  # no JSON
    outbox.send([good])
    worker = processes.start_worker("--pool=solo")
    eventually(lambda: given_back(refused) and given_back(broken))
    assert refused.reason.startswith("worker0@localhost cannot take its message, ")
    assert "ContentDisallowed: Refusing to deserialize" in refused.reason
    assert refused.reason.endswith(": use json, or add the type to accept_content")
    assert broken.reason.startswith("worker0@localhost cannot take its message, ")
    eventually(lambda: ends(good))
    assert worker.running


def test_it_fails_a_run_with_the_step_that_a_worker_does_not_know(processes, eventually):
    processes.start_worker("--pool=solo", "--queues=celery")
    processes.start_worker("--pool=solo", "--queues=old", env=OLD_CODE)
    run = send("tests.to_old")
    eventually(lambda: ends(run))
    why = "worker1@localhost knows no task tests.nothing: deploy the code to it, or let another worker take the queue"
    assert (run.state, run.reason) == (State.FAILED, f"step tests.nothing failed: {why}")
    step = Step.objects.get(run=run)
    assert (step.state, step.error_class, step.error_text) == (Step.State.FAILED, "Undeliverable", why)


def test_it_leaves_a_step_alone_that_runs_elsewhere_when_its_message_comes_again(processes, eventually):
    run = make_run(state=State.RUNNING)
    columns = {"run": run, "attempt": 1, "task": "tests.nothing", "lease_until": run.lease_until}
    for name in ("queued", "running"):
        Step.objects.create(id=name, state=name, **columns)
    for name in ("running", "queued"):
        headers = {"punctual_step": [str(run.id), 1]}
        current_app.send_task("tests.nothing", task_id=name, headers=headers)
    processes.start_worker("--pool=solo", env=OLD_CODE)
    eventually(lambda: Step.objects.get(id="queued").state == Step.State.FAILED)
    assert Step.objects.get(id="running").state == Step.State.RUNNING


def test_it_goes_on_when_it_cannot_record_a_refusal(processes, eventually, redis):
    outbox.send([make_run(), make_run(options={"serializer": "pickle"}), make_run(task="tests.note", args=["x"])])
    nowhere = {"DATABASE_URL": processes.environment["DATABASE_URL"] + "-gone"}
    worker = processes.start_worker("--pool=solo", env=OLD_CODE | nowhere)
    eventually(lambda: worker.log.count("could not be recorded") == 3)
    assert worker.running
