"""Fixtures for Punctual's own tests, besides those of the conftest.py above: servers that fail, and their addresses.

Its one rule: a test in tests/pure starts no server.
"""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import redis as redis_client
from django.db import connection

from tests.servers import MissingServerError, MortalBroker, Pooler, Servers
from tests.waiting import DEADLINE

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: commands would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    return f"database: {config.getoption('database')}"


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
    from jobs.ledger import sending  # late: models cannot be imported yet
    from jobs.messages.arguments import find_task

    find_task("")
    sending.LINGER = 0.0


@pytest.fixture(autouse=True)
def _nothing_to_send() -> Iterator[None]:
    """Let no test end before its requested runs are sent: the next test empties the tables and the broker."""
    yield
    for thread in threading.enumerate():
        if thread.name == "sending":
            thread.join(DEADLINE)


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
