"""How does a job call an address that a user typed? With `fetch`, which connects to public addresses only.

Its one rule: a host name is resolved once, all of its addresses must be public, and the connection goes to one of these
checked addresses; every redirect is checked again. So neither odd spellings nor a name server that changes its answer
lead to a private address. The deadline covers the whole call: look-up, connection, TLS, sending, redirects, reading.

Limits: at the deadline a look-up is abandoned. Its thread ends only when the system's resolver returns. Public
addresses that lead to private hosts (your own NAT64 prefix, this machine's public side) cannot be detected: use a
firewall.
"""
# ruff: noqa: ARG002, N818 - the deadline replaces httpcore's own timeouts; the errors are named after the event

import functools
import ipaddress
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import httpcore
import httpx
from django.conf import settings

from jobs.rules.origins import HOST

MAX_REDIRECTS = 5
FRAMING = {"content-length", "transfer-encoding"}  # headers that follow from the body
REDIRECTS = frozenset({301, 302, 303, 307, 308})
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # excludes mapped and compatible IPv4, NAT64, site-local, multicast
# Networks that Python's is_global may let through (it changes with the patch release), or that hide an IPv4 address.
NEVER = (
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments, including a cloud's metadata service
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's host service, which looks public
    ipaddress.ip_network("2001::/23"),  # Teredo, benchmarks and other protocol assignments
    ipaddress.ip_network("2002::/16"),  # 6to4
    ipaddress.ip_network("3fff::/20"),  # documentation
)


class FetchError(Exception):
    """The call got no usable response. The message says why, and never holds headers or credentials."""


class Refused(FetchError, ValueError):
    """The address, or one that it redirected to, may not be called."""


class TimedOut(FetchError):
    """The deadline passed before the response was complete."""


class TooLarge(FetchError):
    """The response is larger than the limit."""


class Unreachable(FetchError):
    """The name does not exist, no server answers there, or the server does not speak HTTP."""


class UnexpectedStatus(FetchError):
    """The server answered with another status than the required one."""


class UnexpectedText(FetchError):
    """The server answered without the required text."""


@dataclass(frozen=True)
class Response:
    status: int
    headers: httpx.Headers
    body: bytes  # decompressed
    url: str  # the address that answered, after redirects

    @property
    def place(self) -> httpx.URL:
        """The URL without its query and fragment, which may hold secrets."""
        return httpx.URL(self.url).copy_with(query=None, fragment=None)

    def require(self, status: int, text: str = "") -> "Response":
        """This response, if it has that status and contains that text. Raises UnexpectedStatus or UnexpectedText."""
        if self.status != status:
            raise UnexpectedStatus(
                f"{self.place} answered {self.status} instead of {status}: check the server, or expect {self.status}."
            )
        if text not in self.body.decode(errors="replace"):
            raise UnexpectedText(
                f"{self.place} answered without the text {text!r}: check the server, or expect another text."
            )
        return self


def fetch(
    method: str,
    address: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    deadline: float = 30.0,
    limit: int = 1_000_000,
) -> Response:
    """Call `address` (http, https, or "/path" of this site) and return the response, whatever its status.

    `deadline` is in seconds, for the whole call. `limit` is in bytes, before and after decompression. A redirect to
    another origin gets neither headers nor body. Host, Connection and the length headers are set here. Raises
    `FetchError` or a subclass.
    """
    client = Client(settings.SITE_URL, settings.HTTP_ALLOW_PRIVATE)
    return client.send(Request(method, client.locate(address), headers or {}, body), deadline, limit)


def locate(address: str) -> httpx.URL:
    """The URL of an address as `fetch` takes it. Raises `Refused`."""
    return Client(settings.SITE_URL).locate(address)


