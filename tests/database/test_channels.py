"""Does each kind of channel send what its receiver documents, and does it always return? To real servers on loopback.

Slack, Teams, Discord and PagerDuty have fixed hosts: `tests.gateway` stands for them.
"""

import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import standardwebhooks
import trustme

from jobs import http
from jobs.alerts import channels, outbound
from jobs.alerts.channels import ChannelError
from jobs.alerts.message import Item, Message, Ping
from jobs.logs import Formatter
from jobs.models import Channel
from jobs.rules import signatures
from jobs.rules.health import Health
from tests.gateway import Gateway, gateway
from tests.post import BREAK_OFF, Post
from tests.servers import ROOT
from tests.waiting import DEADLINE, eventually
from tests.web import Web, serving

NOW = datetime(2026, 12, 1, 2, 30, tzinfo=UTC)
KEY = "whsec_" + "a" * 32
ADA, BOB, CAT = (f"{name}@example.org" for name in ("ada", "bob", "cat"))
RUN = UUID(int=5)
CANARY = "canary0token0of0this0address"
EVIL = "@everyone <!channel> <@U123> <at>x</at> <b>\r\nBcc: eve@example.org"
MENTIONS = ("@everyone", "<!channel", "<@", "<at>", "&lt;!channel")
SHORT = 1.0  # seconds that a call to a server that hangs may take


def item(subject: str = "schedule:7", health: Health = Health.FAILING, **options: Any) -> Item:
    given: dict[str, Any] = {
        "name": "Nightly",
        "before": Health.OK,
        "sentence": "The server answered 500.",
        "expected": "It succeeds.",
        "at": NOW,
        "since": NOW - timedelta(hours=2),
        "link": "https://p.example/run",
    }
    return Item(subject=subject, health=health, **{**given, **options})


def message(*items: Item) -> Message:
    return Message(uuid4(), NOW, "Europe/Berlin", items or [item(log=["one", "two"])])


def channel(kind: str, **options: Any) -> Channel:
    return Channel(**{"name": f"{kind} {uuid4()}", "kind": kind, "url": "" if kind == "mail" else "ONE", **options})


def refusal(channel: Channel, message: Message | Ping, seconds: float = outbound.DEADLINE) -> ChannelError:
    with pytest.raises(ChannelError) as refused:
        channels.send(channel, message, seconds)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert CANARY not in sentence
    assert len(sentence) < 500
    return refused.value


# --- Addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["webhook", "ping", "apprise"])
def test_it_says_which_variable_is_missing(settings, kind):
    settings.CHANNEL_URLS, settings.CHANNEL_KEYS = {}, {}
    assert "give the NAME of a variable CHANNEL_URL_NAME" in channels.why_not(channel(kind, url=""))
    assert "CHANNEL_URL_ONE is not set: set it for beat" in channels.why_not(channel(kind))
    assert not refusal(channel(kind), message()).is_permanent


def test_it_says_why_an_address_does_not_suit(settings):
    settings.CHANNEL_KEYS = {}
    for kind, url, why in (
        ("webhook", f"slack://{CANARY}", "CHANNEL_URL_ONE cannot be used. This scheme, host or port"),
        ("ping", f"https://ada:{CANARY}@host.example/", "send them in a header instead"),
        ("webhook", f"https://host.example/{CANARY}", "CHANNEL_KEY_ONE is not set"),
        ("apprise", f"pigeon://{CANARY}", "CHANNEL_URL_ONE is no address that Apprise can use"),
        ("apprise", f"https://host.example/{CANARY}", "CHANNEL_URL_ONE is no address that Apprise can use"),
        ("apprise", "discord://short", "CHANNEL_URL_ONE is no address that Apprise can use"),
        ("apprise", f"discord://123456789/{CANARY}", ""),
        ("apprise", "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", ""),
    ):
        settings.CHANNEL_URLS = {"ONE": url}
        found = channels.why_not(channel(kind))
        assert (why in found) if why else not found, (url, found)
        assert CANARY not in found
        if why:
            assert why in str(refusal(channel(kind), message()))


