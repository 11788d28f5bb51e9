"""Without the start guard neither beat nor worker starts; a worker that cannot know of it is named."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery

from jobs import checks
from jobs.ledger import outbox
from jobs.models import Node, Run, State, database_now
from project.celery import app
from tests.making import lines, make_run, make_schedule
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

PLAIN = """
import os
from pathlib import Path

from celery import Celery

app = Celery("acme", broker=os.environ["BROKER_URL"])


@app.task(name="tests.note", bind=True)
def note(self, path):
    with Path(path).open("a") as file:
        file.write(f"{self.request.id}\\n")
"""
LINE = "`from jobs.worker.app import Application` and `app = Application('acme')`"


@pytest.fixture
def plain(tmp_path: Path, settings) -> dict[str, str]:
    """The environment of processes of a project with a plain Celery application, `acme`."""
    (tmp_path / "acme.py").write_text(PLAIN)
    return {"PYTHONPATH": str(tmp_path), "BROKER_URL": settings.CELERY_BROKER_URL}


@pytest.mark.parametrize("command", [("beat", "-S", "jobs.beat:Scheduler"), ("worker", "--pool=solo")])
def test_a_process_of_a_plain_application_says_what_to_write_and_ends(environment, plain, command):
    line = [sys.executable, "-m", "celery", "-A", "acme", *command]
    ended = subprocess.run(line, env=environment | plain, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ended.returncode == 1
    assert LINE in ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        *(("beat", "-S", "django"), ("beat", "--scheduler=django_celery_beat.schedulers:DatabaseScheduler")),
        ("worker", "--pool=solo", "-B", "--scheduler=django"),
    ],
)
def test_a_beat_with_another_scheduler_says_what_to_write_and_ends(environment, command):
    line = [sys.executable, "-m", "celery", "-A", "project", *command]
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ended.returncode == 1
    assert (
        'Write CELERY_BEAT_SCHEDULER = "jobs.beat:Scheduler" in the settings, and start beat without -S' in ended.stderr
    )


def test_its_worker_names_a_beat_of_django_celery_beat_beside_ours(processes, eventually):
    make_schedule("often", every=timedelta(seconds=1))
    worker = processes.start_worker("--pool=solo")
    processes.start_other_beat("benchmarks.bare", "-S", "django")
    stranger = eventually(lambda: Node.objects.filter(kind=Node.Kind.STRANGER).first())
    assert stranger.name.startswith("beat at gen")
    assert stranger.problem in worker.log


def test_it_names_a_worker_without_the_start_guard_and_the_runs_that_it_takes(processes, eventually, plain, tmp_path):
    path = tmp_path / "lines"
    processes.start_other("acme", "old@localhost", env=plain | {"DJANGO_SETTINGS_MODULE": ""})
    processes.start_other("acme", "else@localhost", "-Q", "elsewhere", env=plain | {"DJANGO_SETTINGS_MODULE": ""})
    worker = processes.start_worker("--pool=solo", "--queues=other")
    eventually(lambda: Node.objects.filter(kind=Node.Kind.WORKER).exists())
    beat = processes.start_beat()
    stranger = eventually(lambda: Node.objects.filter(kind=Node.Kind.STRANGER).first())
    assert Node.objects.filter(kind=Node.Kind.STRANGER).count() == 1
    assert (stranger.name, stranger.queues) == ("old@localhost", "celery")
    assert "old@localhost consumes queue celery, but does not report to the ledger" in beat.log
    assert Node.objects.get(kind=Node.Kind.WORKER).pid == worker.pid
    run = make_run(task="tests.note", args=[str(path)])
    outbox.send([run])
    eventually(lambda: lines(path))
    Run.objects.update(not_before=database_now())
    eventually(lambda: Run.objects.filter(sends=2).exists())
    run.refresh_from_db()
    assert run.state == State.QUEUED
    assert run.reason == (
        "sent once, no worker took it: old@localhost may have taken it, which consumes queue `celery` but does not"
        " report to the ledger: stop or upgrade it"
    )


def test_django_checks_the_application_that_sends_its_runs():
    assert checks.application() == []
    plain = Celery("acme")
    try:
        plain.set_current()
        (error,) = checks.application()
    finally:
        app.set_current()
    assert error.id == "jobs.E001"
    assert LINE in error.msg
