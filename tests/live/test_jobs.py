"""The ready-made jobs on a live worker: retried, logged, and without any secret in what they write."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.core.files.storage import default_storage
from django.db import connection
from django_celery_results.models import TaskResult

from jobs.ledger import outbox
from jobs.models import Attempt, Run, RunLog, State, StoredFile
from tests.making import ends, make_schedule, run_now

pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "canary-5b1f77"


class Site(ThreadingHTTPServer):
    """Answers 503 `failures` times, then 200; records the header X-Key of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.failures = 0
        self.keys: list[str | None] = []


class Answer(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("x-key"))
        self.send_response(503 if len(self.server.keys) <= self.server.failures else 200)
        self.end_headers()
        self.wfile.write(f"you sent {self.headers.get('x-key')}".encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def worker(processes, site, tmp_path, servers, settings):
    address = f"http://127.0.0.1:{site.server_address[1]}"
    settings.SITE_URL, settings.SECRET_HOSTS = address, {"KEY": [address]}
    given = {"SITE_URL": address, "JOB_SECRET_KEY": CANARY, "RUN_COMMANDS": "speak", "FILES_DIR": str(tmp_path)}
    given["SECRET_HOSTS_KEY"] = address
    path = f"{servers.binaries}:{processes.environment['PATH']}" if servers.binaries else processes.environment["PATH"]
    return processes.start_worker(env={**given, "PATH": path})


def start(task: str, keep_result: bool | None = None, **kwargs: Any) -> Run:
    schedule = make_schedule(f"{task} {uuid4()}", task=task, kwargs=kwargs, policy={"keep_result": keep_result})
    return run_now(schedule)


def soon(run: Run) -> bool:
    """Whether the run has ended; starts a waiting attempt at once."""
    Run.objects.filter(id=run.id, state=State.WAITING).update(not_before=run.due_at)
    outbox.send_waiting()
    return ends(run)


def everything() -> str:
    """All rows of Punctual's tables, as text."""
    labels = ("jobs", "django_celery_beat", "django_celery_results")
    models = [model for label in labels for model in apps.get_app_config(label).get_models()]
    return str([list(model.objects.values_list()) for model in models])


def test_it_calls_again_after_a_server_error_and_writes_the_secret_nowhere(worker, site, eventually):
    site.failures = 1
    run = start("jobs.http_call", url="/", headers={"X-Key": "secret:KEY"}, expected_text="you sent", retries=1)
    eventually(lambda: soon(run))
    assert (run.state, run.attempt, site.keys) == (State.SUCCEEDED, 2, [CANARY, CANARY])
    assert [attempt.outcome for attempt in run.attempts.all()] == [Attempt.Outcome.RETRIED]
    failing = start("jobs.http_call", url="/", headers={"X-Key": "secret:KEY"}, expected_text="another", retries=0)
    eventually(lambda: soon(failing))
    assert failing.state == State.FAILED
    assert "answered without the text 'another'" in failing.reason
    assert "secret:KEY" in everything()
    assert CANARY not in everything() + worker.log


def test_it_runs_commands_and_backups_on_a_worker(worker, eventually, settings, tmp_path):
    settings.MEDIA_ROOT, settings.RUN_COMMANDS = tmp_path, ["speak"]
    speaking = start("jobs.run_command", command="speak", arguments=["hello", CANARY])
    backup = start("jobs.backup_database")
    refused = start("jobs.run_command", command="speak", arguments=["--exit=2"])
    failing = start("jobs.run_command", keep_result=True, command="speak", arguments=["--fail", CANARY])
    runs = (speaking, backup, refused, failing)
    eventually(lambda: all(map(ends, runs)))
    assert [run.state for run in runs] == [State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.FAILED]
    text = RunLog.objects.get(run=speaking).text
    assert "hello" in text
    assert CANARY not in text
    assert "speak exited with 2" in refused.reason
    kept = TaskResult.objects.get(task_id=failing.id)
    for shown in (failing.reason, failing.error_text, kept.result, kept.traceback, worker.log):
        assert "could not say" in shown
        assert CANARY not in shown
    row = StoredFile.objects.get()
    assert (row.run_id, row.kind, row.size) == (backup.id, "backup", default_storage.size(row.file.name))
    assert connection.vendor in row.name
