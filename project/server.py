"""How does gunicorn handle slow clients and write its logs? gunicorn.conf.py names these classes.

Its one rule: a client has `HEAD_START` seconds for its request, and a second more for every `RATE` bytes that arrive.
Then the server closes the connection: gunicorn itself lets an unfinished request hold a thread for ever.
Limits: until then, the request holds the thread. Put a proxy in front that collects requests (docker-compose.yml).
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import environ
from environ.fileaware_mapping import FileAwareMapping
from gunicorn.glogging import Logger
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers import gthread

from jobs.logs import Formatter
from project.logs import WithoutLinks, without_links

ENV_FILE = Path(__file__).parent.parent / ".env"

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
    """Masks links to files: every reader of the log could open them. LOG_FORMAT=json gives JSON lines."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        is_json = _is_json()
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                handler.addFilter(_links)
                if is_json and getattr(handler, "_gunicorn", False):
                    handler.setFormatter(Formatter(as_json=True))
        if is_json:
            self.access_log.addFilter(_add_request_id)

    def atoms(self, *args: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().atoms(*args)
        return {name: without_links(value) for name, value in found.items()}


_links = WithoutLinks()


def _add_request_id(record: logging.LogRecord) -> bool:
    """The id that the answer names. A dict of gunicorn gives `-` for a missing header."""
    if isinstance(record.args, dict) and (request_id := record.args["{x-request-id}o"]) != "-":
        record.request_id = request_id
    return True


def _is_json() -> bool:
    """Reads LOG_FORMAT without the settings: workers forked after SIGHUP would keep those of the main process.

    A wrong value counts as text here; the settings report it when a worker starts.
    """

    class Copy(environ.FileAwareEnv):  # type: ignore[misc] # `read_env` writes into ENVIRON
        ENVIRON = FileAwareMapping(env=dict(os.environ))

    Copy.read_env(os.environ.get("ENV_FILE", ENV_FILE))
    try:
        return bool(Copy.ENVIRON.get("LOG_FORMAT", "").strip().lower() == "json")
    except (OSError, UnicodeDecodeError):
        return False
