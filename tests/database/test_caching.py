"""Values cached in Redis: how long are they served, until which invalidation, and what if Redis is unavailable?"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import pytest
from django.core.cache import cache
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template
from django.urls import reverse
from django.views.decorators.cache import cache_page

from jobs.cache.backend import NotJSONError
from jobs.cache.shared import Usage, cached, invalidate, usage
from jobs.models import FeedEntry, Run
from tests.making import make_schedule, run_now
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)


class Counter:
    """A cached function that returns its number of calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.remembered = cached("number", seconds=60)(self.compute)

    def compute(self) -> int:
        self.calls += 1
        return self.calls


@pytest.fixture
def counter() -> Counter:
    return Counter()


def test_it_computes_once_and_counts_hits_and_misses(counter, redis):
    assert usage("number") == Usage(hits=0, misses=0)
    assert usage("number").hit_rate is None
    assert [counter.remembered() for _ in range(4)] == [1, 1, 1, 1]
    assert usage("number") == Usage(hits=3, misses=1)
    assert usage("number").hit_rate == 0.75


def test_it_stores_values_in_redis_until_they_expire(counter, redis):
    counter.remembered()
    (key,) = redis.keys("punctual:1:value:number:*")
    assert redis.get(key) == b"1"
    assert 0 < redis.ttl(key) <= 60
    redis.delete(key)  # as Redis does when the value expires
    assert counter.remembered() == 2


def test_it_caches_none_like_any_other_value(redis):
    calls = []
    nothing = cached("nothing", seconds=60)(lambda: calls.append(1))
    assert [nothing(), nothing()] == [None, None]
    assert len(calls) == 1


def test_it_keeps_a_value_for_each_combination_of_arguments(redis):
    calls = []

    @cached("product", seconds=60)
    def product(a: int, b: int = 1, *more: int, note: str | None = None) -> int:
        calls.append((a, b))
        return a * b

    assert [product(2), product(2, 1), product(b=1, a=2), product(2, 1, note=None)] == [2] * 4
    assert [product(2, 3), product(3, 2), product(2, 3, 4), product(2, note="1")] == [6, 6, 6, 2]
    assert calls == [(2, 1), (2, 3), (3, 2), (2, 3), (2, 1)]
    assert usage("product") == Usage(hits=3, misses=5)
    invalidate("product")
    assert [product(2), product(2, 3)] == [2, 6]
    assert len(calls) == 7


@pytest.mark.parametrize("inside", [False, True])
def test_it_refuses_an_argument_that_is_not_json(redis, inside):
    entry = FeedEntry.objects.create(feed="a", guid="a", title="a")
    title_of = cached("title", seconds=60)(lambda entry: entry.title)
    why = "part of the key. This cannot be cached: FeedEntry is not JSON, pass a dict"
    with transaction.atomic() if inside else nullcontext(), pytest.raises(NotJSONError, match=why):
        title_of(entry)


def test_it_caches_a_page(redis, rf):
    views = []

    @cache_page(60)
    def page(request: HttpRequest) -> HttpResponse:
        views.append(request.path)
        return HttpResponse(f"page {len(views)} ü")

    first, again, other = (page(rf.get(path)) for path in ("/a", "/a", "/b"))
    assert (again.content, again["Content-Type"]) == (first.content, first["Content-Type"])
    assert again["Expires"] == first["Expires"]
    assert (again.content.decode(), other.content.decode(), views) == ("page 1 ü", "page 2 ü", ["/a", "/b"])


def test_it_caches_a_part_of_a_page(redis):
    part = Template("{% load cache %}{% cache 60 part %}<b>{{ number }}</b>{% endcache %}")
    assert [part.render(Context({"number": number})) for number in (1, 2)] == ["<b>1</b>"] * 2


def test_it_counts_every_call_of_many_threads(counter, redis):
    counter.remembered()

    def ask_often(_: int) -> None:
        for _ in range(50):
            counter.remembered()
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask_often, range(8)))
    assert usage("number") == Usage(hits=400, misses=1)


def test_it_computes_again_after_an_invalidation(counter, redis):
    counter.remembered()
    invalidate("number")
    assert [counter.remembered(), counter.remembered()] == [2, 2]


def test_it_never_serves_older_data_after_an_invalidation(redis):
    has_read, may_go_on = threading.Event(), threading.Event()

    @cached("titles", seconds=60)
    def titles() -> list[str]:
        found = list(FeedEntry.objects.values_list("title", flat=True))
        if threading.current_thread() is not threading.main_thread():
            has_read.set()
            assert may_go_on.wait(DEADLINE)
        return found

    def read_slowly() -> list[str]:
        try:
            return titles()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(read_slowly)
        assert has_read.wait(DEADLINE)
        FeedEntry.objects.create(feed="a", guid="a", title="new")
        invalidate("titles")
        may_go_on.set()
        assert slow.result(DEADLINE) == []
    assert titles() == ["new"]


def test_it_invalidates_once_for_a_transaction_that_asks_for_it_often(counter, redis):
    counter.remembered()
    before = redis.info("commandstats").get("cmdstat_del", {}).get("calls", 0)
    with transaction.atomic():
        for _ in range(100):
            invalidate("number")
    assert redis.info("commandstats")["cmdstat_del"]["calls"] - before == 1
    assert counter.remembered() == 2


