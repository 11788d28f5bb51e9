"""Does `fetch` reach public addresses only, and does it always return?

The servers are real and listen on loopback; there is no outside network. `Internet` says which address leads to which
server: every other address leads to the canary, which must get no visitors.
"""

import contextlib
import gzip
import os
import queue
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.toolkit import http
from tests.waiting import DEADLINE

PUBLIC, OTHER_PUBLIC = "93.184.216.34", "2606:4700::1111"
LIMIT = 100_000  # bytes

# A self-signed certificate for example.org and its key, which no other file uses. Valid until 2120.
KEY = """
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzvXrCfiYoDmNEv787oBncgLXPVm+OG47qHO0t+AsVAuhRANCAAS7
K29Z6GUiOn409KT/N8+tOVzqXrsZxOvxTh+g4WpxBbg4ndQbYR4hu9FqQoyKrc1NjrmhLtQXnkiSrgg4WbD3"""
CERTIFICATE = """
MIIBdjCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAWMRQwEgYDVQQDDAtleGFtcGxlLm9yZzAgFw0yMDAxMDEwMDAwMDBaGA8yMTIw
MDEwMTAwMDAwMFowFjEUMBIGA1UEAwwLZXhhbXBsZS5vcmcwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAS7K29Z6GUiOn409KT/
N8+tOVzqXrsZxOvxTh+g4WpxBbg4ndQbYR4hu9FqQoyKrc1NjrmhLtQXnkiSrgg4WbD3o1owWDAPBgNVHRMBAf8EBTADAQH/MBYG
A1UdEQQPMA2CC2V4YW1wbGUub3JnMB0GA1UdDgQWBBRABF3Kr6Cwd/wAKL+sY80B9XN/xzAOBgNVHQ8BAf8EBAMCAoQwCgYIKoZI
zj0EAwIDRwAwRAIgfVfrCGVzzRkB8K+oSV5kxX3V542+xt744RQw172iQBgCIHpIiJU9FJ9BwF4mAouzVlaO1mx2Kb24yomgS/4f
XBVX"""

HOSTILE = [
    # IPv4, as getaddrinfo reads it
    "http://127.0.0.1/",
    "http://127.0.0.1:22/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.255.255.254/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.0.0.01/",
    "http://0x7f000001/",
    "http://0x7F.1/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://00.0x0.0/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1:8080/",
    "http://3232235521/",
    "http://100.64.0.1/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    # metadata services
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://100.100.100.200/",
    "http://168.63.129.16/machine",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://[fd00:ec2::254]/latest/",
    "http://[::ffff:169.254.169.254]/",
    # IPv6, and IPv4 inside IPv6
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::FFFF:7f00:1]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[::8.8.8.8]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::808:808]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::1]/",
    "http://[2002:808:808::1]/",
    "http://[2001:0:7f00:1::1]/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25lo]/",
    "http://[fe80::1%lo]/",
    "http://[::1%25lo]/",
    "http://[2606:4700::1111%25lo]/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    # names
    "http://localhost/",
    "http://LOCALHOST./",
    "http://foo.localhost/",
    "http://ip6-localhost/",
    "http://127.0.0.1./",
    "http://127.0.0.1.nip.example/",
    # user names
    "http://example.org@127.0.0.1/",
    "http://example.org:80@127.0.0.1/",
    "http://127.0.0.1@example.org/",
    "http://name:word@example.org/",
    "http://a@b@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://example.org%40127.0.0.1/",
    "http://127.0.0.1#@inside.example/",
    "http://127.0.0.1?@inside.example/",
    # letters and dots that only look like ASCII
    "http://１２７.０.０.１/",
    "http://127。0。0。1/",
    "http://127．0．0．1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://localhoſt/",
    "http://loc\u00adalhost/",
    "http://127.0.0.1\u200b/",
    "http://١٢٧.0.0.1/",
    "http://127.0.0.1:٨٠/",
    # schemes, and addresses without one
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://127.0.0.1/",
    "dict://127.0.0.1:6379/info",
    "ws://127.0.0.1/",
    "data:text/html,inside",
    "unix:///run/redis.sock",
    "http+unix://%2Frun%2Fredis.sock/",
    "view-source:http://127.0.0.1/",
    "HTTP://127.0.0.1/",
    "hTtPs://127.0.0.1/",
    "http:127.0.0.1/",
    "http:/127.0.0.1/",
    "http:///127.0.0.1/",
    "127.0.0.1",
    "localhost:80",
    "http://",
    "",
    # white space, control characters, escapes and backslashes
    " http://127.0.0.1/",
    "http://127.0.0.1 /",
    "\thttp://127.0.0.1/",
    "http://127.0.0.1\n/",
    "http://127.0.0.1\r\nHost: example.org/",
    "http://127.0.0.1\x00.example.org/",
    "http://\u3000127.0.0.1/",
    "http://127.0.0.1%00.example.org/",
    "http://127.0.0.1%2f.example.org/",
    "http://127.0.0.1%0d%0a/",
    "http://%31%32%37.0.0.1/",
    "http://127%2e0%2e0%2e1/",
    "http://example.org\\@127.0.0.1/",
    "http://127.0.0.1\\@example.org/",
    "http://127.0.0.1\\.example.org/",
    "http:\\\\127.0.0.1\\",
    "http:/\\127.0.0.1/",
    # ports and odd hosts
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65616/",
    "http://127.0.0.1:-80/",
    "http://127.0.0.1:80:80/",
    "http://127.0.0.1:/",
    "http://:80/",
    "http://.127.0.0.1/",
    "http://[127.0.0.1]/",
    "http://[::1/",
]


