"""How fast does a request start a job? `POST /api/runs` beside a plain Django view that calls `delay()`.

Both sites run in gunicorn, with two processes of eight threads, beside a worker (and beat, for Punctual). Each job
writes the id of its task into a file. So a round also counts the jobs that did not run, or ran twice.
"""

import base64
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

import httpx
from django.contrib.auth.models import User
from standardwebhooks import Webhook

from benchmarks.figures import OURS, Figures
from benchmarks.ground import Ground, wait_for
from jobs.models import ApiToken, Run, WebhookSource
from jobs.models.tokens import MOST_RATE
from tests.servers import MortalBroker

PLAIN = "delay() in a view"
JOB = "tests.note"
CLIENTS = 8
WARMING = 40  # requests that are not measured: threads of the site connect, and its processes load the jobs
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True, slots=True)
class Size:
    single: int
    many: int
    cut_off: int  # requests while the broker is away


FULL = Size(single=300, many=1_000, cut_off=200)
QUICK = Size(single=10, many=40, cut_off=8)


@dataclass(frozen=True, slots=True)
class Site:
    """A site, the processes that execute its jobs, and one request.

    `post` starts a job that writes a line into a file; returns that line, or None if the site refuses the request.
    """

    who: str
    server: Sequence[str]
    celery: Sequence[Sequence[str]]
    post: Callable[[httpx.Client, Path], str | None]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Round:
    """The answers to the requests of one round, in seconds, and the ids of the accepted ones."""

    times: list[float] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Sequence["Round"]) -> "Round":
        return cls(*(list(chain.from_iterable(getattr(part, name) for part in parts)) for name in cls.__slots__))


