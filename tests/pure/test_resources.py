"""Resources of one process: loaded once, kept within bounds, dropped on invalidation, closed after the last use."""

import gc
import itertools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.cache import resources
from jobs.cache.resources import Resource, Tally, before_first_use, size_of
from tests.forking import forks, in_child
from tests.waiting import DEADLINE


@pytest.fixture(autouse=True)
def _names_of_this_test_only(monkeypatch):
    for name, value in (("registry", {}), ("_hook", None), ("_unused", None)):
        monkeypatch.setattr(resources, name, value)


class Loads(list):
    """A `load` that records its keys and returns 1, 2, 3 and so on."""

    def __call__(self, *key: object) -> int:
        self.append(key)
        return len(self)


@dataclass
class Handle:
    """A value that must be closed. It records the threads that closed it."""

    closed: list[int] = field(default_factory=list)

    def close(self) -> None:
        self.closed.append(threading.get_ident())


class AskedFor:
    """A key that sets `by_all` after so many threads found no value: each looks for an entry, then for a load."""

    def __init__(self, threads: int) -> None:
        self._looks_left = 2 * threads
        self.by_all = threading.Event()

    def __hash__(self) -> int:
        self._looks_left -= 1
        if not self._looks_left:
            self.by_all.set()
        return 7


def together(threads: int, call: Callable[[], object]) -> list[object]:
    """The results or errors of `call` in so many concurrent threads."""

    def outcome() -> object:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the test inspects the error
            return error

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(outcome) for _ in range(threads)]
        return [future.result(DEADLINE) for future in futures]


def test_it_loads_once_for_all_callers():
    resource = Resource("numbers", Loads())
    assert [resource.get(), resource.get(), resource.get()] == [1, 1, 1]
    assert resource.tally() == Tally(entries=1, bytes=size_of(1), hits=2, misses=1)


def test_it_keeps_a_value_for_each_key():
    resource = Resource("numbers", load := Loads())
    assert [resource.get("a"), resource.get("b", 2), resource.get("a")] == [1, 2, 1]
    assert load == [("a",), ("b", 2)]


def test_it_keeps_no_entry_of_a_failed_load():
    def load() -> int:
        loads.append(1)
        if len(loads) == 1:
            raise OSError("away")
        return len(loads)

    loads: list[int] = []
    resource = Resource("numbers", load)
    with pytest.raises(OSError, match="away"):
        resource.get()
    assert resource.tally() == Tally(entries=0, bytes=0, hits=0, misses=1)
    assert resource.get() == 2


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_it_drops_the_least_recently_used_when_there_are_too_many_entries():
    resource = Resource("numbers", load := Loads(), limit=2)
    for key in ("a", "b", "a", "c", "a"):
        resource.get(key)
    assert load == [("a",), ("b",), ("c",)]
    assert resource.get("b") == 4


def test_it_drops_the_least_recently_used_when_there_are_too_many_bytes():
    resource = Resource("texts", lambda letter, times: letter * times, limit_bytes=10, size=len)
    for key in (("a", 4), ("b", 4), ("a", 4), ("c", 6)):
        resource.get(*key)
    assert resource.tally() == Tally(entries=2, bytes=10, hits=1, misses=3)
    resource.get("a", 4)
    assert resource.tally().hits == 2


def test_it_returns_a_value_too_large_to_keep_and_drops_nothing_for_it(caplog):
    resource = Resource("texts", lambda times: "x" * times, limit_bytes=10, size=len)
    assert [len(resource.get(times)) for times in (3, 11, 11, 3)] == [3, 11, 11, 3]
    assert resource.tally() == Tally(entries=1, bytes=3, hits=1, misses=3)
    assert "texts: 11 bytes exceed its limit_bytes" in caplog.text


def test_it_loads_an_expired_value_again():
    now = [0.0]

    def load() -> float:
        now[0] += 5  # the data are as old as the start of the load
        return now[0]

    resource = Resource("times", load, ttl=60, clock=lambda: now[0])
    assert resource.get() == 5
    now[0] = 59.9
    assert resource.get() == 5
    now[0] = 60
    assert resource.get() == 65
    assert resource.tally().entries == 1


def test_it_drops_expired_values_when_it_keeps_a_new_one():
    now = [0.0]
    resource = Resource("numbers", Loads(), ttl=60, clock=lambda: now[0])
    resource.get("old")
    now[0] = 60
    resource.get("new")
    assert resource.tally().entries == 1


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (b"x" * 1000, 1000, 1100),
        (memoryview(b"x" * 1000), 1000, 1000),
        (["x" * 1000] * 1000, 9_000, 10_000),
        ({n: str(n) * 100 for n in range(100, 200)}, 35_000, 50_000),
        ([SimpleNamespace(text="x" * 1000 + str(n)) for n in range(10)], 10_000, 20_000),
        ((Decimal(1), {frozenset({"x" * 1000})}), 1000, 3000),
        ({str(n): (n, n / 2, f"{n:0100}") for n in range(50_000, 100_000)}, 16_000_000, 19_000_000),
    ],
    ids=["bytes", "buffer", "same again", "dict", "objects", "nested", "large"],
)
def test_it_estimates_the_memory_of_a_value(value, least, most):
    assert least <= size_of(value) <= most