class Answer(BaseHTTPRequestHandler):
    """Reads the body, records the request, and answers as the server's table says."""

    protocol_version = "HTTP/1.1"
    server: "Web"
    body: bytes

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(self)
        self.server.answers.get(self.path, lambda answer: answer.send(404))(self)

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815 - http.server asks for these names

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def drip(self, first: bytes, drops: bytes) -> None:
        """Send something every few milliseconds, so that no single wait is long, until the client leaves."""
        self.close_connection = True
        self.wfile.write(first)
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until and not self.server.closing.wait(0.005):
            self.wfile.write(drops)

    def log_message(self, *_: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    """A web server on loopback, with a table of answers, that records its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.closing = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.answers: dict[str, Callable[[Answer], None]] = {"/": lambda answer: answer.send(200, b"hello")}
        self.asked: list[Answer] = []

    @property
    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_address[1]

    def handle_error(self, *_: Any) -> None:
        pass  # some tests break off on purpose


class Canary:
    """Accepts connections, says nothing, and counts them. With `hangs_up` it closes each at once."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.place: tuple[str, int] = self._listener.getsockname()
        self.hangs_up = False
        self._came: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = self._listener.accept()
                if self.hangs_up:
                    connection.close()
                else:
                    self._held.append(connection)
                self._came.put(address)

    def visitors(self) -> int:
        """How many connected since the last call. Connections are accepted in order, so our own ends the count."""
        came = 0
        with socket.create_connection(self.place) as ours:
            while self._came.get(timeout=DEADLINE) != ours.getsockname():
                came += 1
        self._let_go()
        return came

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._let_go()

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().close()


class Internet:
    """Names, their addresses, and the servers behind them. Only the site is reached at its real address."""

    def __init__(self, site: Web, canary: Canary) -> None:
        self.site, self.canary = site, canary
        self.names: dict[str, list[list[str]]] = {}  # one entry for each look-up; the last one for all further look-ups
        self.servers: dict[tuple[str, int], tuple[str, int] | None] = {site.place: site.place}
        self.looked_up: list[str] = []
        self.tried: list[tuple[str, int]] = []

    def add(self, name: str, server: Web | Canary, address: str = PUBLIC, port: int = 80) -> None:
        self.names[name] = [[address]]
        self.servers[address, port] = server.place

    def resolve(self, host: str, port: int) -> list[str]:
        """Reads numbers as the system does; an unknown name leads to this machine."""
        self.looked_up.append(host)
        if host in self.names:
            answers = self.names[host]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (socket.gaierror, UnicodeError):
            return ["127.0.0.1"]
        return [str(entry[4][0]) for entry in found]

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.tried.append(address)
        server = self.servers.get(address, self.canary.place)
        if server is None:
            raise ConnectionRefusedError("Connection refused")
        return socket.create_connection(server, timeout)

    def call(self, address: str, method: str = "GET", **options: Any) -> http.Response:
        client = http.Client(site_url(self.site), options.pop("allow_private", False), self.resolve, self.connect)
        request = http.Request(method, client.locate(address), options.pop("headers", {}), options.pop("body", None))
        return client.send(request, options.pop("deadline", DEADLINE), options.pop("limit", LIMIT))


def site_url(site: Web) -> str:
    return f"http://127.0.0.1:{site.place[1]}"


@contextlib.contextmanager
def running(server: Web) -> Iterator[Web]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def lasting_site() -> Iterator[Web]:
    with running(Web()) as server:
        yield server


@pytest.fixture
def site(lasting_site: Web) -> Web:
    lasting_site.reset()
    return lasting_site


@pytest.fixture
def web() -> Iterator[Web]:
    """A server for the tests to add to the internet."""
    with running(Web()) as server:
        yield server


@pytest.fixture(scope="module")
def lasting_canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


@pytest.fixture
def canary(lasting_canary: Canary) -> Canary:
    lasting_canary.visitors()
    lasting_canary.hangs_up = False
    return lasting_canary


@pytest.fixture
def internet(site: Web, canary: Canary) -> Internet:
    return Internet(site, canary)


def redirect(status: int, location: str) -> Callable[[Answer], None]:
    return lambda answer: answer.send(status, location=location)


# --- Which addresses it reaches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", HOSTILE, ids=ascii)
def test_it_reaches_no_private_server_when_the_address_is_hostile(internet: Internet, address: str) -> None:
    with pytest.raises(http.Refused):
        internet.call(address)
    assert internet.tried == []
    assert internet.canary.visitors() == 0


def test_it_reaches_no_private_server_when_a_redirect_is_hostile(internet: Internet) -> None:
    def hostile(answer: Answer) -> None:
        answer.close_connection = True
        answer.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: " + address.encode() + b"\r\nContent-Length: 0\r\n\r\n")

    internet.site.answers["/away"] = hostile
    for address in HOSTILE:
        with contextlib.suppress(http.FetchError):  # in a Location header, some are paths of this site
            internet.call("/away")
        assert set(internet.tried) == {internet.site.place}, address
    assert internet.canary.visitors() == 0


def test_it_reaches_private_servers_by_most_hostile_addresses_when_they_are_allowed(internet: Internet) -> None:
    internet.canary.hangs_up = True
    for address in HOSTILE:
        with contextlib.suppress(http.FetchError):
            internet.call(address, allow_private=True)
    assert internet.canary.visitors() >= 70


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.216.34",
        "172.32.0.1",
        "168.63.129.15",
        "2606:4700::1111",
        "2a00:1450:4001:80b::200e",
        "2003::1",
    ],
)
def test_it_accepts_an_address_as_public_when_the_internet_may_reach_it(address: str) -> None:
    assert http.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://exa%6dple.org/",
        "http://example.org\\.other.example/",
        "http://.example.org/",
        "http://[2606:4700::1111%25lo]/",
        "http://example.org:0/",
        "http://example.org:65616/",
    ],
)
def test_it_refuses_the_address_when_the_host_or_port_is_odd(internet: Internet, address: str) -> None:
    client = http.Client(site_url(internet.site), False, lambda _host, _port: [PUBLIC], internet.connect)
    with pytest.raises(http.Refused):
        client.send(http.Request("GET", client.locate(address), {}, None), DEADLINE, LIMIT)
    assert internet.tried == []


