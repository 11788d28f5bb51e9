"""`manage.py worker` and `manage.py beat`: Celery's own processes, with the application and options of the project."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery, current_app

from jobs.local import processes as commands
from jobs.models import Node, Run, State
from jobs.rules.errors import Invalid
from project.celery import app
from tests.making import ends, lines, make_due, make_schedule, send
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = """
SECRET_KEY = "of-no-use"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
INSTALLED_APPS += ["django_celery_beat", "django_celery_results", "jobs"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
"""
OWN = """
from jobs.worker.app import Application

mine = Application("named otherwise", broker="memory://", set_as_current=True)
"""


def call(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *words]
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


@pytest.fixture
def foreign(environment, tmp_path) -> dict[str, str]:
    """The environment of a foreign project, `acme`, which has no Celery application."""
    folder = tmp_path / "acme"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "settings.py").write_text(SETTINGS)
    return environment | {"DJANGO_SETTINGS_MODULE": "acme.settings", "PYTHONPATH": str(ROOT)}


def test_a_worker_and_a_beat_of_manage_py_run_what_is_due_and_end_after_their_work(processes, eventually, tmp_path):
    path = tmp_path / "lines"
    worker = processes.start_command(
        "worker", "--concurrency", "1", "-n", "shell@localhost", "--pool=threads", ready=" ready."
    )
    beat = processes.start_command("beat", "--pidfile", str(tmp_path / "pid"), ready="beat: Starting...")
    line = Path(f"/proc/{worker.pid}/cmdline").read_text().split("\0")
    assert line[1:8] == ["-m", "celery", "-A", "project.celery:app", "worker", "--without-gossip", "--without-mingle"]
    schedule = make_schedule("due", task="tests.note", args=[str(path)])
    make_due(schedule)
    eventually(lambda: Run.objects.filter(schedule=schedule, state=State.SUCCEEDED).exists())
    node = Node.objects.get(kind=Node.Kind.WORKER)
    assert (node.name, node.pid) == ("shell@localhost", worker.pid)
    assert int((tmp_path / "pid").read_text()) == beat.pid

    run = send("tests.hold", str(path))
    eventually(lambda: lines(Path(f"{path}.started")))
    worker.signal(signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in worker.log)
    Path(f"{path}.go").touch()
    assert worker.wait() == 0
    assert ends(run)
    assert run.state == State.SUCCEEDED
    beat.signal(signal.SIGTERM)
    assert beat.wait() == 0


def test_it_passes_every_option_to_celery_from_any_folder(environment, tmp_path):
    done = call(str(ROOT / "manage.py"), "beat", "--nonsense=1", folder=tmp_path, **environment)
    assert (done.returncode, "No such option '--nonsense'" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_its_help_shows_the_options_of_celery(environment):
    for name, option in {"worker": "--max-tasks-per-child", "beat": "--max-interval"}.items():
        done = call("manage.py", name, "--help", folder=ROOT, **environment)
        assert (done.returncode, option in done.stdout) == (0, True)


def test_it_starts_the_application_of_a_foreign_project_under_the_name_of_its_module(foreign, tmp_path):
    (tmp_path / "acme" / "__init__.py").write_text(OWN)
    done = call("-m", "django", "worker", "--nonsense", folder=tmp_path, **foreign)
    assert "No such option '--nonsense'" in done.stderr
    shown = call("-c", WHICH, folder=tmp_path, **foreign)
    assert shown.stdout == "acme:mine\n", shown.stderr


WHICH = "import django; django.setup(); from jobs.local import processes; print(processes.application())"


def test_it_says_what_to_write_in_a_project_without_an_application(foreign, tmp_path):
    done = call("-m", "django", "worker", folder=tmp_path, **foreign)
    assert done.returncode == 1
    assert done.stderr.startswith("This project has no Celery application: write one, such as project/celery.py with")
    assert done.stderr.count("\n") == 1


def test_it_names_an_application_that_no_module_holds():
    hidden = Celery("hidden")
    try:
        hidden.set_current()
        with pytest.raises(Invalid, match="no Celery application"):
            commands.application()
    finally:
        app.set_current()
    assert current_app == app