def test_it_counts_a_value_that_contains_itself_once():
    ring: list[object] = ["x" * 1000]
    ring.append(ring)
    assert 1000 <= size_of(ring) <= 1300


# --- threads --------------------------------------------------------------------------------------------------------


def test_it_loads_once_for_many_concurrent_threads():
    def load(key: AskedFor) -> int:
        loads.append(1)
        key.by_all.wait(DEADLINE)
        return len(loads)

    loads: list[int] = []
    resource, key = Resource("numbers", load), AskedFor(8)
    assert together(8, lambda: resource.get(key)) == [1] * 8
    assert (resource.tally().hits, resource.tally().misses) == (7, 1)


def test_it_raises_the_error_of_a_load_in_every_waiting_thread():
    def load(key: AskedFor) -> int:
        loads.append(1)
        key.by_all.wait(DEADLINE)
        if len(loads) == 1:
            raise OSError("away")
        return len(loads)

    loads: list[int] = []
    resource, key = Resource("numbers", load), AskedFor(4)
    assert [str(outcome) for outcome in together(4, lambda: resource.get(key))] == ["away"] * 4
    assert resource.get(key) == 2


def test_it_loads_in_the_next_thread_when_the_loading_job_reaches_its_soft_time_limit():
    def load(key: AskedFor) -> int:
        loads.append(1)
        key.by_all.wait(DEADLINE)
        if len(loads) == 1:
            raise SoftTimeLimitExceeded
        return len(loads)

    loads: list[int] = []
    resource, key = Resource("numbers", load), AskedFor(3)
    outcomes = together(3, lambda: resource.get(key))
    assert sorted(map(str, outcomes)) == ["2", "2", "SoftTimeLimitExceeded()"]


def test_it_loads_different_keys_at_the_same_time():
    both = threading.Barrier(2)  # breaks when only one arrives
    resource = Resource("numbers", lambda _: both.wait(DEADLINE))
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(resource.get, "ab")) == [0, 1]


def test_it_never_lends_a_closed_value_when_threads_evict_each_others_entries():
    def use() -> None:
        start.wait(DEADLINE)
        for number in range(300):
            with resource.use(number % 3) as handle:
                assert not handle.closed
            if number % 7 == 0:
                resource.drop()

    def load(_: int) -> Handle:
        handle = Handle()
        made.append(handle)  # `made[-1]` could be that of another thread
        return handle

    made: list[Handle] = []
    start = threading.Barrier(4)
    resource = Resource("handles", load, limit=1, close=Handle.close)
    assert together(4, use) == [None] * 4
    resource.drop()
    assert {len(handle.closed) for handle in made} == {1}
    assert resource.tally().entries == resource.tally().bytes == 0


# --- dropping and closing -------------------------------------------------------------------------------------------


def test_it_loads_again_after_an_invalidation():
    resource = Resource("numbers", Loads())
    resource.get()
    resources.registry["numbers"].drop()
    assert resource.get() == 2


def test_it_does_not_keep_a_value_that_was_invalidated_during_its_load():
    def load() -> int:
        loads.append(1)
        if len(loads) == 1:
            resources.registry["numbers"].drop()
        return len(loads)

    loads: list[int] = []
    resource = Resource("numbers", load)
    assert [resource.get(), resource.get(), resource.get()] == [1, 2, 2]


def test_it_does_not_wait_for_a_load_that_began_before_an_invalidation():
    first, second = threading.Event(), threading.Event()

    def load() -> str:
        if first.is_set():
            return "new"
        first.set()
        second.wait(DEADLINE)
        return "old"

    resource = Resource("texts", load)
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(resource.get)
        first.wait(DEADLINE)
        resource.drop()
        assert resource.get() == "new"
        second.set()
        assert old.result(DEADLINE) == "old"
    assert resource.get() == "new"


def test_it_closes_dropped_values():
    resource = Resource("handles", lambda _: Handle(), limit=1, close=Handle.close)
    with resource.use("a") as first:
        pass
    with resource.use("b") as second:
        assert first.closed
    resource.drop()
    assert second.closed


def test_it_does_not_close_a_value_in_use():
    resource = Resource("handles", lambda _: Handle(), limit=1, close=Handle.close)
    with resource.use("a") as first:
        with resource.use("a"), resource.use("b"):
            resource.drop()
        assert not first.closed
    assert len(first.closed) == 1


def test_it_closes_once_when_the_last_two_users_end_together():
    class Raced(Resource):
        """The second user ends between the first user's end and its check for remaining users."""

        def _close_unused(self, entries):
            while rivals:
                rivals.pop()()
            super()._close_unused(entries)

    rivals: list[Callable[[], object]] = []
    resource = Raced("handles", Handle, close=Handle.close)
    with ExitStack() as first, ExitStack() as second:
        handle = first.enter_context(resource.use())
        second.enter_context(resource.use())
        resource.drop()
        rivals.append(second.close)
        first.close()
        assert len(handle.closed) == 1


