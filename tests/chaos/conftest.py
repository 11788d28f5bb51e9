"""The fixtures of the storms."""

from collections.abc import Iterator

import pytest

from tests.chaos.storm import Storm
from tests.live.conftest import Processes


@pytest.fixture
def processes(servers, environment) -> Iterator[Processes]:
    processes = Processes(servers.workspace, environment)
    try:
        yield processes
    finally:
        processes.close()


@pytest.fixture
def storm(processes, redis, tmp_path) -> Storm:
    if processes.environment["DATABASE_URL"].startswith("sqlite"):
        pytest.skip("A storm needs several writers at a time; SQLite has one.")
    return Storm(processes, redis, tmp_path / "executed")
