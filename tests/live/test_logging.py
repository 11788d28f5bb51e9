"""Where beat and workers log to, at which level and in which format is the operator's choice; runs keep their lines."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import CELERY, QUIET
from tests.live.test_secrets import CANARY, WAYS, traces
from tests.making import ends, send
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

PARTIAL = {"version": 1, "disable_existing_loggers": False, "loggers": {"shop": {"level": "ERROR"}}}
EACH_LOGGING = pytest.mark.parametrize(
    "changes", [{}, {"LOGGING": {}}, {"LOGGING": PARTIAL}], ids=["ours", "{}", "part"]
)
SECRET = {"JOB_SECRET_KEY": "canary-1234", "SECRET_JOBS_KEY": "tests.say"}
SECRETS = ("hunter2", "canary")
RECITED = {"JOB_SECRET_KEY": "canary-1234", "SECRET_JOBS_KEY": "tests.recite"}
WHATS = ("all", "end", "one", "two")
FORMAT = {"CELERY_WORKER_LOG_FORMAT": "ours %(levelname)s %(message)s"}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`changed(LOGGING={})`: an environment with the settings of the tests, and these instead of their own."""

    def write(**settings: object) -> dict[str, str]:
        lines = ["from tests.settings import *", *(f"{name} = {value!r}" for name, value in settings.items())]
        (tmp_path / "changed_settings.py").write_text("\n".join(lines))
        return {"DJANGO_SETTINGS_MODULE": "changed_settings", "PYTHONPATH": str(tmp_path)}

    return write


@pytest.fixture
def say(eventually) -> Callable[[], str]:
    """`say()`: have a worker execute a task that logs; returns what its run keeps of it."""

    def run() -> str:
        said = send("tests.say")
        eventually(lambda: ends(said))
        return "".join(log.text for log in said.logs.all())

    return run


@EACH_LOGGING
def test_it_logs_to_the_terminal_at_the_level_of_the_settings(processes, changed, say, changes):
    worker = processes.start_worker(env=changed(**changes) | SECRET)
    for text in (say(), worker.terminal):
        assert (text.count("with password=***"), text.count("to Celery's logger ***")) == (1, 1)
        assert not any(word in text for word in (*SECRETS, "in detail"))


APART = {"tests": {"handlers": ["console"], "propagate": False}}


@pytest.mark.parametrize("more", [{}, {"disable_existing_loggers": False, "loggers": APART}], ids=["plain", "apart"])
def test_it_keeps_the_lines_of_loggers_that_exist_or_do_not_propagate(processes, changed, say, more):
    handlers = {"console": {"class": "logging.StreamHandler"}}
    logging = {"version": 1, "handlers": handlers, "root": {"handlers": ["console"], "level": "INFO"}, **more}
    processes.start_worker(env=changed(LOGGING=logging) | SECRET)
    assert say().count("with password=***") == 1


@EACH_LOGGING
def test_it_logs_to_the_file_at_the_level_and_in_the_format_of_the_options(processes, changed, say, changes, tmp_path):
    file, environment = tmp_path / "worker.log", changed(**changes, **FORMAT) | SECRET
    worker = processes.start_worker("--loglevel=DEBUG", f"--logfile={file}", env=environment)
    kept, written = say(), file.read_text()
    assert ("in detail" in kept, "with password=***" in kept) == (True, True)
    assert ("ours DEBUG in detail\n" in written, "ours INFO with password=***\n" in written) == (True, True)
    assert not any(word in kept + written for word in SECRETS)
    assert "with password" not in worker.terminal


JSON = {"LOG_FORMAT": "json", "PYTHONWARNINGS": "ignore"}


def records(terminal: str) -> list[dict[str, Any]]:
    """What a worker wrote as JSON: all but a sentence that Celery writes past Python's streams when it ends."""
    lines = [line for line in terminal.splitlines() if line not in {"", "worker: Warm shutdown (MainProcess)"}]
    return [json.loads(line) for line in lines]


