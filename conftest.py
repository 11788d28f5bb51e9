"""Fixtures for the tests of all apps: a real database made by the migrations, a real and empty Redis, and due runs.

If a server is missing, the tests that need it are skipped, with one sentence. The run ends instead if REQUIRE_SERVERS
is set (CI) or the server is that of TEST_DATABASE_URL or TEST_REDIS_URL.
"""

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import redis as redis_client
from django.conf import settings as django_settings
from django.db import connections

from tests.servers import SERVERS, MissingServerError, Servers


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
def django_db_setup(django_db_setup: None) -> Iterator[None]:  # noqa: ARG001 - pytest-django's own, extended
    """At the end, close the connection also where code has replaced the one that pytest-django knows."""
    yield
    connections.close_all()


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
def run_due(db: None) -> Callable[[datetime], Any]:  # noqa: ARG001 - the test gets a database
    """`run_due(at)`: execute the runs that are due at a moment, and return them."""
    from jobs import testing  # late: the environment must be set first

    return testing.run_due
