"""A user's new app: with a folder, `tasks.py` and one line in INSTALLED_APPS its jobs can be scheduled."""

from pathlib import Path

import pytest

from jobs.models import Policy, Run, State
from tests.making import lines, make_due, make_schedule

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
    settings = "from project.settings import *\n\nINSTALLED_APPS = [*INSTALLED_APPS, 'greetings']\n"
    (tmp_path / "with_greetings.py").write_text(settings)
    return {"PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "with_greetings"}


def test_it_runs_the_task_of_a_new_app_with_one_line_in_the_settings(processes, eventually, new_app, tmp_path):
    path = tmp_path / "greeting"
    schedule = make_schedule("greet", task="greetings.tasks.greet", args=[str(path)], kwargs={"name": "Ada"})
    processes.start_worker(env=new_app)
    processes.start_beat(env=new_app)
    make_due(schedule)
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).exists())
    assert lines(path) == ["hello-Ada"]
    assert Policy.objects.get(schedule=schedule).invalid_reason == ""