def test_it_connects_to_the_checked_address_when_the_name_changes_its_answer(internet: Internet, web: Web) -> None:
    internet.add("rebind.example", web)
    internet.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert internet.call("http://rebind.example/").body == b"hello"
    assert (internet.looked_up, internet.tried) == (["rebind.example"], [(PUBLIC, 80)])


def test_it_refuses_the_second_hop_when_the_name_has_changed_its_answer(internet: Internet, web: Web) -> None:
    internet.add("rebind.example", web)
    internet.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    web.answers["/"] = redirect(302, "/again")
    with pytest.raises(http.Refused):
        internet.call("http://rebind.example/")
    assert internet.tried == [(PUBLIC, 80)]


@pytest.mark.parametrize("addresses", [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC, "::1"]])
def test_it_refuses_a_name_when_one_of_its_addresses_is_private(internet: Internet, addresses: list[str]) -> None:
    internet.names["mixed.example"] = [addresses]
    with pytest.raises(http.Refused, match=r"mixed\.example resolves to a private address"):
        internet.call("http://mixed.example/")
    assert internet.tried == []


def test_it_tries_the_next_address_when_one_does_not_answer(internet: Internet, web: Web) -> None:
    internet.add("example.org", web)
    internet.names["example.org"] = [[OTHER_PUBLIC, PUBLIC]]
    internet.servers[OTHER_PUBLIC, 80] = None
    assert internet.call("http://example.org/").status == 200
    assert internet.tried == [(OTHER_PUBLIC, 80), (PUBLIC, 80)]


