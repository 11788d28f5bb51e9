"""What does gunicorn do with slow clients and with download links? gunicorn.conf.py names these classes.

Its one rule: a request has `HEAD_START` seconds, and a second more for every `RATE` bytes that arrive. Then its
connection closes: gunicorn itself lets half a request hold a thread for ever.
Limits: until then it does hold the thread. Put a proxy in front that collects requests first (docker-compose.yml).
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
    """Reads a request until its time is over."""

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
        """A new connection without a request waits beside the threads, not in one."""
        return bool(super().wait_for_data(0))


class Worker(gthread.ThreadWorker):  # type: ignore[misc] # as above
    """gunicorn's threads, with a bound for slow requests."""

    def init_process(self) -> None:
        gthread.TConn = Connection  # gunicorn has no other place to name it
        super().init_process()


class AccessLogger(Logger):  # type: ignore[misc] # as above
    """Writes no link to a file: whoever reads the log could open it."""

    def atoms(self, *args: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().atoms(*args)
        return {name: without_links(value) for name, value in found.items()}
