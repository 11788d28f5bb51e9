"""Results: does a caller get one, or learn at once that none will come? And how are the members of a chord counted?"""

import base64
from collections import OrderedDict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import chord, current_app
from celery.app.backends import by_url
from celery.app.task import Context
from celery.exceptions import TimeoutError as NotYet
from celery.result import AsyncResult, GroupResult
from django.db import OperationalError, connection
from django_celery_results.models import ChordCounter, TaskResult

from jobs.local import embedded
from jobs.models import Run, State, Step
from jobs.worker import results
from jobs.worker.results import NoResultError, mended
from tests.app.tasks import add, add_up, answer, nothing
from tests.making import beside_event_loop, inside, make_run
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)


class Header:
    """The members of a chord, whose messages no worker takes, and its body in the queue of the broker."""

    def __init__(self, redis: Any, size: int) -> None:
        self.redis = redis
        self.members = [current_app.AsyncResult(f"member {number}") for number in range(size)]
        self.body = add_up.s().set(task_id="body")
        self.backend = current_app.backend
        self.begin()

    def begin(self) -> None:
        self.backend.apply_chord(("header", self.members), self.body)

    def end(self, number: int, *, kept: bool = True) -> None:
        """A member is done."""
        if kept:
            self.backend.store_result(f"member {number}", number, "SUCCESS")
        request = SimpleNamespace(id=f"member {number}", group="header", chord=dict(self.body))
        self.backend.on_chord_part_return(request, "SUCCESS", number)

    @property
    def sent(self) -> int:
        return self.redis.llen("celery")


@pytest.fixture
def header(redis) -> Header:
    return Header(redis, 3)


def test_it_sends_the_body_of_a_chord_when_its_last_member_is_done(header):
    for number in (0, 1):
        header.end(number)
    header.backend.set_chord_size("header", 3)  # Celery knows it when it sends the last one
    assert header.sent == 0
    header.end(2)
    assert (header.sent, ChordCounter.objects.count()) == (1, 0)


def test_it_takes_the_number_of_a_chord_s_members_once(header):
    header.backend.set_chord_size("header", 3)
    header.backend.set_chord_size("header", 2)
    header.backend.set_chord_size("a group at the end of a member", 2)
    assert ChordCounter.objects.get().count == 3


def test_it_waits_for_all_members_though_one_was_counted_twice(header):
    header.backend.set_chord_size("header", 3)
    for number in (0, 1, 1):
        header.end(number)
    assert (header.sent, ChordCounter.objects.get().count) == (0, 1)
    header.end(2)
    assert header.sent == 1


def test_it_begins_to_count_anew_when_a_chord_is_sent_again(header):
    header.backend.set_chord_size("header", 3)
    header.end(0)
    header.begin()
    header.backend.set_chord_size("header", 3)
    assert ChordCounter.objects.get().count == 3


def test_it_waits_for_each_task_of_a_group_in_a_chord(redis):
    fork = GroupResult("fork", [current_app.AsyncResult(f"member {number}") for number in (1, 2)])
    header = Header(redis, 1)
    header.members.append(fork)
    header.begin()
    header.backend.set_chord_size("header", 3)
    for number in (0, 1, 2):
        assert header.sent == 0
        header.end(number)
    assert header.sent == 1


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (lambda header: ChordCounter.objects.all().delete(), "the counter of its chord is gone"),
        (lambda header: header.end(0, kept=False), "1 of its tasks left no result: it expired (RESULT_EXPIRES)"),
    ],
)
def test_it_notes_why_the_body_of_a_chord_was_not_sent(header, lose, why):
    run = make_run(state=State.RUNNING)
    Step.objects.create(id="body", run=run, attempt=1, task="tests.add_up", state=Step.State.EXPECTED)
    header.backend.set_chord_size("header", 3)
    lose(header)
    with inside(run):
        header.end(1)
        header.end(2)
    assert header.sent == 0
    assert Step.objects.get().error_text.startswith(why)


def test_it_counts_a_chord_that_celery_sends(redis):
    chord([add.s(1), add.s(2)], add_up.s()).delay()
    assert ChordCounter.objects.get().count == 2


# --- Waiting ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["database", "redis"])
def backend(request, servers, redis) -> Iterator[Any]:
    """Where results are: the two kinds of backends, those that ask again and again and those that are told."""
    if request.param == "database":
        yield current_app.backend
        return
    kind, address = by_url(embedded.broker_url(servers.redis_url))
    backend = mended(kind(app=current_app, url=address))
    yield backend
    backend.result_consumer.stop()
    backend.result_consumer._pubsub = None  # or it connects again for each result that is garbage later
    backend.client.connection_pool.disconnect()


