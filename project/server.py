"""How does gunicorn handle slow clients and download links? gunicorn.conf.py names these classes.

Its one rule: a client has `HEAD_START` seconds for its request, and a second more for every `RATE` bytes that arrive.
Then the server closes the connection: gunicorn itself lets an unfinished request hold a thread for ever.
Limits: until then, the request holds the thread. Put a proxy in front that collects requests (docker-compose.yml).
"""

import time
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers import gthread

from project.logs import without_links

HEAD_START = 10.0  # seconds
RATE = 20_000  # bytes
WRITING = 30.0  # seconds in which a client must take a part of the answer


class Reader(SocketUnreader):  # type: ignore[misc] # gunicorn has no type hints
    """Reads a request until its time has run out."""

    def begin(self) -> None:
        self._deadline = time.monotonic() + HEAD_START

    def chunk(self, size_hint: int | None = None) -> bytes:
        left = min(self._deadline - time.monotonic(), self.sock.gettimeout() or HEAD_START)
        if left <= 0:
            raise NoMoreData
        self.sock.settimeout(left)
        try:
            data: bytes = super().chunk(size_hint)
        except TimeoutError:
            raise NoMoreData from None
        finally:
            self.sock.settimeout(WRITING)
        self._deadline += len(data) / RATE
        return data


class Connection(gthread.TConn):  # type: ignore[misc] # as above
    """A client's connection: gunicorn calls `init` before each of its requests."""

    def init(self) -> None:
        super().init()
        if self.is_http2:
            return
        if not isinstance(self.parser.unreader, Reader):
            read = self.parser.unreader.buf
            self.parser.unreader = Reader(self.sock)
            self.parser.unreader.buf = read
        self.parser.unreader.begin()
        self.sock.settimeout(WRITING)

    def wait_for_data(self, timeout: float) -> bool:  # noqa: ARG002 - gunicorn's names
        """A new connection without a request waits in gunicorn's poller and holds no thread."""
        return bool(super().wait_for_data(0))


class Worker(gthread.ThreadWorker):  # type: ignore[misc] # as above
    """gunicorn's threaded worker, with a time limit for slow requests."""

    def init_process(self) -> None:
        gthread.TConn = Connection  # gunicorn has no setting for it
        super().init_process()


class AccessLogger(Logger):  # type: ignore[misc] # as above
    """Masks links to files: every reader of the log could open them."""

    def atoms(self, *args: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().atoms(*args)
        return {name: without_links(value) for name, value in found.items()}
