"""A user's new app: with a folder, `tasks.py` and one line in INSTALLED_APPS its jobs can be scheduled."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.models import Policy, Run, State
from tests.making import lines, make_due, make_schedule
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

TASKS = """
from pathlib import Path

from celery import shared_task


@shared_task
def greet(path, name="world"):
    Path(path).write_text(f"hello-{name}")
"""


@pytest.fixture
def new_app(tmp_path: Path) -> dict[str, str]:
    """The environment of processes with `greetings` as an installed app."""
    app = tmp_path / "greetings"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "tasks.py").write_text(TASKS)
    settings = "from project.settings import *\n\nINSTALLED_APPS = [*INSTALLED_APPS, 'broken', 'greetings']\n"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").touch()
    (tmp_path / "with_greetings.py").write_text(settings)
    return {"PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "with_greetings"}


@pytest.fixture
def broken(new_app, tmp_path: Path) -> str:
    """What is said of another app, before `greetings`, whose `tasks.py` is no Python."""
    path = tmp_path / "broken" / "tasks.py"
    path.write_text("import os\n\ndef pay(:\n")
    return f"The module broken.tasks cannot be imported ({path}, line 3): SyntaxError: invalid syntax"


def test_it_runs_the_task_of_a_new_app_with_one_line_in_the_settings(processes, eventually, new_app, tmp_path):
    path = tmp_path / "greeting"
    schedule = make_schedule("greet", task="greetings.tasks.greet", args=[str(path)], kwargs={"name": "Ada"})
    processes.start_worker(env=new_app)
    processes.start_beat(env=new_app)
    make_due(schedule)
    eventually(lambda: Run.objects.filter(schedule=schedule, state=State.SUCCEEDED).exists())
    assert lines(path) == ["hello-Ada"]
    assert Policy.objects.get(schedule=schedule).invalid_reason == ""


def test_it_goes_on_with_all_other_jobs_when_the_module_of_an_app_is_broken(
    processes, eventually, new_app, broken, tmp_path
):
    greet = make_schedule("greet", task="greetings.tasks.greet", args=[str(tmp_path / "greeting")])
    pay = make_schedule("pay", task="broken.tasks.pay")
    worker, beat = processes.start_worker(env=new_app), processes.start_beat(env=new_app)
    for schedule in (greet, pay):
        make_due(schedule)
    eventually(lambda: Run.objects.filter(schedule=greet, state=State.SUCCEEDED).exists())
    skipped = eventually(lambda: Run.objects.filter(schedule=pay).first())
    assert (skipped.state, broken in skipped.reason) == (State.SKIPPED, True)
    assert (worker.log.count(broken), beat.log.count(broken)) == (1, 1)
    assert "Traceback" not in worker.log + beat.log


def test_it_says_in_the_checks_which_module_is_broken(environment, new_app, broken):
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env=environment | new_app,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert f"?: (jobs.W001) {broken}" in done.stderr