def test_it_keeps_failures_and_arguments_without_secrets(settings, backend, redis):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    error = ValueError("canary-1234", {"k": b"canary-1234", "password": "hunter2"}, "https://ada:hunter2@example.org")
    request = Context(task="tests.answer", args=["canary-1234"], kwargs={"password": "hunter2"})
    request.argsrepr, request.kwargsrepr = "('canary-1234',)", "{'password': 'hunter2'}"
    backend.mark_as_failure("it", error, traceback="with canary-1234", request=request, call_errbacks=False)
    kept = [str(row) for row in TaskResult.objects.values_list()]
    kept += [str(redis.get(key)) for key in redis.scan_iter("celery-task-meta-*")]
    assert len(kept) == 1
    assert "canary" not in kept[0]
    assert "hunter2" not in kept[0]
    assert base64.b64encode(b"canary-1234").decode() not in kept[0]
    assert backend.get_result("it").args[0] == "***"
    assert request.args == ["canary-1234"]


def waits_for(task_id: str, backend: Any) -> Any:
    """Celery's own class, which knows only the id. A wait that no test ends would be a hang."""
    return AsyncResult(task_id, app=current_app, backend=backend).get(timeout=DEADLINE)


def of_plain_task() -> str:
    return nothing.delay().id


def of_silent_run() -> str:
    return str(make_run().id)


def of_lost_run() -> str:
    return str(make_run(task="tests.answer", state=State.LOST, reason="its process died").id)


def of_failed_step() -> str:
    run = make_run(state=State.RUNNING)
    error = "Traceback\n  raise ValueError\nValueError: bad"
    return Step.objects.create(id="a", run=run, attempt=1, state=Step.State.FAILED, error_text=error).id


def of_forsaken_step() -> str:
    run = make_run(state=State.FAILED)
    return Step.objects.create(id="a", run=run, attempt=1, state=Step.State.EXPECTED, error_text="no counter").id


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (of_plain_task, "ignore_result=False"),
        (of_silent_run, "keep result"),
        (of_lost_run, r"This run ended as lost and left no result.* its process died$"),
        (of_failed_step, r"This step ended as failed and left no result.* ValueError: bad$"),
        (of_forsaken_step, r"This step ended as expected and left no result.* no counter$"),
    ],
)
def test_it_waits_for_no_result_that_never_comes(backend, make, why):
    task_id = make()
    with pytest.raises(NoResultError, match=why):
        waits_for(task_id, backend)


def test_it_says_so_beside_an_event_loop_too(backend):
    task_id = of_silent_run()
    with beside_event_loop(), pytest.raises(NoResultError, match="keep result"):
        waits_for(task_id, backend)


def test_it_keeps_a_result_beside_an_event_loop(backend):
    with beside_event_loop():
        backend.store_result("plain", 42, "SUCCESS")
        assert waits_for("plain", backend) == 42


def test_it_waits_as_celery_does_while_the_ledger_cannot_be_read(backend):
    def refuse(execute: Any, sql: str, *statement: Any) -> Any:
        if f'"{Run._meta.db_table}"' in sql:
            raise OperationalError("The ledger is unavailable.")
        return execute(sql, *statement)

    with connection.execute_wrapper(refuse), pytest.raises(NotYet):
        AsyncResult("sent by another process", app=current_app, backend=backend).get(timeout=0)


def test_it_waits_for_no_group_whose_tasks_keep_no_results(redis):
    with pytest.raises(NoResultError, match="ignore_result=False"):
        add.chunks([(1, 1), (2, 2)], 1)().get(timeout=DEADLINE)


def test_it_waits_for_a_result_that_may_come(backend):
    kept = make_run(task="tests.answer", state=State.RUNNING)
    for task_id in (str(kept.id), answer.delay().id, "sent by another process"):
        with pytest.raises(NotYet):
            AsyncResult(task_id, app=current_app, backend=backend).get(timeout=0)


def test_it_returns_a_result_that_is_kept_when_the_run_ends(backend):
    run = make_run(task="tests.answer", state=State.SUCCEEDED)
    backend.store_result(str(run.id), 42, "SUCCESS")
    assert waits_for(str(run.id), backend) == 42


def test_it_remembers_the_latest_tasks_without_a_result(monkeypatch, redis):
    monkeypatch.setattr(results, "REMEMBERED", 2)
    monkeypatch.setattr(results, "_silent", OrderedDict())
    _, second, third = (of_plain_task() for _ in range(3))
    assert list(results._silent) == [second, third]
    answer.apply_async(task_id=third)  # the same id, with a result this time
    assert third not in results._silent


def test_it_keeps_the_results_of_many_calls_if_the_task_keeps_its_own(redis):
    kept = [answer.starmap([()]), answer.map([()]), add.starmap([()]).set(ignore_result=False)]
    silent = [add.starmap([()]), add.map([()]), answer.starmap([()]).set(ignore_result=True)]
    assert [each.delay().ignored for each in kept] == [False] * 3
    assert [each.delay().ignored for each in silent] == [True] * 3
