"""The API on real processes and a broker that dies. The examples of docs/api.md run as they stand there.

The web process has one worker with eight threads, as gunicorn.conf.py gives each.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from types import ModuleType
from uuid import uuid4

import httpx
import pytest
from django.contrib.auth.models import User
from django.db import connection

from jobs.models import Run, State, StoredFile, database_now
from tests.api import make_token
from tests.database.test_snippets import blocks
from tests.live.conftest import SHORT_LEASE, Process, Processes
from tests.making import ends, make_run
from tests.servers import ROOT, MortalBroker
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing")]

DOCUMENT = ROOT / "docs" / "api.md"
WEB = (sys.executable, "-m", "gunicorn", "project.wsgi", "--bind=127.0.0.1:0", "--workers=1", "--access-logfile=-")
RUNS = "/api/runs"


@pytest.fixture(scope="module")
def broker(standing: Processes) -> Iterator[MortalBroker]:
    broker = MortalBroker(standing._workspace)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="module")
def environment(broker: MortalBroker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    files = {"FILES_DIR": str(tmp_path_factory.mktemp("files"))}
    return {**broker.address, **SHORT_LEASE, **files, "ALLOWED_HOSTS": "127.0.0.1", "HTTPS": "false"}


@pytest.fixture(scope="module")
def web(standing: Processes, environment: dict[str, str]) -> Process:
    standing.start_worker(env=environment)
    standing.start_beat(env=environment)
    return start_web(standing, environment)


def start_web(standing: Processes, environment: dict[str, str], **more: str) -> Process:
    return standing._start("web", list(WEB), {**environment, **more}, ready="Booting worker")


def address_of(web: Process) -> str:
    return "http://127.0.0.1:" + web.log.partition("Listening at: http://127.0.0.1:")[2].split()[0]


@pytest.fixture
def token() -> str:
    scopes = [
        *("jobs.view_run", "jobs.add_run", "jobs.change_run", "jobs.add_storedfile"),
        "django_celery_results.view_taskresult",
    ]
    return make_token(User.objects.create_superuser(f"ada {uuid4()}"), *scopes)


@pytest.fixture
def site(web: Process, token: str) -> Iterator[httpx.Client]:
    with client_of(web, token) as client:
        yield client


def client_of(web: Process, token: str) -> httpx.Client:
    return httpx.Client(base_url=address_of(web), headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE)


def commands() -> list[str]:
    """The commands of the document, each as it stands there."""
    return re.findall(r"^    (curl (?:.*\\\n)*.*)$", DOCUMENT.read_text(), re.MULTILINE)


def curl(command: str, **variables: str) -> dict[str, object]:
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", **variables}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_it_runs_the_commands_of_its_document(web, token, tmp_path):
    jobs, upload, status, result, start = commands()
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,2\n")
    variables = {"SITE": address_of(web), "TOKEN": token, "FILE": str(file)}
    assert "jobs.process_upload" in {job["name"] for job in curl(jobs, **variables)["items"]}
    sent = curl(upload, **variables)
    assert curl(upload, **variables)["status"] == sent["status"]
    variables["STATUS"] = sent["status"]
    while not (run := curl(status, **variables))["is_over"]:
        assert run["state"] in {"waiting", "queued", "running"}
    assert (run["state"], run["id"]) == ("succeeded", sent["run"]["id"])
    assert curl(result, **variables)["result"]["columns"] == 2
    assert run["progress"]["done"] == run["progress"]["total"] == 8
    assert StoredFile.objects.filter(id=run["arguments"]["file"]).exists()
    assert curl(start, **variables)["id"] == curl(start, **variables)["id"]


def test_it_runs_the_program_of_its_document(site, tmp_path, capsys):
    module = ModuleType("billing.send")
    exec(compile(blocks(DOCUMENT, "python")[0], str(DOCUMENT), "exec"), module.__dict__)
    file = tmp_path / "8.txt"
    file.write_text("hello\n")
    described = module.describe(site, file)
    assert described["bytes"] == 6
    assert module.describe(site, file) == described  # the same key: the same run
    assert Run.objects.filter(key__endswith=": order 8").count() == 1


def test_it_follows_a_run_while_it_executes(site, eventually, tmp_path):
    path = tmp_path / "held"
    started = site.post(RUNS, json={"job": "tests.report_and_hold", "arguments": {"path": str(path)}})
    assert started.status_code == 202
    run = started.headers["Location"]
    log = eventually(lambda: (got := site.get(f"{run}/log").json())["text"] and got)
    assert "half way" in log["text"]
    progress = eventually(lambda: (got := site.get(f"{run}/progress").json())["done"] and got)
    assert (progress["done"], progress["total"], progress["message"], progress["state"]) == (1, 2, "holding", "running")
    assert not site.get(f"{run}?wait=1").json()["is_over"]
    (tmp_path / "held.go").touch()
    shown = eventually(lambda: (got := site.get(f"{run}?wait=30").json())["is_over"] and got)
    assert (shown["state"], shown["worker"] > "") == ("succeeded", True)
    assert site.get(f"{run}/result").json()["result"] == {"rows": 7}
    assert "half way" not in site.get(f"{run}/log", params={"after": log["after"]}).json()["text"]


def test_it_cancels_a_run_that_executes(site, eventually, tmp_path):
    run = site.post(RUNS, json={"job": "tests.hold", "arguments": {"path": str(tmp_path / "held")}}).headers["Location"]
    eventually((tmp_path / "held.started").exists)
    assert site.post(f"{run}/cancel").json()["cancel_requested"]
    shown = eventually(lambda: (got := site.get(f"{run}?wait=30").json())["is_over"] and got)
    assert shown["state"] == "cancelled"
    assert site.post(f"{run}/cancel").status_code == 409


def connections_of(application: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [application])
        return int(cursor.fetchone()[0])


def test_it_serves_others_while_requests_wait(standing, environment, token, eventually, request):
    if request.config.getoption("database") == "sqlite":
        pytest.skip("SQLite has no connections to count.")
    url = standing.environment["DATABASE_URL"]
    name = f"web {uuid4()}"
    url += ("&" if "?" in url else "?") + f"application_name={name}"
    web = start_web(standing, environment, DATABASE_URL=url)
    run, answers = make_run(state=State.RUNNING, lease_until=database_now() + timedelta(hours=1)), []

    def wait() -> None:
        with client_of(web, token) as client:
            answers.append(client.get(f"{RUNS}/{run.id}?wait=60").json()["state"])

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    eventually(lambda: connections_of(name) == 1)  # that of the thread which asks for all of them
    with client_of(web, token) as client:
        assert client.get(f"{RUNS}/{run.id}?wait=1").json()["state"] == "running"
        assert client.get(RUNS).status_code == 200
    assert answers == []
    Run.objects.filter(id=run.id).update(state=State.SUCCEEDED, finished_at=run.due_at)
    for thread in waiting:
        thread.join(DEADLINE)
    assert answers == ["succeeded"] * 3


def test_it_starts_a_run_while_the_broker_is_dead(site, broker, eventually):
    broker.kill()
    answer = site.post(RUNS, json={"job": "tests.nothing"})
    assert (answer.status_code, answer.json()["state"]) == (202, "waiting")
    run = Run.objects.get(id=answer.json()["id"])
    assert not ends(run)
    broker.start()
    eventually(partial(ends, run))
    assert run.state == State.SUCCEEDED


def test_it_logs_no_token(site, web, token, eventually):
    assert site.get(RUNS).status_code == 200
    assert httpx.get(f"{address_of(web)}{RUNS}", headers={"Authorization": f"Bearer {token}x"}).status_code == 401
    assert httpx.get(f"{address_of(web)}{RUNS}?token={token}").status_code == 401
    eventually(lambda: f"GET {RUNS}?token=*** HTTP" in web.log)
    assert token not in web.log