def test_it_leaves_time_for_the_next_address_when_one_is_silent(internet: Internet, web: Web) -> None:
    internet.add("example.org", web)
    internet.names["example.org"] = [[OTHER_PUBLIC, PUBLIC]]

    waits: list[float] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] == OTHER_PUBLIC:
            waits.append(timeout)
            raise TimeoutError  # as if it had waited
        return internet.connect(address, timeout)

    client = http.Client(site_url(internet.site), False, internet.resolve, connect)
    request = http.Request("GET", client.locate("http://example.org/"), {}, None)
    assert client.send(request, DEADLINE, LIMIT).status == 200
    assert 0 < waits[0] <= DEADLINE / 2


def test_it_reaches_a_private_address_when_the_setting_allows_it(
    site: Web, web: Web, settings: pytest.FixtureRequest
) -> None:
    settings.SITE_URL = site_url(site)
    with pytest.raises(http.Refused):
        http.fetch("GET", site_url(web))
    settings.HTTP_ALLOW_PRIVATE = True
    assert http.fetch("GET", site_url(web)).body == b"hello"


def test_it_reaches_this_site_when_the_address_is_a_path(site: Web, settings: pytest.FixtureRequest) -> None:
    settings.SITE_URL = site_url(site)
    site.answers["/page?a=1"] = lambda answer: answer.send(200, b"page")
    assert http.fetch("GET", "/page?a=1").body == b"page"
    assert http.fetch("GET", f"{site_url(site)}/").url == f"{site_url(site)}/"


@pytest.mark.parametrize("path", ["//10.0.0.1/", "/\\10.0.0.1/", "/@10.0.0.1/", "/:80@10.0.0.1/", "///10.0.0.1/"])
def test_it_stays_on_this_site_when_a_path_looks_like_a_host(internet: Internet, path: str) -> None:
    assert internet.call(path).status == 404
    assert internet.tried == [internet.site.place]


def test_it_refuses_another_port_of_this_site_when_it_is_private(internet: Internet, web: Web) -> None:
    with pytest.raises(http.Refused):
        internet.call(site_url(web))
    assert internet.tried == []


def test_it_refuses_this_site_when_a_stranger_redirects_there(internet: Internet, web: Web) -> None:
    internet.add("example.org", web)
    web.answers["/"] = redirect(302, f"{site_url(internet.site)}/admin/")
    internet.site.answers["/out"] = redirect(302, "http://example.org/")
    for address in ("http://example.org/", "/out"):
        with pytest.raises(http.Refused):
            internet.call(address)
    assert [answer.path for answer in internet.site.asked] == ["/out"]