def look_up(host: str, port: int) -> list[str]:
    """All addresses of `host`, from the system's resolver."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether the whole internet may reach this IP address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in GLOBAL_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NEVER)


@dataclass(frozen=True)
class Request:
    method: str
    url: httpx.URL
    headers: Mapping[str, str] = field(repr=False)  # these two may hold secrets
    body: bytes | None = field(repr=False)

    def redirected(self, response: Response) -> "Request":
        """The next request. As in browsers, a 303, and a 301 or 302 after a POST, switch to GET; HEAD stays HEAD."""
        url = _parse(response.headers["location"], self.url)
        is_same = _origin(url) == _origin(self.url)
        headers = self.headers if is_same else {}
        if response.status == 303 or (response.status in {301, 302} and self.method == "POST"):
            return Request("HEAD" if self.method == "HEAD" else "GET", url, headers, None)
        if self.body and not is_same:
            raise Refused(f"{self.url.host} redirects the request body to {url.host}: call the final address directly.")
        return Request(self.method, url, headers, self.body)


@dataclass(frozen=True)
class Client:
    """Sends requests for `site`, the only origin that may be private, with a given resolver and way to connect."""

    site: str
    allow_private: bool = False
    resolve: Callable[[str, int], list[str]] = look_up
    connect: Callable[[tuple[str, int], float], socket.socket] = socket.create_connection
    follows: bool = True  # redirects

    def locate(self, address: str) -> httpx.URL:
        # A path is appended to the site's address: joined with it, "//host" would lead to another host.
        return _parse(f"{self.site}{address}" if str(address).startswith("/") else address)

    def send(self, request: Request, deadline: float, limit: int) -> Response:
        end = time.monotonic() + deadline
        inside = True
        if _origin(request.url) == _origin(_parse(self.site)):
            _refuse_proxys(request.headers)
        for _ in range(MAX_REDIRECTS + 1):
            # A redirect back from another origin comes from a stranger: this site is then like any other address.
            inside = inside and _origin(request.url) == _origin(_parse(self.site))
            response = _exchange(request, _Guard(self, inside or self.allow_private, end), limit)
            if not self.follows or response.status not in REDIRECTS or "location" not in response.headers:
                return response
            request = request.redirected(response)
        raise FetchError(
            f"{request.url.host} redirects more than {MAX_REDIRECTS} times: call the final address directly."
        )


def _parse(text: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        url = base.join(text) if base else httpx.URL(text)
    except (httpx.InvalidURL, TypeError, ValueError):
        raise Refused("This is not an address: write https://host/path, or /path of this site.") from None
    if url.userinfo:
        raise Refused("The address contains a user name or a password; send them in a header instead.")
    port = 80 if url.port is None else url.port
    if url.scheme not in {"http", "https"} or not HOST.fullmatch(url.raw_host.decode()) or not 0 < port < 65536:
        raise Refused("This scheme, host or port cannot be called: write https://host/path, or /path of this site.")
    return url


def _refuse_proxys(headers: Iterable[str]) -> None:
    """Refuse headers in which this site believes its proxy: a job could be any user, from any address."""
    own = {"forwarded", "remote-user", getattr(settings, "SSO_HEADER", "").lower()}
    for name in headers:
        plain = name.lower().replace("_", "-")
        if plain in own or plain.startswith("x-forwarded-"):
            raise Refused(f"Only the proxy of this site may send it the header {name}: remove it.")


def _origin(url: httpx.URL) -> tuple[str, bytes, int]:
    return url.scheme, url.raw_host, url.port or {"http": 80, "https": 443}[url.scheme]


@functools.cache
def _tls() -> ssl.SSLContext:
    # Loading the certificate authorities takes longer than most calls. SSL_CERT_FILE may name a file with your own.
    return httpx.create_ssl_context()


def _exchange(request: Request, guard: "_Guard", limit: int) -> Response:
    """One request and its response over one connection. Every error below becomes a `FetchError`."""
    url = request.url
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    given = {name.lower(): value for name, value in request.headers.items() if name.lower() not in FRAMING}
    headers = {"user-agent": "Punctual", "accept-encoding": "gzip", **given, "connection": "close"}
    headers["host"] = url.netloc.decode()
    try:
        encoded = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        with (
            httpcore.ConnectionPool(_tls(), network_backend=guard) as pool,
            pool.stream(request.method.encode("ascii"), target, headers=encoded, content=request.body) as answer,
        ):
            received = httpx.Headers(answer.headers)
            body = b"" if answer.status in REDIRECTS else _read(answer.iter_stream(), received, limit)
            return Response(answer.status, received, body, str(url))
    except TimeoutError as error:
        raise TimedOut(
            f"{url.host} sent no complete response in time: check the server, or raise the deadline."
        ) from error
    except (httpcore.LocalProtocolError, UnicodeError):
        # Their messages quote the value, which may be a secret.
        raise FetchError("The method or a header contains characters that HTTP does not allow: remove them.") from None
    except (httpcore.ProtocolError, httpcore.NetworkError, OSError, zlib.error) as error:
        raise Unreachable(f"{url.host} sent no valid response: {error}") from error


def _read(chunks: Iterable[bytes], headers: httpx.Headers, limit: int) -> bytes:
    """The body, decompressed only up to `limit`, so that a few kilobytes cannot fill the memory."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise FetchError("The response has a compression that was not requested: only gzip is supported.")
    gzip = None if encoding == "identity" else zlib.decompressobj(wbits=31)
    body, received = bytearray(), 0
    for chunk in chunks:
        received += len(chunk)
        body += gzip.decompress(chunk, limit + 1 - len(body)) if gzip else chunk
        if max(len(body), received) > limit:
            raise TooLarge(f"The response is larger than {limit:,} bytes: request less, or raise the limit.")
    if gzip and received and not gzip.eof:
        raise Unreachable("The compressed response ended too early.")
    return bytes(body)


class _Guard(httpcore.NetworkBackend):
    """Makes the connections: it checks and uses the addresses of one look-up."""

    def __init__(self, client: Client, private: bool, end: float) -> None:
        self._client, self._private, self._end = client, private, end

    def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> httpcore.NetworkStream:
        addresses = self._look_up(host, port)
        if not self._private and not all(map(is_public, addresses)):
            raise Refused(
                f"{host} resolves to a private address, which jobs may not call. For this site write /path; "
                "HTTP_ALLOW_PRIVATE=true allows all private addresses."
            )
        failure = OSError("its name has no address")
        for untried, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                return _Stream(self._client.connect((address, port), _left(self._end) / untried), self._end)
            except OSError as error:
                failure = error
        raise failure

    def _look_up(self, host: str, port: int) -> list[str]:
        answer: Future[list[str]] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._client.resolve(host, port))
            except (OSError, ValueError):
                answer.set_exception(Unreachable(f"{host} cannot be resolved: check its spelling."))

        # A thread, because the system's resolver has no deadline; a daemon, so that it never delays the process's exit.
        threading.Thread(target=ask, name="look-up", daemon=True).start()
        return answer.result(_left(self._end))


class _Stream(httpcore.NetworkStream):
    """A connection on which every wait ends at the deadline, however slowly the server sends."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection, self._end = connection, end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._connection.settimeout(_left(self._end))
        return self._connection.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._connection.settimeout(_left(self._end))
        try:
            self._connection.sendall(buffer)  # the timeout covers the whole buffer
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error  # httpcore then reads a response that came early

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._connection.settimeout(_left(self._end))
        return _Stream(ssl_context.wrap_socket(self._connection, server_hostname=server_hostname), self._end)

    def close(self) -> None:
        self._connection.close()


def _left(end: float) -> float:
    """Seconds until `end`, always more than 0. Raises TimeoutError from `end` on."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
