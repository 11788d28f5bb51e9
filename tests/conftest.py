"""Fixtures for all tests: a real database made by the migrations, a real and empty Redis, and their addresses.

Its one rule: a test in tests/pure starts no server. If a server is missing, the tests that need it are skipped, with
one sentence. The run ends instead if REQUIRE_SERVERS is set (CI) or the server is that of TEST_DATABASE_URL or
TEST_REDIS_URL.
"""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
import redis as redis_client
from django.conf import settings as django_settings
from django.db import connection

from tests.servers import SERVERS, MissingServerError, MortalBroker, Pooler, Servers


def pytest_report_header(config: pytest.Config) -> str:
    return f"database: {config.getoption('database')}"


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Servers:
    """The servers of this run. Each starts when a test first needs a database or `redis`."""
    return pytestconfig.stash[SERVERS]


def _have(server: Callable[[], None], variable: str) -> None:
    try:
        server()
    except MissingServerError as missing:
        if os.environ.get("REQUIRE_SERVERS") or variable in os.environ:
            pytest.exit(str(missing), returncode=1)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def django_db_modify_db_settings(servers: Servers) -> None:
    """pytest-django's hook before it creates the test database."""
    _have(servers.have_database, "TEST_DATABASE_URL")
    if servers.database == "sqlite":
        # A file: other threads and processes cannot see a database in memory.
        name = str(servers.workspace.folder / "test_punctual.sqlite3")
        django_settings.DATABASES["default"].setdefault("TEST", {})["NAME"] = name


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> Iterator[redis_client.Redis]:
    _have(servers.have_redis, "TEST_REDIS_URL")
    with redis_client.Redis.from_url(servers.redis_url) as client:
        yield client


@pytest.fixture
def redis(redis_server: redis_client.Redis) -> redis_client.Redis:
    """A client of the run's Redis, whose database is empty when the test begins."""
    redis_server.flushdb()
    return redis_server


@pytest.fixture
def frozen_broker(redis: redis_client.Redis) -> Iterator[None]:
    """The run's Redis accepts connections but does not answer until the test ends."""
    from jobs.cache import shared  # late: the environment must be set first

    process = redis.info("server")["process_id"]
    try:
        os.kill(process, signal.SIGSTOP)
    except (ProcessLookupError, PermissionError):
        pytest.skip("This run did not start the Redis of TEST_REDIS_URL and cannot stop it.")
    yield
    os.kill(process, signal.SIGCONT)
    shared._back_at = 0.0  # otherwise the next tests would find it unavailable


@pytest.fixture
def mortal_broker(servers: Servers) -> Iterator[MortalBroker]:
    """A broker that the test may `kill()` and `start()` again. It runs when the test begins."""
    broker = MortalBroker(servers.workspace)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="session", autouse=True)
def _tasks() -> None:
    """Load all tasks first: Celery configures logging again when it loads them, which would cut off caplog."""
    from jobs.messages.arguments import find_task  # late: models cannot be imported yet

    find_task("")


@pytest.fixture(autouse=True)
def _empty_broker(request: pytest.FixtureRequest) -> None:
    # Any test that uses the ledger may publish messages. The next test must not find them.
    if request.path.parent.name in {"database", "live"}:
        request.getfixturevalue("redis")


@pytest.fixture
def environment(transactional_db: None, redis: redis_client.Redis, servers: Servers) -> dict[str, str]:
    """The environment for processes that use the database and the broker of this test."""
    return {**os.environ, "DATABASE_URL": servers.database_url_for(connection.settings_dict["NAME"])}


@pytest.fixture
def pooled(environment: dict[str, str], servers: Servers) -> Iterator[dict[str, str]]:
    """The variables of processes that reach this test's database through PgBouncer, which runs as long as the test."""
    if servers.database == "sqlite":
        pytest.skip("SQLite has no connections to pool.")
    pooler = Pooler(servers)
    try:
        pooler.start()
    except MissingServerError as missing:
        pytest.skip(str(missing))
    yield {"DATABASE_URL": pooler.url_for(connection.settings_dict["NAME"])}
    pooler.stop()