def test_it_uses_no_proxy_when_the_environment_names_one(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://{}:{}".format(*internet.canary.place))
    assert internet.call("/").body == b"hello"
    assert (internet.tried, internet.canary.visitors()) == ([internet.site.place], 0)


# --- Requests -------------------------------------------------------------------------------------------------------


def test_it_sends_method_headers_and_body_when_it_calls(internet: Internet, web: Web) -> None:
    internet.add("example.org", web)
    web.answers["/in?a=1"] = lambda answer: answer.send(201, b"made", x_word="yes")
    headers = {"X-Token": "abc", "Host": "elsewhere", "User-Agent": "mine"}
    response = internet.call("http://example.org/in?a=1", "POST", headers=headers, body=b"text")
    assert (response.status, response.body, response.headers["X-Word"]) == (201, b"made", "yes")
    (asked,) = web.asked
    assert (asked.command, asked.path, asked.body) == ("POST", "/in?a=1", b"text")
    assert [asked.headers.get_all(name) for name in ("host", "x-token", "user-agent")] == [
        ["example.org"],
        ["abc"],
        ["mine"],
    ]


@pytest.mark.parametrize(
    ("address", "host"),
    [("http://example.org:8080/", "example.org:8080"), (f"http://[{OTHER_PUBLIC}]/", f"[{OTHER_PUBLIC}]")],
)
def test_it_names_the_host_as_it_was_typed_when_it_calls(internet: Internet, web: Web, address: str, host: str) -> None:
    internet.add("example.org", web, port=8080)
    internet.servers[OTHER_PUBLIC, 80] = web.place
    internet.call(address)
    assert web.asked[0].headers["host"] == host


@pytest.fixture
def secure(web: Web, internet: Internet, tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """example.org over TLS: the file of its certificate, and the names that clients requested."""
    key = f"-----BEGIN PRIVATE KEY-----{KEY}\n-----END PRIVATE KEY-----\n"
    certificate = f"-----BEGIN CERTIFICATE-----{CERTIFICATE}\n-----END CERTIFICATE-----\n"
    both, public = tmp_path / "both.pem", tmp_path / "public.pem"
    both.write_text(key + certificate)
    public.write_text(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    names: list[str] = []
    context.sni_callback = lambda _connection, name, _context: names.append(name)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    internet.add("example.org", web, port=443)
    http._tls.cache_clear()
    yield public, names
    http._tls.cache_clear()


def test_it_speaks_tls_with_the_name_when_the_certificate_is_trusted(
    internet: Internet, secure: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, names = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert internet.call("https://example.org/").body == b"hello"
    assert (names, internet.tried) == (["example.org"], [(PUBLIC, 443)])


def test_it_sends_nothing_when_the_certificate_is_not_trusted(
    internet: Internet, secure: tuple[Path, list[str]], web: Web
) -> None:
    with pytest.raises(http.Unreachable, match="certificate"):
        internet.call("https://example.org/")
    assert web.asked == []


def test_it_sends_nothing_when_the_certificate_is_for_another_name(
    internet: Internet, secure: tuple[Path, list[str]], web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure[0]))
    internet.add("other.example", web, port=443)
    with pytest.raises(http.Unreachable, match="certificate"):
        internet.call("https://other.example/")
    assert web.asked == []


@pytest.mark.parametrize("header", [{"X-Key": "s3cret\r\nX-Other: 1"}, {"X-Key": "s3cret-\u20ac"}, {"X Key": "s3cret"}])
def test_it_repeats_no_secret_when_a_header_cannot_be_sent(internet: Internet, header: dict[str, str]) -> None:
    with pytest.raises(http.FetchError, match="HTTP does not allow") as caught:
        internet.call("/", headers=header)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("address", ["http://name:s3cret@example.org/", "http://name:s3cret@example.org:x/"])
def test_it_repeats_no_password_when_the_address_holds_one(internet: Internet, web: Web, address: str) -> None:
    internet.add("example.org", web)
    with pytest.raises(http.Refused) as caught:
        internet.call(address)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


# --- Redirects ------------------------------------------------------------------------------------------------------


def test_it_follows_redirects_when_each_hop_is_allowed(internet: Internet, web: Web) -> None:
    internet.add("example.org", web)
    internet.site.answers["/a/b"] = redirect(301, "../c")
    internet.site.answers["/c"] = redirect(302, "http://example.org/d")
    web.answers["/d"] = lambda answer: answer.send(308, b"x" * (LIMIT + 1), location="//example.org/")
    response = internet.call("/a/b")
    assert (response.body, response.url) == (b"hello", "http://example.org/")


def test_it_gives_up_when_redirects_do_not_end(internet: Internet) -> None:
    internet.site.answers["/loop"] = redirect(302, "/loop")
    with pytest.raises(http.FetchError, match="redirects more than 5 times"):
        internet.call("/loop")
    assert len(internet.site.asked) == 6


def test_it_sends_no_headers_to_another_origin_when_redirected(internet: Internet, web: Web) -> None:
    internet.add("example.org", web)
    internet.site.answers["/near"] = redirect(302, "/far")
    internet.site.answers["/far"] = redirect(302, "http://example.org/")
    internet.call("/near", headers={"X-Token": "abc"})
    assert [answer.headers["x-token"] for answer in internet.site.asked + web.asked] == ["abc", "abc", None]


@pytest.mark.parametrize("status", [307, 308])
def test_it_sends_no_body_to_another_origin_when_redirected(internet: Internet, web: Web, status: int) -> None:
    internet.add("example.org", web)
    internet.site.answers["/far"] = redirect(status, "http://example.org/")
    with pytest.raises(
        http.Refused, match=r"redirects the request body to example\.org: call the final address directly"
    ):
        internet.call("/far", "POST", body=b"canary")
    assert web.asked == []


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", ("GET", b"")),
        (302, "POST", ("GET", b"")),
        (303, "PUT", ("GET", b"")),
        (303, "HEAD", ("HEAD", b"")),
        (302, "PUT", ("PUT", b"text")),
        (307, "POST", ("POST", b"text")),
        (308, "POST", ("POST", b"text")),
    ],
)
def test_it_continues_as_a_browser_does_when_redirected(
    internet: Internet, status: int, method: str, then: tuple[str, bytes]
) -> None:
    internet.site.answers["/old"] = redirect(status, "/")
    internet.call("/old", method, body=None if method == "HEAD" else b"text")
    assert (internet.site.asked[1].command, internet.site.asked[1].body) == then


def test_it_returns_the_redirect_when_it_has_no_location(internet: Internet) -> None:
    internet.site.answers["/odd"] = lambda answer: answer.send(302)
    assert internet.call("/odd").status == 302


# --- Limits and deadlines -------------------------------------------------------------------------------------------


def test_it_reads_a_response_when_it_has_exactly_the_limit(internet: Internet) -> None:
    internet.site.answers["/full"] = lambda answer: answer.send(200, b"x" * LIMIT)
    assert len(internet.call("/full").body) == LIMIT


def test_it_gives_up_when_the_response_is_too_large(internet: Internet) -> None:
    internet.site.answers["/over"] = lambda answer: answer.send(200, b"x" * (LIMIT + 1))
    with pytest.raises(http.TooLarge, match="100,000 bytes"):
        internet.call("/over")


def test_it_gives_up_when_the_response_does_not_end(internet: Internet) -> None:
    internet.site.answers["/endless"] = lambda answer: answer.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_000)
    with pytest.raises(http.TooLarge):
        internet.call("/endless")


