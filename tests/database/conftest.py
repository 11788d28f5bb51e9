"""What tests of jobs are given besides: a real web server on loopback, which they take for this site."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders

from tests.web import Web, serving

SAMPLE = Path(str(finders.find("jobs/sample-feed.xml"))).read_bytes()


@pytest.fixture
def web(settings: pytest.FixtureRequest) -> Iterator[Web]:
    with serving({"/healthz": b"ok\n", "/feed": SAMPLE}) as server:
        settings.SITE_URL = server.address
        yield server