def test_it_imports_apprise_only_when_it_is_used():
    code = (
        "import sys, django; django.setup();"
        "from jobs.alerts import channels, notices; from jobs.models import Channel;"
        "assert channels.why_not(Channel(kind='webhook', url='X'));"
        "assert 'apprise' not in sys.modules and 'requests' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr


# --- Mail -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def post(settings: Any) -> Iterator[Post]:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.DEFAULT_FROM_EMAIL = "Punctual <punctual@example.org>"
    with Post() as post:
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", post.port
        yield post


def test_it_sends_mail_to_each_address_once_also_when_it_is_repeated(post):
    mail, one = channel("mail", addresses=[ADA, BOB, "ada@EXAMPLE.org"]), message()
    channels.send(mail, one)
    channels.send(mail, one)
    assert post.given == [ADA, BOB]
    for address, letter in post.letters:
        assert (letter["To"], letter["Subject"]) == (address, "[Punctual] Nightly: failing")
        assert letter["Auto-Submitted"] == "auto-generated"
        assert letter["Message-ID"].startswith(f"<{one.id}.")
        assert letter["Message-ID"].endswith("@example.org>")
        text, html = (part.get_content() for part in letter.iter_parts())
        assert text.splitlines()[-3:] == ["The last lines of its log:", "  one", "  two"]
        assert "color-scheme" in html
        assert '<a href="https://p.example/run">' in html
    assert len({letter["Message-ID"] for _, letter in post.letters}) == 2


def test_it_gives_a_repeated_mail_the_same_id(post):
    one = message()
    ids = []
    for _ in range(2):
        channels.send(channel("mail", addresses=[ADA]), one)
        outbound._sent.clear()  # as in another process
        ids.append(post.letters[-1][1]["Message-ID"])
    assert ids[0] == ids[1]


def test_it_repeats_mail_for_the_deferred_addresses_only(post):
    mail, one = channel("mail", addresses=[ADA, BOB, CAT]), message()
    post.answers["RCPT", ADA] = "550 no such user"
    post.answers["RCPT", BOB] = "451 later"
    error = refusal(mail, one)
    assert "did not take the message for b…@example.org (451 later). 2 of 3 addresses did not get it" in str(error)
    assert not error.is_permanent
    del post.answers["RCPT", BOB]
    error = refusal(mail, one)
    assert "for a…@example.org (550 no such user). 1 of 3 addresses did not get it. Check the address." in str(error)
    assert error.is_permanent
    assert post.given == [CAT, BOB]


def test_it_says_so_when_the_mail_server_is_away_or_breaks_off(post, settings):
    post.answers["DATA", ADA] = BREAK_OFF
    assert "did not take the message for a…@example.org" in str(refusal(channel("mail", addresses=[ADA]), message()))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        settings.EMAIL_PORT = closed.getsockname()[1]
    assert "Check EMAIL_URL" in str(refusal(channel("mail", addresses=[ADA]), message()))


def test_it_sends_no_mail_outside_of_the_domains(post, settings):
    settings.MAIL_DOMAINS = ["example.org"]
    for addresses in ([ADA, "eve@elsewhere.example"], ["no address"], []):
        assert channels.why_not(channel("mail", addresses=addresses))
        refusal(channel("mail", addresses=addresses), message())
    assert not post.letters


def test_it_lets_no_name_add_a_header_or_markup_to_mail(post):
    channels.send(channel("mail", addresses=[ADA]), message(item(name=EVIL, sentence=EVIL, log=[EVIL])))
    ((_, letter),) = post.letters
    assert letter["Bcc"] is None
    assert "Bcc: eve@example.org: failing" in letter["Subject"]
    html = letter.get_body(("html",)).get_content()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


# --- Signed webhooks and pings ----------------------------------------------------------------------------------------


@pytest.fixture
def web(settings: Any) -> Iterator[Web]:
    places = ("", f"?rid={RUN}", f"/start?rid={RUN}", f"/fail?rid={RUN}", "/log")
    with serving({f"/{CANARY}{place}": b"ok" for place in places}) as web:
        settings.CHANNEL_URLS = {"ONE": f"{web.address}/{CANARY}"}
        settings.CHANNEL_KEYS = {"ONE": [KEY]}
        yield web


def test_it_signs_a_webhook_that_the_libraries_verify(web):
    one = message(item(name="Grüße"))
    channels.send(channel("webhook"), one)
    channels.send(channel("webhook"), one)
    for body, headers in zip(web.bodies, web.headers, strict=True):
        plain = {name.lower(): value for name, value in headers.items()}
        assert plain["content-type"] == "application/json"
        assert signatures.verify("standard", plain, body, [KEY], datetime.now(UTC)) == str(one.id)
        found = standardwebhooks.Webhook(KEY).verify(body, plain)
        assert (found["type"], found["version"], found["timestamp"]) == ("punctual.alerts", 1, "2026-12-01T02:30:00Z")
        assert found["data"]["text"] == "Grüße: failing"
        (alert,) = found["data"]["alerts"]
        assert (alert["subject"], alert["health"], alert["before"]) == ("schedule:7", "failing", "ok")
    assert len(web.bodies) == 2


def test_it_posts_the_fields_that_the_document_shows(web):
    document = (ROOT / "docs" / "alerts.md").read_text()
    example = json.loads(re.search(r"^    \{$.*?^    \}$", document, re.MULTILINE | re.DOTALL)[0])
    channels.send(channel("webhook"), message())
    found = json.loads(web.bodies[0])

    def fields(of: dict[str, Any]) -> list[set[str]]:
        return [set(of), set(of["data"]), set(of["data"]["alerts"][0])]

    assert fields(found) == fields(example)
    assert found["version"] == example["version"]


def test_it_follows_no_redirect(web):
    web.redirects |= {f"/{CANARY}{query}": f"{web.address}/elsewhere" for query in ("", f"?rid={RUN}")}
    for kind, one in (("webhook", message()), ("ping", Ping(uuid4(), RUN, "success"))):
        assert "redirects to another address (307): give the final address" in str(refusal(channel(kind), one))
    assert {asked.split()[1].partition("?")[0] for asked in web.asked} == {f"/{CANARY}"}


@pytest.mark.parametrize(
    ("status", "is_permanent"), [(400, False), (401, False), (404, False), (410, True), (422, True), (500, False)]
)
def test_it_says_what_the_receiver_answered(web, status, is_permanent):
    web.status = status
    error = refusal(channel("webhook"), message())
    assert f"127.0.0.1 answered {status}: " in str(error)
    assert error.is_permanent is is_permanent


def test_it_passes_on_how_long_the_receiver_asks_to_wait(settings):
    for value, seconds in (("120", 120.0), ("soon", None), ("9" * 20, None)):
        reply = f"HTTP/1.1 429 Slow\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(lambda peer, reply=reply: peer.sendall(reply)) as port:
            settings.CHANNEL_URLS, settings.CHANNEL_KEYS = {"ONE": f"http://127.0.0.1:{port}/"}, {"ONE": [KEY]}
            error = refusal(channel("webhook"), message())
        assert (error.retry_after, error.is_permanent) == (seconds, False)


def test_it_pings_the_events_of_a_run(web):
    for event in ("start", "success", "fail"):
        channels.send(channel("ping"), Ping(uuid4(), RUN, event, "é" * 10_000))
    channels.send(channel("ping"), Message.test("ada", NOW, "UTC"))
    places = [f"/{CANARY}{place}?rid={RUN}" for place in ("/start", "", "/fail")] + [f"/{CANARY}/log"]
    assert [asked.split()[1] for asked in web.asked] == places
    assert {len(body.decode()) for body in web.bodies[:3]} == {5_000}
    assert web.bodies[3] == b"ada asked for this test message."
    assert refusal(channel("ping"), message()).is_permanent
    assert refusal(channel("webhook"), Ping(uuid4(), RUN, "start")).is_permanent


def test_it_pings_that_beat_is_alive(web, settings):
    settings.BEAT_PING_URL = ""
    channels.ping_alive()
    assert not web.asked
    settings.BEAT_PING_URL = f"{web.address}/{CANARY}"
    channels.ping_alive()
    assert web.asked == [f"GET /{CANARY}"]
    web.status = 500
    with pytest.raises(ChannelError, match="answered 500"):
        channels.ping_alive()


def test_it_posts_over_https_to_hosts_that_it_can_verify(tmp_path, settings, monkeypatch):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings.CHANNEL_KEYS = {"ONE": [KEY]}
    with serving({"/": b"ok"}) as web:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        web.socket = context.wrap_socket(web.socket, server_side=True)
        settings.CHANNEL_URLS = {"ONE": f"https://localhost:{web.server_address[1]}/"}
        http._tls.cache_clear()
        assert "CERTIFICATE_VERIFY_FAILED" in str(refusal(channel("webhook"), message()))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        http._tls.cache_clear()
        try:
            channels.send(channel("webhook"), message())
        finally:
            http._tls.cache_clear()
        assert len(web.asked) == 1


# --- Servers that do not answer ---------------------------------------------------------------------------------------


@contextmanager
def answering(speak: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that speaks to each client, and holds its connection until the end of the test. Yields its port."""
    over, threads = threading.Event(), []
    server = socket.create_server(("127.0.0.1", 0))

    def hold(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            speak(peer)
            over.wait(DEADLINE)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=hold, args=[server.accept()[0]]))
                threads[-1].start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for each in [thread, *threads]:
            each.join(DEADLINE)


def drip(peer: socket.socket, kind: str, over: threading.Event) -> None:
    """Send a byte now and then, so that no single wait is long."""
    peer.sendall(b"220-" if kind == "mail" else b"HTTP/1.1 200 OK\r\nX-A: ")
    while not over.wait(0.05):
        peer.sendall(b"a")


@pytest.mark.parametrize("kind", ["webhook", "ping", "mail", "apprise"])
@pytest.mark.parametrize("speaks", ["nothing", "slowly"])
def test_it_returns_at_the_deadline_when_the_server_does_not_answer(settings, kind, speaks):
    over = threading.Event()
    with answering(lambda peer: drip(peer, kind, over) if speaks == "slowly" else None) as port:
        settings.CHANNEL_KEYS = {"ONE": [KEY]}
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", port
        settings.CHANNEL_URLS = {"ONE": f"{'json' if kind == 'apprise' else 'http'}://127.0.0.1:{port}/{CANARY}"}
        one = Ping(uuid4(), uuid4(), "start") if kind == "ping" else message()
        error = refusal(channel(kind, addresses=[ADA] if kind == "mail" else []), one, SHORT)
        assert "complete answer within 1 s" in str(error)
        assert not error.is_permanent
        over.set()
    eventually(lambda: not +outbound._left)


def test_it_leaves_a_few_calls_alone_and_then_sends_nothing_until_they_end():
    hanging, name = threading.Event(), f"channel {uuid4()}"
    for _ in range(outbound.MOST_LEFT):
        with pytest.raises(ChannelError, match="no complete answer"):
            outbound.in_thread(name, lambda: bool(hanging.wait(DEADLINE)) and None, 0.01)
    done: list[str] = []
    with pytest.raises(ChannelError, match="earlier messages still hang"):
        outbound.in_thread(name, lambda: done.append("too early"), DEADLINE)
    outbound.in_thread("another channel", lambda: done.append("another"), DEADLINE)
    hanging.set()
    eventually(lambda: not outbound._left[name])
    outbound.in_thread(name, lambda: done.append("again"), DEADLINE)
    assert done == ["another", "again"]


def test_it_makes_a_sentence_of_any_error():
    def fail() -> None:
        raise RuntimeError("two\nlines")

    with pytest.raises(ChannelError, match=r"^It failed: RuntimeError: two lines$"):
        outbound.in_thread("it", fail, DEADLINE)


# --- Services that Apprise knows --------------------------------------------------------------------------------------

SERVICES = {
    "hooks.slack.com": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
    "discord.com": f"discord://1234567890123/{CANARY}",
    "prod-1.westeurope.logic.azure.com": f"workflows://prod-1.westeurope.logic.azure.com:443/643e69f83c8944/{CANARY}",
    "ntfy.sh": "ntfy://alerts-of-punctual",
    "events.pagerduty.com": f"pagerduty://{CANARY}@apikey123456",
}


@pytest.fixture
def internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Gateway]:
    with gateway(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def console() -> Iterator[StringIO]:
    """What a process logs with LOG_LEVEL=DEBUG."""
    stream, root = StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    handler.setFormatter(Formatter())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def posted(internet: Gateway, settings: Any, host: str, one: Message) -> list[Any]:
    """What the service at that host was sent."""
    settings.CHANNEL_URLS = {"ONE": SERVICES[host]}
    internet.asked.clear()
    channels.send(channel("apprise"), one)
    assert {asked.host for asked in internet.asked} == {host}
    return [json.loads(asked.body) for asked in internet.asked]


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []


def test_it_sends_slack_an_attachment_with_a_colour(internet, settings):
    (body,) = posted(internet, settings, "hooks.slack.com", message())
    (attachment,) = body["attachments"]
    assert internet.asked[0].path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    assert attachment["title"] == "[Punctual] Nightly: failing"
    assert attachment["text"].startswith("The server answered 500.\n\nExpected: It succeeds.\n")
    assert attachment["text"].endswith("one\n  two")
    (well,) = posted(internet, settings, "hooks.slack.com", message(item(health=Health.OK, before=Health.FAILING)))
    assert well["attachments"][0]["color"] != attachment["color"]


def test_it_sends_discord_its_content(internet, settings):
    many = message(*[item(f"schedule:{number}", sentence="x" * 900) for number in range(100)])
    for one in (message(), many):
        (body,) = posted(internet, settings, "discord.com", one)
        assert body["content"].startswith("[Punctual] ")
        assert len(body["content"]) <= 2_000
    assert "100 failing:" in body["content"]


def test_it_sends_teams_an_adaptive_card(internet, settings):
    (body,) = posted(internet, settings, "prod-1.westeurope.logic.azure.com", message())
    (attachment,) = body["attachments"]
    assert body["type"] == "message"
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert attachment["content"]["type"] == "AdaptiveCard"
    title, text = (block["text"] for block in attachment["content"]["body"])
    assert title == "[Punctual] Nightly: failing"
    assert text.startswith("The server answered 500")


def test_it_sends_ntfy_a_title_and_a_message(internet, settings):
    (body,) = posted(internet, settings, "ntfy.sh", message())
    assert (body["topic"], body["title"]) == ("alerts-of-punctual", "[Punctual] Nightly: failing")
    assert body["message"].startswith("The server answered 500.")


@pytest.mark.parametrize("host", [host for host in SERVICES if host != "events.pagerduty.com"])
def test_no_name_mentions_a_person(internet, settings, host):
    for one in (message(item(name=EVIL, sentence=EVIL, log=[EVIL])), message(item(name=EVIL), item(name=EVIL))):
        (body,) = posted(internet, settings, host, one)
        for text in texts(body):
            assert not any(mention in text for mention in MENTIONS), text
        assert "entities" not in json.dumps(body)


def test_it_opens_an_incident_for_each_subject_and_resolves_it(internet, settings):
    settings.SITE_URL = "https://punctual.example"
    bad, late = item(log=["the log"]), item("schedule:8", Health.LATE)
    first, second = posted(internet, settings, "events.pagerduty.com", message(late, bad))
    assert [each["event_action"] for each in (first, second)] == ["trigger", "trigger"]
    assert [each["dedup_key"] for each in (first, second)] == [
        "punctual/punctual.example/schedule:7",
        "punctual/punctual.example/schedule:8",
    ]
    assert [each["payload"]["severity"] for each in (first, second)] == ["critical", "warning"]
    assert first["payload"]["summary"] == "Nightly: failing. The server answered 500."
    assert first["payload"]["source"] == "punctual.example"
    assert first["payload"]["custom_details"]["log"] == "the log"
    assert first["links"] == [{"href": "https://p.example/run"}]
    well = item(health=Health.OK, before=Health.FAILING)
    (resolved,) = posted(internet, settings, "events.pagerduty.com", message(well))
    assert resolved == {
        "routing_key": CANARY,
        "event_action": "resolve",
        "dedup_key": "punctual/punctual.example/schedule:7",
    }
    (test,) = posted(internet, settings, "events.pagerduty.com", Message.test("ada", NOW, "UTC"))
    assert (test["event_action"], test["payload"]["severity"]) == ("trigger", "info")


def test_it_goes_on_with_the_next_incident_when_a_message_is_repeated(internet, settings):
    settings.CHANNEL_URLS = {"ONE": SERVICES["events.pagerduty.com"]}
    one = message(*[item(f"schedule:{number}") for number in range(103)])
    internet.answers["events.pagerduty.com"] = lambda asked: asked.reply(429 if len(internet.asked) == 3 else 202)
    error = refusal(channel("apprise"), one)
    assert "Pager Duty did not take the message" in str(error)
    channels.send(channel("apprise"), one)
    seen = [json.loads(asked.body)["dedup_key"].rpartition("/")[2] for asked in internet.asked]
    assert seen == [f"schedule:{number}" for number in (0, 1, 2, *range(2, 100))] + ["more"]
    assert json.loads(internet.asked[-1].body)["payload"]["summary"] == "3 more alerts are not shown one by one."


@pytest.mark.parametrize("host", SERVICES)
def test_it_says_why_a_service_took_nothing_and_never_its_address(internet, settings, host, console):
    settings.CHANNEL_URLS = {"ONE": SERVICES[host]}
    for status, is_permanent in ((403, False), (410, True), (500, False), (302, False)):
        internet.answers[host] = lambda asked, status=status: asked.reply(status, Location="https://elsewhere.example/")
        error = refusal(channel("apprise"), message())
        assert "did not take the message: " in str(error)
        assert f"error={status}" in str(error)
        assert error.is_permanent is is_permanent
    assert {asked.host for asked in internet.asked} == {host}
    logged = console.getvalue()
    assert "POST " in logged  # by urllib3
    assert not any(word in logged for word in ("apprise", CANARY, "TIiajkdnlazkcOXrIdevi7FQ", "T1JJ3T3L2"))


def test_it_does_not_sleep_for_as_long_as_a_service_says(internet, settings):
    settings.CHANNEL_URLS = {"ONE": SERVICES["discord.com"]}
    far = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4102444800"}
    internet.answers["discord.com"] = lambda asked: asked.reply(429, **far)
    assert "error=429" in str(refusal(channel("apprise"), message()))


def test_it_sends_through_many_channels_at_once_and_mixes_up_no_reasons(internet, settings):
    hosts = [host for host in SERVICES for _ in range(4)]
    settings.CHANNEL_URLS = {host: SERVICES[host] for host in SERVICES}
    for host, status in (("discord.com", 403), ("ntfy.sh", 404)):
        internet.answers[host] = lambda asked, status=status: asked.reply(status)
    together = threading.Barrier(len(hosts))

    def send(host: str) -> str:
        together.wait(DEADLINE)
        try:
            channels.send(channel("apprise", url=host), message(), DEADLINE)
        except ChannelError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(send, hosts))
    for host, answer in zip(hosts, answers, strict=True):
        expected = {"discord.com": "error=403", "ntfy.sh": "error=404"}.get(host, "")
        assert (expected in answer) if expected else not answer, (host, answer)
