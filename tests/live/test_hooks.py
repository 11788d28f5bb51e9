"""Webhooks reach a running site: gunicorn takes or refuses them, a worker runs their jobs, the broker may be away."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from threading import Barrier

import pytest

from jobs.models import Run, State, Webhook, WebhookSource, database_now
from tests.live.conftest import Process
from tests.making import lines
from tests.pure.test_signatures import OTHER, PLAIN, STANDARD, signed
from tests.servers import ROOT, MortalBroker
from tests.waiting import DEADLINE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing")]
KEYS = {"WEBHOOK_KEYS_SHOP": STANDARD, "WEBHOOK_KEYS_PLAIN": PLAIN}
NOWHERE = "postgres://user@127.0.0.1:1/nothing"
COMMANDS = re.search(r"^    signature=.*\n    curl .*$", (ROOT / "docs" / "webhooks.md").read_text(), re.MULTILINE)[0]


class Site:
    """A web process, and what it answers."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = int(process.log.partition("Listening at: http://127.0.0.1:")[2].split()[0])

    def send(self, method: str, path: str, body: object, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            said, is_json = response.read(), response.headers["content-type"] == "application/json"
            return response.status, json.loads(said) if is_json else {}
        finally:
            connection.close()

    def post(self, body: object, headers: dict[str, str], path: str = "/hooks/shop") -> tuple[int, dict[str, str]]:
        return self.send("POST", path, body, {"content-type": "application/json", **headers})


def start(standing, broker: MortalBroker, **environment: str) -> Site:
    options = ["--bind=127.0.0.1:0", "--workers=1", "--threads=4", "--access-logfile=-", "--no-control-socket"]
    command = [sys.executable, "-m", "gunicorn", "project.wsgi", *options]
    env = {**broker.address, **KEYS, "ALLOWED_HOSTS": "127.0.0.1", "HTTPS": "false", **environment}
    return Site(standing._start("web", command, env, ready="Booting worker"))


@pytest.fixture(scope="module")
def broker(servers) -> Iterator[MortalBroker]:
    broker = MortalBroker(servers.workspace)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def site(standing, broker) -> Site:
    standing.start_worker(env=broker.address)
    return start(standing, broker)


@pytest.fixture
def path(tmp_path) -> Iterator[Path]:
    """A file in which the job of both sources notes what they have sent."""
    path = tmp_path / "lines"
    for name, form, keys in (("shop", "standard", "SHOP"), ("plain", "github", "PLAIN")):
        row = {"form": form, "keys": keys, "job": "tests.note_webhook", "arguments": {"path": str(path)}}
        WebhookSource.objects.create(name=name, **row)
    yield path
    WebhookSource.objects.all().delete()
    Run.objects.all().delete()


def body_of(number: int) -> bytes:
    return json.dumps({"number": number}).encode()


def headers_of(body: bytes, event: str, **options: object) -> dict[str, str]:
    return signed("standard", body, **{"at": database_now(), "event": event, **options})


def test_it_runs_the_job_of_each_event_once_and_nothing_else(site, eventually, path):
    right, barrier = headers_of(body_of(1), "evt_1"), Barrier(4)

    def deliver(_: int) -> tuple[int, dict[str, str]]:
        barrier.wait(DEADLINE)
        return site.post(body_of(1), right)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(deliver, range(4)))
    run = Run.objects.get()
    assert answers == [(202, {"run": str(run.id)})] * 4

    old = headers_of(body_of(2), "evt_2", at=database_now() - timedelta(minutes=6))
    large = b"x" * 1_000_001
    cases = [
        (401, site.post(body_of(2), headers_of(body_of(2), "evt_2", key=OTHER))),
        (401, site.post(body_of(2), headers_of(body_of(3), "evt_2"))),
        (401, site.post(body_of(2), old)),
        (401, site.post(body_of(2), {})),
        (400, site.post(body_of(2), right | {"webhook-timestamp": "soon"})),
        (404, site.post(body_of(2), headers_of(body_of(2), "evt_2"), "/hooks/other")),
        (405, site.send("GET", "/hooks/shop", None, right)),
        (411, site.post(iter([body_of(1)]), right)),  # sent in chunks
        (413, site.post(large, headers_of(large, "evt_2"))),
        (415, site.post(body_of(1), right | {"content-type": "text/xml"})),
        (415, site.post(body_of(1), right | {"content-type": "multipart/form-data; boundary=b"})),
        (202, site.post(body_of(1), headers_of(body_of(1), "evt_1"))),
    ]
    assert [(status, answer[0]) for status, answer in cases] == [(status, status) for status, _ in cases]
    assert cases[-1][1][1] == {"run": str(run.id)}

    environment = {"ADDRESS": f"http://127.0.0.1:{site.port}/hooks/plain", "KEY": PLAIN, "body": '{"number": 7}'}
    done = subprocess.run(
        ["/bin/sh", "-ec", COMMANDS], env=environment, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == 2)
    by_shell = Run.objects.get(id=json.loads(done.stdout)["run"])
    assert sorted(lines(path)) == sorted([f"plain:{by_shell.webhook.event}:7", "shop:evt_1:1"])
    assert Webhook.objects.count() == Run.objects.count() == 2
    refused = [line for line in site.process.log.splitlines() if " WARNING " in line]
    assert [line.partition(" WARNING ")[2].partition(":")[0] for line in refused] == [
        "jobs.ledger.webhooks",  # once a minute for a source, instead of Django's line for each request
        *["django.request"] * 2,  # the wrong method, and the size that the site refuses for every page
    ]
    assert "Traceback" not in site.process.log
    assert not [key for key in (STANDARD, PLAIN) if key in site.process.log]


def test_it_does_not_wait_for_the_broker_and_loses_no_event_with_it(site, standing, eventually, broker, path):
    assert standing.start_beat(env=broker.address).running
    with broker.frozen():
        status, answer = site.post(body_of(1), headers_of(body_of(1), "evt_frozen"))
        assert status == 202
        eventually(lambda: '"POST /hooks/shop HTTP/1.1" 202' in _since_refusals(site))
        assert Run.objects.get(id=answer["run"]).state == State.WAITING
        eventually(lambda: "takes no messages" in site.process.log)
    broker.kill()
    status, answer = site.post(body_of(2), headers_of(body_of(2), "evt_killed"))
    assert status == 202
    assert Run.objects.get(id=answer["run"]).state == State.WAITING
    broker.start()
    eventually(lambda: Run.objects.filter(state=State.SUCCEEDED).count() == 2)
    assert sorted(lines(path)) == ["shop:evt_frozen:1", "shop:evt_killed:2"]


def _since_refusals(site: Site) -> str:
    """What the web process wrote before it gave the frozen broker up."""
    return site.process.log.partition("takes no messages")[0]


def test_it_lets_senders_repeat_while_the_database_is_away(standing, broker):
    away = start(standing, broker, DATABASE_URL=NOWHERE)
    status, answer = away.post(body_of(1), headers_of(body_of(1), "evt_1"))
    assert (status, answer) == (503, {"error": "This site cannot take the webhook now: send it again later."})
    assert "Traceback" not in away.process.log
