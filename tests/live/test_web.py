"""The web process limits slow, large and forged requests, and logs no links. It runs as operators start it."""

import json
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from django.urls import reverse

from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

# gunicorn's own file, but with a shorter time for slow requests.
CONFIG = f"""
exec(open({str(ROOT / "gunicorn.conf.py")!r}).read())
from project import server
server.HEAD_START = 1.0
"""
LOGIN = reverse("admin:login")
LARGE = 120_000_000  # bytes


class Site:
    """A web process with two threads."""

    def __init__(self, process, temp: Path) -> None:
        self.process, self.temp = process, temp

    @property
    def port(self) -> int:
        return int(self.process.log.partition("Listening at: http://127.0.0.1:")[2].split()[0])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def get(self, path: str, headers: dict[str, str] | None = None) -> int:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", path, headers=headers or {})
            return connection.getresponse().status
        finally:
            connection.close()

    @property
    def temporary_bytes(self) -> int:
        named = sum(path.stat().st_size for path in self.temp.rglob("*") if path.is_file())
        return named + sum(_unlinked(Path(f"/proc/{worker.pid}/fd"), self.temp) for worker in self.workers)

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    @property
    def memory(self) -> int:
        return sum(worker.memory_info().rss for worker in self.workers)


def _unlinked(descriptors: Path, folder: Path) -> int:
    """The bytes of open files in the folder that have no name any more."""
    found = 0
    for each in descriptors.iterdir():
        with suppress(OSError):
            if str(each.readlink()).startswith(f"{folder}/") and "(deleted)" in str(each.readlink()):
                found += each.stat().st_size
    return found


@pytest.fixture
def site(processes, tmp_path) -> Site:
    temp, config = tmp_path / "temp", tmp_path / "gunicorn.py"
    temp.mkdir()
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "gunicorn", "project.wsgi", "--bind=127.0.0.1:0", f"--config={config}"]
    options = ["--workers=1", "--threads=2", "--access-logfile=-"]
    env = {"TMPDIR": str(temp), "ALLOWED_HOSTS": "127.0.0.1", "HTTPS": "false"}
    return Site(processes._start("web", [*command, *options], env, ready="Booting worker"), temp)


def multipart(address: str, length: int, cookie: str = "") -> bytes:
    part = "--b\r\nContent-Disposition: form-data; name="
    head = f"POST {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n{cookie}"
    body = f'{part}"csrfmiddlewaretoken"\r\n\r\n{"a" * 32}\r\n{part}"file"; filename="x"\r\n\r\n'
    return f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n{body}".encode()


def send_all(connection: socket.socket, length: int) -> None:
    """Send so many bytes, or until the server closes the connection."""
    piece = b"x" * 1_000_000
    with suppress(ConnectionError):
        for _ in range(length // len(piece)):
            connection.sendall(piece)


def test_it_bounds_what_strangers_send(site, eventually):
    assert site.get("/livez") == 200
    before, most = site.memory, 0
    for address in (reverse("admin:jobs_storedfile_add"), LOGIN, "/", "/nothing"):
        with site.connect() as connection:
            connection.sendall(multipart(address, LARGE, f"Cookie: csrftoken={'a' * 32}\r\n"))
            answer = connection.recv(12)
            assert answer == b"HTTP/1.1 413"
            send_all(connection, LARGE)
            most = max(most, site.temporary_bytes)
    assert most == 0
    assert site.memory - before < 50_000_000

    # Half of a head, a head without its body, half of a body, and connections that say nothing: three for each thread.
    with ExitStack() as held:
        for begun in (
            b"",
            b"GET / HTTP/1.1\r\nHo",
            multipart(LOGIN, 5_000)[:-20],
            multipart("/", 5_000),
            b"P",
            b"\r\n",
        ):
            connection = held.enter_context(site.connect())
            connection.sendall(begun)
        assert [site.get("/livez"), site.get(LOGIN)] == [200, 200]
    assert not [path for path in site.temp.rglob("*") if path.is_file()]

    # A client that sends on within its time is served.
    with site.connect() as connection:
        for piece in (b"GET /livez HT", b"TP/1.1\r\nHost: x\r\nConnection: close\r\n", b"\r\n"):
            connection.sendall(piece)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"

    # Neither gunicorn nor Django writes down the link to a file.
    assert (
        site.get("/files/Ab1:cD2:link-to-a-file?x=1", {"referer": "http://127.0.0.1/files/Ab1:cD2:link-to-a-file"})
        == 404
    )
    eventually(lambda: "GET /files/***?x=1 HTTP/1.1" in site.process.log)
    assert "Ab1:cD2:link-to-a-file" not in site.process.log
    assert "Traceback" not in site.process.log


def test_it_writes_its_own_log_as_json_with_the_ids_of_requests(processes, tmp_path, eventually):
    config = tmp_path / "gunicorn.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "gunicorn", "project.wsgi", "--bind=127.0.0.1:0", f"--config={config}"]
    env_file = tmp_path / "env"
    env_file.write_text("LOG_FORMAT=json\n")
    env = {"ENV_FILE": str(env_file), "ALLOWED_HOSTS": "127.0.0.1", "HTTPS": "false"}
    options = ["--workers=1", "--access-logfile=-"]
    site = Site(processes._start("web", [*command, *options], env, ready="Booting worker"), tmp_path)
    connection = HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
    connection.request("GET", "/files/canary")
    request_id = connection.getresponse().headers["X-Request-ID"]
    connection.close()

    def records(logger: str) -> list[dict]:
        whole = site.process.log.rpartition("\n")[0].splitlines()
        return [row for row in map(json.loads, whole) if row["logger"] == logger]

    eventually(lambda: records("gunicorn.access"))
    (line,) = records("gunicorn.access")
    assert line["request_id"] == request_id
    assert "GET /files/***" in line["event"]
    assert "canary" not in site.process.log
    assert any("Listening at" in row["event"] for row in records("gunicorn.error"))
    env_file.write_text("LOG_FORMAT=text\n")
    os.kill(site.process.pid, signal.SIGHUP)
    eventually(lambda: "[INFO] Booting worker" in site.process.log)