def test_it_reads_gzip_when_the_response_is_compressed(internet: Internet) -> None:
    internet.site.answers["/gzip"] = lambda answer: answer.send(200, gzip.compress(b"hello"), content_encoding="gzip")
    assert internet.call("/gzip").body == b"hello"


def test_it_stops_decompressing_at_the_limit_when_the_response_is_a_bomb(internet: Internet) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    assert len(bomb) < LIMIT
    internet.site.answers["/bomb"] = lambda answer: answer.send(200, bomb, content_encoding="gzip")
    tracemalloc.start()
    try:
        with pytest.raises(http.TooLarge):
            internet.call("/bomb")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_it_gives_up_when_data_after_the_compressed_response_does_not_end(internet: Internet) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello")
    internet.site.answers["/tail"] = lambda answer: answer.drip(start, b"x" * 10_000)
    with pytest.raises(http.TooLarge):
        internet.call("/tail")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate"])
def test_it_refuses_a_response_when_its_compression_is_not_gzip(internet: Internet, encoding: str) -> None:
    internet.site.answers["/"] = lambda answer: answer.send(200, b"hello", content_encoding=encoding)
    with pytest.raises(http.FetchError, match="only gzip"):
        internet.call("/")


@pytest.mark.parametrize("broken", [b"hello", gzip.compress(os.urandom(1000))[:-200]])
def test_it_fails_when_the_compressed_response_is_broken(internet: Internet, broken: bytes) -> None:
    internet.site.answers["/"] = lambda answer: answer.send(200, broken, content_encoding="gzip")
    with pytest.raises(http.Unreachable):
        internet.call("/")


