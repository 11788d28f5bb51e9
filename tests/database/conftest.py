"""What tests of jobs are given besides: a real web server on loopback, which they take for this site."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders

SAMPLE = Path(str(finders.find("jobs/sample-feed.xml"))).read_bytes()


class Answer(BaseHTTPRequestHandler):
    server: "Web"

    def _answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.headers.append(dict(self.headers))
        self.server.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        body = self.server.pages.get(self.path)
        self.send_response(404 if body is None else self.server.status)
        self.end_headers()
        self.wfile.write(body or b"")

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - http.server asks for these names

    def log_message(self, *_: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    """Answers with `pages` under one `status`, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.pages: dict[str, bytes] = {"/healthz": b"ok\n", "/feed": SAMPLE}
        self.status = 200
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []


@pytest.fixture
def web(settings: pytest.FixtureRequest) -> Iterator[Web]:
    with Web() as server:
        settings.SITE_URL = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