def test_it_invalidates_after_a_savepoint_that_asked_for_it_was_rolled_back(counter, redis):
    counter.remembered()
    with transaction.atomic():
        with suppress(ZeroDivisionError), transaction.atomic():
            invalidate("number")
            raise ZeroDivisionError
        invalidate("number")
    assert counter.remembered() == 2
    with transaction.atomic(), transaction.atomic():
        invalidate("number")
        with suppress(ZeroDivisionError), transaction.atomic():
            invalidate("number")
            raise ZeroDivisionError
    assert counter.remembered() == 3
    with transaction.atomic():
        with transaction.atomic():
            invalidate("number")
        invalidate("number")
    assert counter.remembered() == 4
    with transaction.atomic(), suppress(ZeroDivisionError), transaction.atomic():
        with transaction.atomic():
            invalidate("number")
        invalidate("number")
        raise ZeroDivisionError
    assert counter.remembered() == 4


def test_it_invalidates_when_the_transaction_commits(counter, redis):
    counter.remembered()
    with transaction.atomic():
        invalidate("number")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(counter.remembered).result(DEADLINE) == 1
    assert counter.remembered() == 2


def test_it_invalidates_nothing_when_the_transaction_rolls_back(counter, redis):
    counter.remembered()
    with transaction.atomic():
        invalidate("number")
        transaction.set_rollback(True)
    assert counter.remembered() == 1


def test_it_caches_nothing_inside_a_transaction(counter, redis):
    with transaction.atomic():
        assert [counter.remembered(), counter.remembered()] == [1, 2]
    assert counter.remembered() == 3


def test_it_refuses_a_result_that_is_not_json_at_the_first_call(redis):
    entry = FeedEntry.objects.create(feed="a", guid="a", title="a")
    with pytest.raises(NotJSONError, match="FeedEntry is not JSON, pass a dict of plain values"):
        cached("entry", seconds=60)(lambda: entry)()


def test_it_computes_while_redis_is_frozen_and_waits_for_it_once(counter, frozen_broker, caplog):
    assert [counter.remembered(), counter.remembered()] == [1, 2]
    invalidate("number")
    assert usage("number") is None
    told = [record.getMessage() for record in caplog.records if record.name == "jobs.cache.shared"]
    assert len([line for line in told if line.startswith("The cache is unavailable")]) == 1
    assert told[-1] == "number is served until it expires: the cache is unavailable."


def test_it_reconnects_after_a_broken_connection(counter, redis):
    counter.remembered()
    redis.client_kill_filter(_type="normal", skipme=True)
    invalidate("number")
    redis.client_kill_filter(_type="normal", skipme=True)
    assert [counter.remembered(), counter.remembered()] == [2, 2]


def test_it_computes_while_redis_is_down(counter, settings, tmp_path):
    default = settings.CACHES["default"] | {"LOCATION": [f"unix://{tmp_path}/missing.sock?db=0"]}
    settings.CACHES = {"default": default}
    assert [counter.remembered(), counter.remembered()] == [1, 2]
    invalidate("number")
    assert usage("number") is None


def test_it_clears_the_cache_but_not_the_queue_of_the_broker(redis):
    run = run_now(make_schedule())
    cache.set_many({f"key{number}": number for number in range(2_500)})
    cache.set("other", 1, version=2)
    cache.clear()
    assert redis.keys("punctual:*") == []
    assert redis.llen("celery") == 1
    assert Run.objects.get().id == run.id


# --- Garbage under our keys -----------------------------------------------------------------------------------------

PICKLE = b"cposix\nsystem\n(S'touch %s'\ntR."
GARBAGE = [
    *(
        b"",
        b"\xff",
        b"nonsense",
        b"{",
        b"[" * 100_000,
        b"9" * 10_000,
        b"NaN",
        b"7",
        b'"text"',
        b"null",
        b"[1]",
        b'{"a": 1}',
    ),
    *(b"page ", b"page nonsense", b"page {}", b"page [1, 2]", b'page [999999, "", [], [], ""]'),
    *(b'page [200, [], [], [], ""]', b'page [200, "", [["a"]], [], ""]', b'page [200, "", [["a", "b\\nc"]], [], ""]'),
    *(b'page [200, "a\\nb", [], [], ""]', b'page [200, "", [], ["="], ""]', b'page [200, "", [], [7], ""]'),
    *(b'page [200, "", {}, [], ""]', b'page [200, "", [], [], 7]', b'page [200, "", [], [], "\\u1234"]'),
]


def fill(redis, garbage: object) -> int:
    """Put garbage under every key of the cache; returns their number."""
    keys = redis.keys("punctual:*")
    for key in keys:
        if isinstance(garbage, bytes):
            redis.set(key, garbage)
        else:
            redis.delete(key)
            redis.rpush(key, "a", "list")
    return len(keys)


@pytest.mark.parametrize("garbage", [*GARBAGE, list])
def test_it_answers_with_garbage_under_every_key(admin_client, redis, garbage):
    page = cache_page(60)(lambda _: HttpResponse("page"))
    request = HttpRequest()
    request.method, request.META["SERVER_NAME"], request.META["SERVER_PORT"] = "GET", "localhost", "80"
    address = reverse("statistics")

    def figures() -> dict[str, object]:
        answer = admin_client.get(address)
        assert answer.status_code == 200
        return answer.json()

    figures()
    assert page(request).content == b"page"
    assert fill(redis, garbage) > 4
    assert figures()["cache"]["hits"] >= 0
    assert usage("statistics")
    assert page(request).status_code == 200
    assert figures()["schedules"] == {"total": 0, "enabled": 0, "paused": 0, "flagged": 0}
    before = usage("statistics").hits
    figures()
    assert usage("statistics").hits == before + 1  # it has healed


def test_it_executes_nothing_that_is_stored(counter, redis, tmp_path):
    counter.remembered()
    fill(redis, PICKLE % str(tmp_path / "executed").encode())
    assert counter.remembered() == 2
    assert not list(tmp_path.iterdir())
