"""A proxy on loopback that stands for the whole internet: HTTPS for any host ends here, with a certificate of its own.

Its one rule: a program that obeys HTTPS_PROXY and trusts the authority of `environment` reaches no other server.
"""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """A request to a host, inside the tunnel that the client asked for."""

    server: "Gateway"
    protocol_version = "HTTP/1.1"
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        self.send_response(200)
        self.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.authority.issue_cert(self.host).configure_cert(context)
        self.request = context.wrap_socket(self.request, server_side=True)
        self.setup()
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.request.close()  # the server closes only the socket below TLS

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(self)
        answer = self.server.answers.get(self.host) or (lambda one: one.reply(200))
        answer(self)

    do_GET = do_POST  # noqa: N815

    def reply(self, status: int, body: bytes = b"ok", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Gateway(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, authority: trustme.CA, bundle: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.authority, self.bundle = authority, bundle
        self.answers: dict[str, Answer] = {}  # by host
        self.asked: list[Handler] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HTTPS_PROXY": f"http://127.0.0.1:{self.server_address[1]}",
            "NO_PROXY": "",
            "REQUESTS_CA_BUNDLE": str(self.bundle),
        }


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    authority = trustme.CA()
    bundle = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with Gateway(authority, bundle) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