@EACH_LOGGING
def test_it_writes_json_with_the_keys_of_a_run_and_its_steps(processes, changed, eventually, changes):
    worker = processes.start_worker(env=changed(**changes) | JSON | RECITED)
    run = send("tests.recite")
    eventually(lambda: ends(run))
    worker.stop()
    written = records(worker.terminal)
    assert not any(word in worker.terminal for word in SECRETS)
    told = [line for line in written if line["logger"] in {"tests.recite", "stdout"}]
    of_run = {"run": str(run.id), "schedule": run.schedule_id, "schedule_name": run.schedule_name, "attempt": 1}
    assert all(of_run.items() <= line.items() and line["task"] == "tests.recite" for line in told), told
    assert [line.get("step") for line in told if line["event"] == "Recites all"] == [None]
    steps = {line["step"] for line in told if line["event"] in {"Recites one", "Recites two", "Recites end"}}
    assert steps == {str(step.id) for step in run.steps.all()}
    assert {line["dish"] for line in told if line["event"].startswith("Recites")} == {"hot soup"}
    assert all(line["exception"].endswith(": '***'") for line in told if line["event"] == "Cannot count")
    assert sorted(line["event"] for line in told if line["logger"] == "stdout") == ["says " + what for what in WHATS]
    kept = "".join(log.text for log in run.logs.all())
    assert "INFO tests.recite: Recites all\n" in kept
    assert "says all\n" in kept
    ended = next(line for line in written if line.get("task_id") == str(run.id) and "succeeded" in line["event"])
    assert of_run.items() <= ended.items()


def test_it_writes_no_secret_as_json_whatever_a_job_does_with_it(processes, eventually):
    worker = processes.start_worker(env=JSON | {"JOB_SECRET_CANARY": CANARY})
    runs = [send("tests.slip", way) for way in WAYS]
    eventually(lambda: all(ends(run) for run in runs))
    worker.stop()
    written = records(worker.terminal)
    found = worker.terminal.lower()
    assert [trace for trace in traces() if trace in found] == []
    printed = {line.get("run") for line in written if line["logger"] in {"stdout", "stderr"}} - {None}
    assert printed
    assert printed <= {str(run.id) for run in runs}
    assert "password: ***" in [line["event"] for line in written]


def test_it_writes_keys_as_text(processes, eventually):
    worker = processes.start_worker(env=RECITED)
    run = send("tests.recite", "once")
    eventually(lambda: ends(run))
    of_run = f'run={run.id} schedule={run.schedule_id} schedule_name="{run.schedule_name}" attempt=1 task=tests.recite'
    assert f'INFO tests.recite: Recites once {of_run} dish="hot soup" api_key=***\n' in worker.terminal


def test_it_writes_the_json_of_a_file_and_of_beat(processes, tmp_path):
    file = tmp_path / "beat.log"
    beat = processes.start_beat(f"--logfile={file}", env=JSON)
    beat.stop()
    assert "beat: Starting..." in [json.loads(line)["event"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"LOGGING": {}}], ids=["ours", "{}"])
def test_it_prefers_the_format_of_the_operator_to_json(processes, changed, say, changes):
    worker = processes.start_worker(env=changed(**changes, **FORMAT) | SECRET | JSON)
    say()
    assert "ours INFO with password=***\n" in worker.terminal


def test_it_takes_the_options_of_beat(processes, eventually, tmp_path):
    file = tmp_path / "beat.log"
    beat = processes.start_beat("--loglevel=INFO", f"--logfile={file}", env={"LOG_LEVEL": "DEBUG"})
    assert " INFO celery.beat: beat: Starting...\n" in file.read_text()
    assert (" DEBUG " in file.read_text(), "Starting..." in beat.terminal) == (False, False)


@contextmanager
def multi(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """A worker in the background, started and stopped by `celery multi`, with a log for each process of its pool."""
    files = (f"--pidfile={folder}/%n.pid", f"--logfile={folder}/%n%I.log")

    def ask(command: str, *arguments: str) -> None:
        asking = [*CELERY, "multi", command, "one@localhost", *files, *arguments]
        subprocess.run(asking, cwd=ROOT, env=environment, capture_output=True, timeout=DEADLINE, check=True)

    ask("start", "--concurrency=1", *QUIET)
    try:
        yield
    finally:
        ask("stopwait")


@pytest.mark.parametrize("changes", [{}, {"LOGGING": {}}], ids=["ours", "{}"])
def test_it_writes_the_log_of_a_worker_that_celery_multi_started(
    processes, changed, say, eventually, changes, tmp_path
):
    with multi(processes.environment | changed(**changes) | SECRET, tmp_path):
        kept = say()
        assert "with password=***" in kept
        assert "with password=***" in (tmp_path / "one-1.log").read_text()
    assert " ready." in (tmp_path / "one.log").read_text()
    assert "canary" not in (tmp_path / "one-1.log").read_text() + kept
