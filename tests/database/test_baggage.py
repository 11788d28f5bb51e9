"""What travels with a run, from the code that starts it to each of its messages."""

import json
from collections.abc import Iterator

import pytest

from jobs.beat.claim import claim_due
from jobs.ledger import outbox, requests
from jobs.messages import baggage
from jobs.models import Run, State
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db
HEADER = "x-shop"


class Shop:
    """Provides a header while it is `open`."""

    def __init__(self) -> None:
        self.open = ""

    def headers(self) -> dict[str, str]:
        return {HEADER: self.open} if self.open else {}


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    provider = made.headers
    baggage.register(provider, HEADER)
    yield made
    baggage.unregister(provider)


def started(kind: str) -> Run:
    """A new run, started in one of the ways that there are."""
    if kind == "job":
        return requests.run_job("tests.nothing")
    schedule = make_schedule(headers='{"x-own": "1"}')
    if kind == "schedule":
        (run,) = requests.run_now([schedule], "ada").runs
        return run
    make_due(schedule)
    assert list(claim_due())
    return Run.objects.get(schedule=schedule)


@pytest.mark.parametrize("kind", ["job", "schedule", "claim"])
def test_a_run_carries_the_headers_of_the_moment_that_made_it_in_every_message(redis, shop, kind):
    shop.open = "monday"
    run = started(kind)
    shop.open = "tuesday"
    Run.objects.filter(id=run.id).update(state=State.WAITING)
    run.refresh_from_db()
    redis.flushdb()
    for _ in range(2):
        outbox.send([run])
    sent = [json.loads(item)["headers"] for item in redis.lrange("celery", 0, -1)]
    assert [headers[HEADER] for headers in sent] == ["monday"] * 2
    assert [headers.get("x-own") for headers in sent] == [None if kind == "job" else "1"] * 2


def test_a_repeated_run_carries_no_header_of_the_run_that_it_repeats(shop):
    options = {"headers": {HEADER: "monday", "x-own": "1"}, "time_limit": 5}
    run = make_run(task="tests.nothing", state=State.FAILED, options=options)
    (repeated,) = requests.retry([run], "ada").runs
    assert repeated.options == {"headers": {"x-own": "1"}, "time_limit": 5}
    shop.open = "tuesday"
    (repeated,) = requests.retry([run], "ada").runs
    assert repeated.options["headers"] == {HEADER: "tuesday", "x-own": "1"}


def test_a_run_without_headers_has_no_options_for_them(shop):
    assert requests.run_job("tests.nothing").options == {}
