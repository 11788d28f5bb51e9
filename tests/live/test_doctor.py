"""Each symptom with real processes: a healthy system shows none, and a fault is found, also while servers hang."""

import json
import subprocess
import sys
import threading

import pytest
from celery import current_app

from jobs.models import Attempt, Channel, Node, Policy, Run, State
from jobs.monitoring import asked, doctor, symptoms, system
from tests.database.test_commands import call
from tests.live.conftest import SHORT_LEASE
from tests.live.test_probes import frozen
from tests.making import make_schedule, run_now, send
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)


DEADLINES = asked.DEADLINE, symptoms.DEADLINE_OF_SERVERS


@pytest.fixture(autouse=True)
def _in_development(settings, monkeypatch) -> None:
    settings.DEBUG = True  # otherwise the checks for production warn of the settings of tests
    monkeypatch.setattr(asked, "DEADLINE", DEADLINE)  # a busy machine may take its time
    monkeypatch.setattr(symptoms, "DEADLINE_OF_SERVERS", DEADLINE)


@pytest.fixture
def impatient(worker, monkeypatch) -> None:
    """The deadlines of the command, once all is well."""
    for (module, name), seconds in zip(
        ((asked, "DEADLINE"), (symptoms, "DEADLINE_OF_SERVERS")), DEADLINES, strict=True
    ):
        monkeypatch.setattr(module, name, seconds)


def verdicts() -> dict[str, str]:
    return {each.question: each.verdict.value for each in doctor.examine()}


def evidence(question: str) -> str:
    """The evidence of a symptom; empty if it is not found."""
    found = {each.question: each.evidence for each in doctor.examine() if each.verdict == "found"}
    return found.get(question, "")


def is_healthy() -> bool:
    return "found" not in verdicts().values()


@pytest.fixture
def worker(processes):
    """With a beat, a schedule and a channel: nothing is wrong."""
    Channel.objects.create(name="mail", addresses=["ada@example.org"])
    make_schedule("report")
    processes.start_beat(env=SHORT_LEASE)
    worker = processes.start_worker(env=SHORT_LEASE)
    processes.eventually(lambda: Node.objects.live().count() == 2 and is_healthy())
    return worker


def test_a_healthy_system_shows_no_symptom_by_the_command(worker, processes, environment, eventually):
    run = send("tests.nothing")
    eventually(lambda: Run.objects.filter(id=run.id, state=State.SUCCEEDED).exists())
    done = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"],
        cwd=ROOT,
        env={**environment, "DEBUG": "true"},
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    answers = {each["question"]: each for each in json.loads(done.stdout)["answers"]}
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert {each["verdict"] for each in answers.values()} <= {"fine", "cannot tell"}
    assert [name for name, each in answers.items() if each["verdict"] == "cannot tell"] == ["settings"]
    assert answers["memory"]["evidence"].startswith("the largest process of worker1@localhost takes ")


def test_large_processes_without_a_limit_are_found(worker, processes, eventually, monkeypatch):
    monkeypatch.setattr(symptoms, "LARGE", 1_000_000)
    assert evidence("memory").endswith("and no limit of memory or tasks renews it")
    worker.stop()
    processes.start_worker("--max-tasks-per-child=100")
    eventually(lambda: verdicts()["memory"] == "fine")


def test_a_killed_worker_and_its_lost_run_are_found(worker, eventually, tmp_path):
    run = send("tests.hold", str(tmp_path / "file"))
    eventually(lambda: Run.objects.filter(id=run.id, state=State.RUNNING).exists())
    worker.kill()
    eventually(lambda: Run.objects.filter(id=run.id, state=State.LOST).exists() or Attempt.objects.exists())
    assert "lost in the last day" in evidence("dying")


def test_a_queue_that_no_worker_consumes_is_found(worker, eventually, monkeypatch):
    monkeypatch.setattr(system, "GRACE", system.GRACE * 0)
    schedule = make_schedule("slow", queue="slow")
    run_now(schedule)
    eventually(lambda: "No worker consumes queue slow" in evidence("executing"))
    assert "No worker consumes queue slow" in evidence("queues")


def test_a_job_that_fails_without_a_channel_fails_silently(worker, eventually):
    Channel.objects.update(is_enabled=False)
    send("tests.fail", "no money")
    eventually(lambda: "no money" in evidence("silent"))


def test_a_run_beyond_its_limit_is_slow(worker, eventually, tmp_path):
    run = send("tests.hold", str(tmp_path / "file"))
    Policy.objects.filter(schedule=run.schedule).update(longest_runtime="0:00:00.5")
    eventually(lambda: "has been running for" in evidence("slow"))


def test_a_beat_that_is_stopped_is_found(worker, monkeypatch, processes, eventually):
    monkeypatch.setattr(system, "GRACE", system.GRACE * 0)
    (beat,) = [each for each in processes._started if each.name.startswith("beat")]
    beat.stop()
    eventually(lambda: evidence("beat").startswith("beat: No beat has reported for"))


def hanging() -> dict[str, tuple[str, str]]:
    """The verdict and the evidence of each question. A busy machine may delay a good answer, so tests wait for it."""
    return {each.question: (each.verdict.value, each.evidence) for each in doctor.examine()}


def test_it_answers_while_the_broker_hangs(worker, redis, impatient, eventually):
    with frozen(redis.info("server")["process_id"]):
        verdict, evidence = hanging()["broker"]
        assert (verdict, evidence.endswith(": no answer within 1.5 s")) == ("found", True)
        eventually(lambda: hanging()["executing"][0] == "fine")


def test_it_answers_while_the_database_hangs(worker, servers, impatient, eventually):
    if servers.binaries is None:
        pytest.skip("This run did not start a PostgreSQL, and cannot stop it.")
    file = servers.workspace.folder / "postgresql" / "data" / "postmaster.pid"
    with frozen(int(file.read_text().split()[0])):
        answers = hanging()
        assert answers["database"] == ("found", "it cannot be used: no answer within 1.5 s")
        of_ledger = {"executing", "silent", "memory", "slow", "beat", "dying", "queues"}
        assert {answers[name][0] for name in of_ledger} == {"cannot tell"}
        assert {answers[name][1] for name in of_ledger} <= {"no answer within 2.5 s", "no answer within 3 s"}
        eventually(lambda: hanging()["broker"][0] == "fine")
        refused = call("doctor", "report")
        hangs = "The database gives no answer within 2.5 s: call `manage.py doctor`."
        assert (refused.status, refused.err) == (1, hangs)


def test_a_result_backend_that_is_gone_is_found(worker, monkeypatch, servers):
    app = current_app._get_current_object()
    for name, value in (("_local", threading.local()), ("_backend_cache", None)):
        monkeypatch.setattr(app, name, value)
    monkeypatch.setattr(app.conf, "result_backend", "redis://:canary@127.0.0.1:1/0")
    assert "keep results, but redis://:***@127.0.0.1:1/0 cannot be read: " in evidence("results")
