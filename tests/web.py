"""A web server on loopback that serves the pages of a test and records its requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import DEADLINE


class Answer(BaseHTTPRequestHandler):
    server: "Web"

    def _answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.headers.append(dict(self.headers))
        self.server.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        self.server.answers.wait(DEADLINE)
        body = self.server.pages.get(self.path)
        if location := self.server.redirects.get(self.path):
            self.send_response(307)
            self.send_header("Location", location)
        else:
            self.send_response(404 if body is None else self.server.status)
        self.end_headers()
        self.wfile.write(body or b"")

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - http.server requires these names

    def log_message(self, *_: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    """Answers with `pages` and one `status` for all of them, and records its requests."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.pages = pages
        self.status = 200
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.answers = threading.Event()  # while it is not set, requests get no answer
        self.answers.set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(pages: dict[str, bytes]) -> Iterator[Web]:
    with Web(pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.answers.set()
            server.shutdown()
            thread.join()