@pytest.mark.parametrize(
    ("first", "drops"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_it_ends_at_the_deadline_when_the_response_drips(internet: Internet, first: bytes, drops: bytes) -> None:
    internet.site.answers["/slow"] = lambda answer: answer.drip(first, drops)
    assert_timed_out(lambda: internet.call("/slow", deadline=0.1))


def test_it_ends_at_the_deadline_when_each_redirect_is_slow(internet: Internet) -> None:
    def slow(answer: Answer) -> None:
        answer.server.closing.wait(0.06)
        answer.send(302, location="/slow")

    internet.site.answers["/slow"] = slow
    assert_timed_out(lambda: internet.call("/slow", deadline=0.1))


@pytest.mark.parametrize("body", [None, b"x" * 20_000_000])
def test_it_ends_at_the_deadline_when_the_server_neither_reads_nor_answers(
    internet: Internet, body: bytes | None
) -> None:
    internet.add("silent.example", internet.canary)
    assert_timed_out(lambda: internet.call("http://silent.example/", "POST", body=body, deadline=0.1))


def test_it_ends_at_the_deadline_when_the_server_starts_no_tls(internet: Internet) -> None:
    internet.add("silent.example", internet.canary, port=443)
    assert_timed_out(lambda: internet.call("https://silent.example/", deadline=0.1))


def test_it_ends_at_the_deadline_when_the_name_server_is_silent(internet: Internet) -> None:
    answered = threading.Event()

    def resolve(_host: str, _port: int) -> list[str]:
        answered.wait(DEADLINE)
        return [PUBLIC]

    client = http.Client(site_url(internet.site), False, resolve, internet.connect)
    request = http.Request("GET", client.locate("http://example.org/"), {}, None)
    assert_timed_out(lambda: client.send(request, 0.1, LIMIT))
    answered.set()
    assert internet.tried == []


def assert_timed_out(call: Callable[[], http.Response]) -> None:
    start = time.monotonic()
    with pytest.raises(http.TimedOut, match="no complete response in time"):
        call()
    assert 0.05 < time.monotonic() - start < DEADLINE / 5  # most of these answers would take DEADLINE


# --- Other errors ---------------------------------------------------------------------------------------------------


def test_it_reads_the_response_when_it_comes_before_the_request_is_sent(internet: Internet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_early() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer_early)
        thread.start()
        internet.names["example.org"] = [[PUBLIC]]
        internet.servers[PUBLIC, 80] = listener.getsockname()
        assert internet.call("http://example.org/", "POST", body=b"x" * 20_000_000).status == 413
        thread.join()


def test_it_says_so_when_a_name_cannot_be_resolved(internet: Internet) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = http.Client(site_url(internet.site), False, resolve, internet.connect)
    request = http.Request("GET", client.locate("http://nowhere.example/"), {}, None)
    with pytest.raises(http.Unreachable, match=r"nowhere\.example cannot be resolved"):
        client.send(request, DEADLINE, LIMIT)


def test_it_says_so_when_the_connection_is_refused(internet: Internet) -> None:
    internet.names["example.org"] = [[PUBLIC]]
    internet.servers[PUBLIC, 80] = None
    with pytest.raises(http.Unreachable, match=r"example\.org sent no valid response: Connection refused"):
        internet.call("http://example.org/")


@pytest.mark.parametrize(
    "reply", [b"", b"SSH-2.0-sample\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]
)
def test_it_says_that_the_response_is_invalid_when_it_is_not_http(internet: Internet, reply: bytes) -> None:
    def other(answer: Answer) -> None:
        answer.close_connection = True
        answer.wfile.write(reply)

    internet.site.answers["/"] = other
    with pytest.raises(http.Unreachable, match=r"sent no valid response: \w"):
        internet.call("/")


def test_it_names_both_statuses_but_no_query_when_the_status_is_another(internet: Internet) -> None:
    response = internet.call("/none?key=s3cret")
    with pytest.raises(http.UnexpectedStatus, match=r"/none answered 404 instead of 200"):
        response.require(200)
    assert response.require(404) is response


@pytest.mark.parametrize(
    "name", ["X-Remote-User", "x_remote_user", "X-Forwarded-For", "Forwarded", "x-forwarded-proto"]
)
def test_it_sends_this_site_no_header_of_its_proxy(internet, settings, name):
    settings.SSO_HEADER = "X-Remote-User"
    with pytest.raises(http.Refused, match="Only the proxy of this site may send it the header"):
        internet.call("/", headers={name: "root"})
    internet.add("far.example", internet.site)
    assert internet.call("http://far.example/", headers={name: "root"}).status
