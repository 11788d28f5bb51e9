"""Where beat and workers log to, at which level and in which format is the operator's choice; runs keep their lines."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.conftest import CELERY, QUIET
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
