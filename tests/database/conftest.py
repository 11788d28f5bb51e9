"""What tests of jobs are given besides: a real web server on loopback, and a clock of the database that they set."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.db import connection
from django.utils import timezone

from tests.web import Web, serving

SAMPLE = Path(str(finders.find("jobs/sample-feed.xml"))).read_bytes()

CLOCK = """
CREATE FUNCTION public.{name}() RETURNS timestamptz LANGUAGE sql AS
$$ SELECT current_setting('tests.now')::timestamptz $$
"""


@pytest.fixture
def web(settings: pytest.FixtureRequest) -> Iterator[Web]:
    with serving({"/livez": b"ok\n", "/feed": SAMPLE}) as server:
        settings.SITE_URL = server.address
        yield server


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """`at(moment)` sets the database's clock."""
    if connection.vendor == "sqlite":
        return lambda moment: monkeypatch.setattr(timezone, "now", lambda: moment)
    with connection.cursor() as cursor:
        for name in ("clock_timestamp", "statement_timestamp"):
            cursor.execute(CLOCK.format(name=name))
        cursor.execute("SET LOCAL search_path = public, pg_catalog")

    def set_clock(moment: datetime) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('tests.now', %s, true)", [moment.isoformat()])

    return set_clock