class Requests:
    """The benchmarks of requests: each method measures one round."""

    def __init__(self, ground: Ground, size: Size, figures: Figures) -> None:
        self._ground, self._size, self._figures = ground, size, figures
        self._sites = (_ours(), _plain())

    def requests(self) -> None:
        """The time of a single request, each sent when the job of the previous one has run."""
        for site in self._sites:
            with self._running(site) as ran, self._client() as client:
                alone = Round.of([self._send(site, client, ran, 1, wait=True) for _ in range(self._size.single)])
            self._note_times(f"a request, beside idle processes ({self._size.single:,})", site, alone)

    def clients(self) -> None:
        """The requests per second of eight clients, and what became of their jobs."""
        number = self._size.many
        for site in self._sites:
            with self._running(site) as ran:
                began = time.perf_counter()
                answered = self._send_together(site, ran, number)
                took = time.perf_counter() - began
                what = f"{number:,} requests by {CLIENTS} clients"
                self._figures.note(what, site.who, "per second", len(answered.times) / took)
                self._note_times(what, site, answered)
                self._note_jobs(what, site, answered, ran)

    def hooks(self) -> None:
        """The time of a single signed webhook, each sent when the job of the previous one has run."""
        site = _hooked(self._ran)
        with self._running(site) as ran, self._client() as client:
            alone = Round.of([self._send(site, client, ran, 1, wait=True) for _ in range(self._size.single)])
        self._note_times(f"a webhook, beside idle processes ({self._size.single:,})", site, alone)

    def cut_off(self) -> None:
        """The same while the broker is away; then it comes back."""
        for site in self._sites:
            what = f"{self._size.cut_off:,} requests by {CLIENTS} clients while the broker is away"
            broker = MortalBroker(self._ground.workspace)
            try:
                with self._serving(site, broker.address) as ran:
                    self._send_together(site, ran, WARMING)
                    answered = self._send_together(site, ran, self._size.cut_off)
                    self._note_times(what, site, answered)
                    broker.start()
                    with self._ground.running(*site.celery, env=broker.address):
                        self._note_jobs(what, site, answered, ran)
            finally:
                broker.kill()

    def _note_times(self, what: str, site: Site, answered: Round) -> None:
        hundredths = quantiles(answered.times, n=100, method="inclusive")
        self._figures.note(what, site.who, "p50, ms", median(answered.times) * 1000)
        self._figures.note(what, site.who, "p95, ms", hundredths[94] * 1000)
        self._figures.note(what, site.who, "p99, ms", hundredths[98] * 1000)

    def _note_jobs(self, what: str, site: Site, answered: Round, ran: Path) -> None:
        """Wait until every accepted job has run, and count."""
        wanted = set(answered.accepted)
        wait_for(lambda: wanted <= set(_lines(ran)))
        times = Counter(_lines(ran))
        self._figures.note(what, site.who, "accepted", len(wanted))
        self._figures.note(what, site.who, "ran", sum(name in wanted for name in times))
        self._figures.note(what, site.who, "ran twice", sum(number > 1 for number in times.values()))

    @contextmanager
    def _running(self, site: Site) -> Iterator[Path]:
        """The site and its workers. Yields the file in which the jobs write their ids."""
        with self._serving(site) as ran, self._ground.running(*site.celery):
            warmed = self._send_together(site, ran, WARMING)
            wait_for(lambda: set(warmed.accepted) <= set(_lines(ran)))
            ran.unlink()
            yield ran

    @contextmanager
    def _serving(self, site: Site, env: dict[str, str] | None = None) -> Iterator[Path]:
        self._ground.broker.flushdb()
        Run.objects.all().delete()
        self._socket.unlink(missing_ok=True)
        ran = self._ran
        ran.unlink(missing_ok=True)
        command = ["gunicorn", *site.server, f"--bind=unix:{self._socket}"]
        with self._ground.running(command, env={**site.env, **(env or {})}):
            with self._client() as client:
                wait_for(lambda: _answers(client))
            yield ran

    def _send_together(self, site: Site, ran: Path, number: int) -> Round:
        def send(share: int) -> Round:
            with self._client() as client:
                return self._send(site, client, ran, share)

        with ThreadPoolExecutor(CLIENTS) as pool:
            return Round.of(list(pool.map(send, [number // CLIENTS] * CLIENTS)))

    def _send(self, site: Site, client: httpx.Client, ran: Path, number: int, *, wait: bool = False) -> Round:
        sent = Round()
        for _ in range(number):
            start = time.perf_counter()
            line = site.post(client, ran)
            sent.times.append(time.perf_counter() - start)
            sent.accepted += [line] if line else []
            if wait:
                wait_for(lambda: set(sent.accepted) <= set(_lines(ran)))
        return sent

    @property
    def _ran(self) -> Path:
        return self._ground.workspace.folder / "ran"

    @property
    def _socket(self) -> Path:
        return self._ground.workspace.folder / "site.sock"

    def _client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self._socket))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=60)


def _ours() -> Site:
    celery = ["celery", "-A", "project"]
    commands = ([*celery, "worker", "--concurrency=2", *QUIET], [*celery, "beat"])
    post = partial(_post, "/api/runs", {"Authorization": f"Bearer {_token()}"})
    return Site(OURS, ["project.wsgi"], commands, post)


def _plain() -> Site:
    worker = ["celery", "-A", "benchmarks.bare", "worker", "--concurrency=2", *QUIET]
    stock = ["--worker-class=gthread", "--logger-class=gunicorn.glogging.Logger"]
    return Site(PLAIN, ["benchmarks.bare_site", *stock], [worker], partial(_post, "/start", {}))


def _hooked(ran: Path) -> Site:
    """Webhooks instead of requests: the same processes, with a key."""
    key = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    columns = {"keys": "BENCH", "job": "tests.note_webhook", "arguments": {"path": str(ran)}}
    WebhookSource.objects.update_or_create(name="bench", defaults=columns)
    return replace(_ours(), post=partial(_post_signed, key), env={"WEBHOOK_KEYS_BENCH": key})


def _post_signed(key: str, client: httpx.Client, _: Path) -> str | None:
    event, now = f"event-{time.monotonic_ns()}", datetime.now(UTC)
    body = json.dumps({"number": 1})
    headers = {"webhook-id": event, "webhook-timestamp": str(int(now.timestamp()))}
    headers |= {"webhook-signature": Webhook(key).sign(event, now, body), "content-type": "application/json"}
    answer = client.post("/hooks/bench", headers=headers, content=body)
    return f"bench:{event}:1" if answer.is_success else None


def _post(path: str, headers: dict[str, str], client: httpx.Client, ran: Path) -> str | None:
    answer = client.post(path, headers=headers, json={"job": JOB, "arguments": {"path": str(ran)}})
    return str(answer.json()["id"]) if answer.is_success else None


def _token() -> str:
    """A token that may start jobs, with a rate that the benchmark does not reach."""
    user = User.objects.create_superuser(f"bench {time.monotonic_ns()}")
    _, secret = ApiToken.objects.issue(user.username, user, ["jobs.add_run"], "bench", rate=MOST_RATE)
    return secret


def _answers(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return bool(client.get("/livez").status_code)
    return False


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