def test_it_closes_a_value_too_large_to_keep_after_its_use():
    resource = Resource("handles", Handle, limit_bytes=0, size=lambda _: 1, close=Handle.close)
    with resource.use() as handle:
        assert not handle.closed
    assert handle.closed


def test_it_releases_a_value_when_the_job_fails():
    resource = Resource("handles", Handle, close=Handle.close)
    with pytest.raises(OSError, match="away"), resource.use() as handle:
        raise OSError("away")
    resource.drop()
    assert handle.closed


def test_it_logs_an_error_of_close_and_fails_no_job(caplog):
    def close(handle: Handle) -> None:
        raise OSError("broken pipe")

    Resource("handles", Handle, close=close)
    with resources.registry["handles"].use():
        resources.registry["handles"].drop()
    assert "handles: a dropped value could not be closed." in caplog.text
    assert "broken pipe" in caplog.text


def test_it_refuses_get_for_values_that_must_be_closed():
    resource = Resource("handles", Handle, close=Handle.close)
    with pytest.raises(TypeError, match=r"with handles\.use\(\) as value"):
        resource.get()


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "a/b", "a" * 101])
def test_it_refuses_an_invalid_name(name):
    with pytest.raises(ValueError, match="cannot be a resource's name"):
        Resource(name, Loads())


def test_it_refuses_a_name_twice():
    first = Resource("numbers", Loads())
    with pytest.raises(ValueError, match="There is already a resource called numbers"):
        Resource("numbers", Loads())
    assert resources.registry["numbers"] is first


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"limit": 0}, "must be 1 entry or more"), ({"preload": True, "close": print}, "remove preload")],
)
def test_it_refuses_options_under_which_nothing_could_be_kept(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Resource("numbers", Loads(), **options)
    assert "numbers" not in resources.registry


# --- processes ------------------------------------------------------------------------------------------------------


@forks
def test_it_shares_values_loaded_before_a_fork_with_the_child():
    resource = Resource("numbers", load := Loads())
    resource.get()
    assert in_child(lambda: [resource.get(), len(load), resource.tally().hits, resource.tally().misses]) == [1, 1, 1, 0]


@forks
def test_it_leaves_values_that_must_be_closed_to_the_parent():
    def use_in_child() -> list[object]:
        with resource.use() as handle:
            mine = handle is not parents
        resource.drop()
        gc.collect()
        return [mine, len(handle.closed), len(parents.closed), resource.tally().entries]

    resource = Resource("handles", Handle, close=Handle.close)
    with resource.use() as parents:
        pass
    assert in_child(use_in_child) == [True, 1, 0, 0]
    assert resource.tally().entries == 1


@forks
def test_it_loads_in_a_child_that_was_forked_during_a_load():
    begun, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def load() -> int:
        if os.getpid() == parent:
            begun.set()
            go_on.wait(DEADLINE)
        return os.getpid()

    resource = Resource("numbers", load)
    with ThreadPoolExecutor(1) as pool:
        parents = pool.submit(resource.get)
        begun.wait(DEADLINE)
        assert in_child(lambda: resource.get() == os.getpid()) is True
        go_on.set()
        assert parents.result(DEADLINE) == parent


@forks
def test_it_is_never_forked_during_its_bookkeeping():
    def keep_books() -> None:
        with resources._lock:
            busy.set()
            never.wait(0.2)  # seconds; a fork that does not wait for the lock would happen now

    busy, never = threading.Event(), threading.Event()
    resource = Resource("numbers", Loads())
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(keep_books)
        busy.wait(DEADLINE)
        assert in_child(resource.get) == 1
        kept.result(DEADLINE)


@forks
def test_it_calls_the_hook_before_the_first_use_in_each_process():
    calls: list[int] = []
    resource = Resource("numbers", lambda: len(calls))
    before_first_use(lambda: calls.append(os.getpid()))
    assert (resource.get(), resource.get(), len(calls)) == (1, 1, 1)
    assert in_child(lambda: [resource.get(), resource.get(), len(calls)]) == [1, 1, 2]


def test_it_closes_a_value_whose_size_cannot_be_measured():
    closed = []
    odd = Resource("odd", lambda: "value", close=closed.append, size=lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError), odd.use():
        pass
    assert closed == ["value"]


@pytest.mark.parametrize(
    "options",
    [{"ttl": timedelta(hours=1)}, {"ttl": math.nan}, {"ttl": -1}, {"limit_bytes": -1}, {"limit": 1.5}, {"limit": None}],
)
def test_it_refuses_invalid_numbers(options):
    with pytest.raises(ValueError, match="of options is"):
        Resource("options", lambda: 1, **options)


def test_it_samples_few_of_many_nested_objects():
    looked = itertools.count()

    class Number(int):
        def __sizeof__(self) -> int:
            next(looked)
            return 32

    table = {number: {other: (Number(other), 1.0) for other in range(1_500)} for number in range(300)}
    size_of(table)
    assert next(looked) < 30_000
