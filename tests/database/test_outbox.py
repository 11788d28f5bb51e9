"""Runs become ordinary Celery messages, and beat sends them again until a worker starts them."""

import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from celery import current_app
from celery.signals import after_task_publish, before_task_publish
from django.db import connection

from jobs.ledger import outbox
from jobs.messages.arguments import find_task
from jobs.messages.dispatch import BrokerUnavailableError
from jobs.messages.envelope import ATTEMPT_HEADER
from jobs.models import Node, Policy, Run, State, Step, database_now
from jobs.rules.policies import FIRST_PATIENCE
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


def messages(redis, queue="celery") -> list[dict]:
    """The messages in a queue, the oldest first."""
    return [json.loads(item) for item in reversed(redis.lrange(queue, 0, -1))]


def test_it_publishes_an_ordinary_message_with_the_run_s_id_and_the_attempt(redis):
    run = make_run(make_schedule(), task="tests.nothing", args=[1], kwargs={"a": "ü"}, attempt=3)
    outbox.send([run])
    (message,) = messages(redis)
    headers = message["headers"]
    assert (headers["id"], headers["task"], headers[ATTEMPT_HEADER]) == (str(run.id), "tests.nothing", 3)
    assert (headers["eta"], headers["expires"]) == (None, None)
    body = json.loads(b64decode(message["body"]))
    assert body[:2] == [[1], {"a": "ü"}]


def test_it_marks_a_sent_run_as_queued_until_its_patience_ends(redis):
    run = make_run()
    before = database_now() - SECOND / 1000  # SQLite counts in milliseconds
    outbox.send([run])
    run.refresh_from_db()
    after = database_now()
    assert (run.state, run.sends) == (State.QUEUED, 1)
    assert before <= run.queued_at <= after
    assert before <= run.not_before - FIRST_PATIENCE <= after


def test_it_leaves_a_run_waiting_that_reached_its_next_attempt_during_the_sending(redis):
    run = make_run(make_schedule(), attempt=1)
    Run.objects.filter(id=run.id).update(attempt=2)  # a worker was faster than the record of the sending
    outbox.send([run])
    run.refresh_from_db()
    assert (run.state, run.attempt, run.sends) == (State.WAITING, 2, 0)


def test_it_sends_queue_limits_and_headers_along(redis):
    options = {"headers": {"x-team": "billing"}, "time_limit": 9, "ignore_result": False, "retries": 2}
    outbox.send([make_run(queue="slow", options=options)])
    (message,) = messages(redis, "slow")
    headers = message["headers"]
    assert (headers["timelimit"], headers["ignore_result"], headers["retries"]) == ([9, None], False, 2)
    assert headers["x-team"] == "billing"


def comparable(message: dict) -> dict:
    """A message without its delivery tag, which differs between any two."""
    message["properties"].pop("delivery_tag")
    return message


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"args": [1, "ü", None], "kwargs": {"a": [1.5, {"b": []}]}},
        {"queue": "slow", "priority": 3, "options": {"time_limit": 9, "soft_time_limit": 5, "shadow": "other name"}},
        {"options": {"routing_key": "r.k", "headers": {"x-team": "billing"}, "retries": 2}},
        {"task": "tests.answer", "options": {"ignore_result": True}},
        {"task": "celery.backend_cleanup"},
        {"args": ["x" * 3000]},
    ],
)
def test_it_publishes_the_same_messages_as_celery_itself(redis, columns):
    runs = [make_run(**{"args": [], **columns}) for _ in range(2)]
    outbox.send(runs)
    queue = columns.get("queue", "celery")
    key = f"{queue}\x06\x163" if "priority" in columns else queue
    sent = messages(redis, key)
    redis.flushdb()
    for run in runs:
        options = {**run.options, **{name: columns[name] for name in ("queue", "priority") if name in columns}}
        options["headers"] = {**options.get("headers", {}), ATTEMPT_HEADER: 1}
        find_task(run.task).apply_async(run.args, run.kwargs, task_id=str(run.id), **options)
    assert [comparable(message) for message in sent] == [comparable(message) for message in messages(redis, key)]
    assert len(sent) == 2


def test_it_lets_celery_build_each_message_if_a_publish_signal_has_receivers(redis):
    seen = []

    def listener(headers, **_):
        headers["x-trace"] = f"of {headers['id']}"
        seen.append(headers["id"])

    runs = [make_run() for _ in range(3)]
    before_task_publish.connect(listener)
    try:
        outbox.send(runs)
    finally:
        before_task_publish.disconnect(listener)
    assert seen == [str(run.id) for run in runs]
    assert [message["headers"]["x-trace"] for message in messages(redis)] == [f"of {run.id}" for run in runs]


def test_it_calls_a_task_s_own_apply_async_for_each_message(redis):
    runs = [make_run(task="tests.signed") for _ in range(2)]
    outbox.send(runs)
    assert [message["headers"]["x-signed"] for message in messages(redis)] == [str(run.id) for run in runs]


def test_it_calls_the_project_s_router_for_each_message(redis, monkeypatch):
    def route(name, args, *_, **__):
        return {"queue": f"tenant-{args[0]}"}

    monkeypatch.setattr(current_app.amqp.router, "routes", (route,))
    outbox.send([make_run(args=[tenant]) for tenant in (1, 2)])
    assert [len(messages(redis, f"tenant-{tenant}")) for tenant in (1, 2)] == [1, 1]


def test_it_calls_a_task_s_own_shadow_name_for_each_message(redis):
    outbox.send([make_run(task="tests.shadowed", args=[customer]) for customer in (1, 2)])
    assert [message["headers"]["shadow"] for message in messages(redis)] == ["shadowed for 1", "shadowed for 2"]


def test_it_leaves_a_run_running_that_a_worker_started_before_it_was_marked_as_queued(redis):
    run = make_run()
    Run.objects.filter(id=run.id).update(state=State.RUNNING, lease_until=database_now())
    outbox.send([run])
    run.refresh_from_db()
    assert run.state == State.RUNNING


def test_it_fails_a_run_whose_message_cannot_be_made_and_sends_the_others(redis):
    bad, good = make_run(task="tests.gone"), make_run()
    outbox.send([bad, good])
    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.state, good.state) == (State.FAILED, State.QUEUED)
    assert "could not be sent" in bad.reason
    assert len(messages(redis)) == 1


@pytest.mark.parametrize("options", [{"serializer": "msgpack"}, {"serializer": 7}, {"compression": "no such"}])
def test_it_sends_the_other_runs_if_one_cannot_be_encoded(redis, options):
    bad, good = make_run(options=options), make_run()
    outbox.send([bad, good])
    assert [Run.objects.get(id=run.id).state for run in (bad, good)] == [State.FAILED, State.QUEUED]
    assert len(messages(redis)) == 1


@pytest.mark.django_db(transaction=True)
def test_it_pauses_a_failing_schedule_also_if_its_runs_cannot_be_sent(redis):
    schedule = make_schedule(policy={"pause_after_failures": 2})
    for _ in range(2):
        outbox.send([make_run(schedule, task="tests.gone", due_at=database_now())])
    assert Policy.objects.paused().exists()


def test_it_sends_runs_again_that_were_not_sent_or_not_started(redis):
    now = database_now()
    stale = make_run(state=State.QUEUED, sends=1, not_before=now - SECOND)
    waiting = make_run(not_before=now - SECOND)
    later = make_run(not_before=now + timedelta(hours=1))
    make_run(state=State.RUNNING, not_before=now - SECOND)
    make_run(state=State.SUCCEEDED, not_before=now - SECOND)
    assert outbox.send_waiting() == 2
    assert {message["headers"]["id"] for message in messages(redis)} == {str(stale.id), str(waiting.id)}
    stale.refresh_from_db()
    assert (stale.state, stale.sends) == (State.QUEUED, 2)
    assert stale.not_before - database_now() > FIRST_PATIENCE
    later.refresh_from_db()
    assert later.state == State.WAITING
    assert outbox.send_waiting() == 0


def test_it_keeps_runs_waiting_while_the_broker_is_frozen(frozen_broker):
    run = make_run()
    with pytest.raises(BrokerUnavailableError, match="runs wait in the ledger"):
        outbox.send_waiting()
    run.refresh_from_db()
    assert (run.state, run.sends) == (State.WAITING, 0)
    assert database_now() < run.not_before + outbox.SENDING


@pytest.mark.django_db(transaction=True)
def test_it_sends_each_run_once_with_many_senders_at_once(redis):
    for _ in range(40):
        make_run()
    barrier = threading.Barrier(4)

    def sender() -> None:
        barrier.wait()
        outbox.send_waiting()
        connection.close()

    threads = [threading.Thread(target=sender) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [message["headers"]["id"] for message in messages(redis)]
    assert len(ids) == len(set(ids)) == 40
    assert Run.objects.filter(state=State.QUEUED, sends=1).count() == 40


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OddError(), "OddError: <exception str() failed>"), (ValueError("password=hunter2"), "ValueError: password=***")],
)
def test_it_sends_the_other_runs_if_the_router_of_one_raises_any_error(redis, monkeypatch, error, reason):
    def route(name: str, *_: object, **__: object) -> None:
        if name == "tests.note":
            raise error

    monkeypatch.setattr(current_app.amqp.router, "routes", (route,))
    bad, good = make_run(task="tests.note", args=["x"]), make_run()
    outbox.send([bad, good])
    bad.refresh_from_db()
    assert (bad.state, Run.objects.get(id=good.id).state) == (State.FAILED, State.QUEUED)
    assert bad.reason.startswith("could not be sent: ")
    assert bad.reason.endswith(reason)


# --- Messages that the broker refuses ---------------------------------------------------------------------------------


def wrong_type(redis) -> str:
    """The name of a queue whose key is not a list."""
    redis.set("other", "text")
    return "other"


@pytest.mark.parametrize("place", [0, 3, 6])
def test_it_fails_a_run_whose_queue_is_another_key_and_sends_the_others(redis, place):
    runs = [make_run() for _ in range(6)]
    runs.insert(place, make_run(queue=wrong_type(redis)))
    outbox.send(runs)
    states = [Run.objects.get(id=run.id).state for run in runs]
    assert states == [State.FAILED if number == place else State.QUEUED for number in range(7)]
    assert {message["headers"]["id"] for message in messages(redis)} == {str(r.id) for r in runs} - {
        str(runs[place].id)
    }
    assert reason_of(runs[place]) == (
        "could not be sent: the broker refuses its message for queue `other`:"
        " WRONGTYPE Operation against a key holding the wrong kind of value"
    )


def test_it_sends_few_messages_again_to_find_the_one_that_the_broker_refuses(redis):
    outbox.send([make_run(queue="late"), make_run()])  # kombu declares each queue once
    redis.flushdb()
    redis.set("late", "text")
    runs = [make_run() for _ in range(99)]
    culprit = make_run(queue="late")
    redis.config_resetstat()
    outbox.send([*runs[:40], culprit, *runs[40:]])
    assert Run.objects.get(id=culprit.id).state == State.FAILED
    assert {message["headers"]["id"] for message in messages(redis)} == {str(run.id) for run in runs}
    assert redis.info("commandstats")["cmdstat_lpush"]["calls"] <= 3 * len(runs)


@pytest.mark.parametrize("rule", ["-@write", "resetkeys ~celery* ~_kombu*"])
def test_it_tells_a_queue_that_it_may_not_use_from_a_broker_that_it_may_not_use(redis, rule):
    runs = [make_run(), make_run(queue="forbidden"), make_run()]
    try:
        redis.execute_command("ACL", "SETUSER", "default", *rule.split())
        if rule == "-@write":
            with pytest.raises(BrokerUnavailableError, match="no permissions to run the"):
                outbox.send(runs)
        else:
            outbox.send(runs)
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "allkeys", "+@all")
    failed = Run.objects.filter(state=State.FAILED)
    assert [run.queue for run in failed] == ([] if rule == "-@write" else ["forbidden"])
    assert Run.objects.filter(state=State.QUEUED).count() == (0 if rule == "-@write" else 2)


@pytest.mark.parametrize("fault", ["OOM", "READONLY"])
def test_it_keeps_all_runs_waiting_if_the_broker_takes_no_message(redis, fault):
    runs = [make_run(), make_run(queue=wrong_type(redis)), make_run()]
    with ailing(redis, fault), pytest.raises(BrokerUnavailableError, match=r"maxmemory|read only") as raised:
        outbox.send(runs)
    assert "LPUSH" not in str(raised.value)
    assert {run.state for run in Run.objects.all()} == {State.WAITING}
    outbox.send(runs)
    assert [run.state for run in Run.objects.order_by("state")] == [State.FAILED, State.QUEUED, State.QUEUED]


@contextmanager
def ailing(redis, fault: str) -> Iterator[None]:
    """The server refuses all messages, with this reply."""
    if fault == "OOM":
        redis.config_set("maxmemory", "1")
    else:
        redis.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        redis.config_set("maxmemory", "0")
        redis.replicaof("no", "one")


def test_it_keeps_runs_waiting_if_the_broker_fails_while_it_looks_for_a_refused_one(redis):
    runs = [make_run(), make_run(), make_run(queue=wrong_type(redis))]
    published = []

    def listener(headers, **_):
        published.append(headers["id"])
        if len(published) == 5:  # of the first half, after a batch of three
            redis.config_set("maxmemory", "1")

    before_task_publish.connect(listener)
    try:
        with pytest.raises(BrokerUnavailableError):
            outbox.send(runs)
    finally:
        before_task_publish.disconnect(listener)
        redis.config_set("maxmemory", "0")
    assert {run.state for run in Run.objects.all()} == {State.WAITING}
    outbox.send(runs)
    assert sorted(run.state for run in Run.objects.all()) == [State.FAILED, State.QUEUED, State.QUEUED]


@pytest.mark.parametrize("place", [{"queue": "unacked"}, {"options": {"queue": "unacked"}}, {"queue": "a:b"}])
def test_it_fails_a_run_whose_queue_is_refused_and_sends_the_others(redis, place):
    bad, good = make_run(**place), make_run()  # as SQL may write it
    outbox.send([bad, good])
    assert "queue" in reason_of(bad)
    assert [Run.objects.get(id=run.id).state for run in (bad, good)] == [State.FAILED, State.QUEUED]
    assert not redis.exists("unacked", "a:b")


@pytest.mark.parametrize("options", [{"exchange": "celery.pidbox", "routing_key": "x"}, {"exchange": "celeryev"}])
def test_it_fails_a_run_whose_exchange_is_celery_s_own(redis, options):
    run = make_run(options=options)
    outbox.send([run])
    assert reason_of(run).startswith(f"could not be sent: Choose another exchange than {options['exchange']!r}")


# --- Messages that no worker takes ------------------------------------------------------------------------------------

LONG_AGO = 40  # sendings that take longer than UNDELIVERABLE_AFTER


def sent(sends: int = 1, **columns) -> Run:
    """A run whose latest message has been out for as long as its patience lasts."""
    now = database_now()
    return make_run(**{"state": State.QUEUED, "sends": sends, "queued_at": now - HOUR, "not_before": now, **columns})


def make_node(queues: str = "celery, slow", kind: str = Node.Kind.WORKER, name: str = "celery@here") -> Node:
    return Node.objects.create(name=name, kind=kind, queues=queues, pid=1)


def reason_of(run: Run) -> str:
    run.refresh_from_db()
    return run.reason


def test_it_sends_a_run_again_later_that_a_worker_gave_back(redis):
    run = make_run()
    outbox.send([run])
    before = database_now()
    assert outbox.give_back(run.id, 1, "celery@old knows no task tests.nothing")
    run.refresh_from_db()
    assert (run.state, run.attempt, run.sends, run.queued_at) == (State.WAITING, 1, 1, None)
    assert run.reason == "celery@old knows no task tests.nothing"
    assert run.not_before >= before + FIRST_PATIENCE
    Run.objects.update(not_before=before)
    assert outbox.send_waiting() == 1
    run.refresh_from_db()
    assert (run.state, run.sends, run.reason) == (State.QUEUED, 2, "celery@old knows no task tests.nothing")
    assert len(messages(redis)) == 2


def test_it_keeps_a_run_given_back_that_a_worker_refused_before_its_sending_was_noted(redis):
    run = make_run()

    def refuse(headers, **_):
        outbox.give_back(run.id, 1, "unknown")

    after_task_publish.connect(refuse)
    try:
        outbox.send([run])
    finally:
        after_task_publish.disconnect(refuse)
    run.refresh_from_db()
    assert (run.state, run.sends, run.reason) == (State.WAITING, 1, "unknown")


def test_it_counts_one_sending_however_many_of_its_messages_are_refused():
    run = sent(sends=3)
    for worker in ("first", "second"):
        assert outbox.give_back(run.id, 1, worker)
    run.refresh_from_db()
    assert (run.sends, run.reason) == (3, "first")


@pytest.mark.parametrize("columns", [{"attempt": 2}, {"state": State.RUNNING}, {"state": State.CANCELLED}])
def test_it_leaves_a_run_alone_whose_former_message_is_answered(columns):
    run = sent(**columns)
    assert not outbox.give_back(run.id, 1, "unknown")
    assert not outbox.hold(run.id, 1, "rate limit", HOUR)
    assert not outbox.put_off(run.id, 1, "rate limit", HOUR)
    assert reason_of(run) == ""


def test_it_sends_a_run_again_only_after_the_turn_that_a_worker_holds_it_for(redis):
    run = make_run()
    outbox.send([run])
    before = database_now()
    assert outbox.hold(run.id, 1, "rate limit", HOUR)
    run.refresh_from_db()
    assert (run.state, run.sends, run.reason) == (State.QUEUED, 1, "rate limit")
    assert run.not_before >= before + HOUR + FIRST_PATIENCE
    assert outbox.send_waiting() == 0


def test_it_never_gives_up_a_run_that_a_worker_puts_off(redis):
    run = sent(LONG_AGO)
    before = database_now()
    assert outbox.put_off(run.id, 1, "rate limit", 2 * HOUR)
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.WAITING, "rate limit")
    assert run.not_before >= before + 2 * HOUR
    Run.objects.update(not_before=database_now())
    assert outbox.send_waiting() == 1
    assert Run.objects.get().state == State.QUEUED


def test_it_says_that_no_worker_consumes_the_queue_of_a_run():
    make_node("celery")
    make_node("backup", Node.Kind.BEAT, "beat@here")
    runs = [sent(sends, queue="backup") for sends in (1, 4)]
    outbox.send_waiting()
    assert [reason_of(run) for run in runs] == [
        "sent once, no worker took it: no worker consumes queue `backup`",
        "sent 4 times, no worker took it: no worker consumes queue `backup`",
    ]
    assert {run.state for run in Run.objects.all()} == {State.QUEUED}


def test_it_says_that_the_consumers_of_a_run_s_queue_start_nothing():
    make_node("celery, backup")
    run = sent(2)  # to the queue of its task
    outbox.send_waiting()
    assert reason_of(run) == (
        "sent 2 times, no worker took it: the consumers of queue `celery` are busy or do not start runs"
    )


def test_it_names_a_consumer_without_the_start_guard():
    make_node()
    make_node(kind=Node.Kind.STRANGER, name="celery@old")
    run = sent(2)
    outbox.send_waiting()
    assert "celery@old may have taken it" in reason_of(run)
    assert "celery@here" not in run.reason


def test_it_names_no_queue_where_an_exchange_decides(redis, monkeypatch):
    run = sent(options={"exchange": "", "routing_key": "celery"})
    outbox.send_waiting()
    assert reason_of(run) == "sent once, no worker took it: no worker consumes its queue"


@pytest.mark.django_db(transaction=True)
def test_it_fails_a_run_whose_queue_no_worker_has_consumed_for_long(redis):
    schedule = make_schedule(policy={"pause_after_failures": 1})
    run = sent(LONG_AGO, schedule=schedule, queue="backup")
    outbox.send_waiting()
    run.refresh_from_db()
    assert (run.state, messages(redis, "backup")) == (State.FAILED, [])
    assert run.reason == (f"undeliverable: sent {LONG_AGO} times, no worker took it: no worker consumes queue `backup`")
    assert Policy.objects.paused().exists()


@pytest.mark.parametrize(
    ("theirs", "state"),
    [
        (None, State.FAILED),
        ({"state": State.RUNNING}, State.QUEUED),
        ({"state": State.SUCCEEDED}, State.QUEUED),
        ({"state": State.RUNNING, "node": "celery@there"}, State.FAILED),
    ],
)
def test_it_fails_no_run_in_a_long_queue_that_workers_work_through(redis, theirs, state):
    make_node()
    make_node("other", name="celery@there")
    run = sent(LONG_AGO)
    if theirs:
        make_run(**{"node": "celery@here", **theirs})
    outbox.send_waiting()
    run.refresh_from_db()
    assert run.state == state
    assert "the consumers of queue `celery` are busy or do not start runs" in run.reason


@pytest.mark.parametrize("column", ["stopped_at", "seen_at"])
def test_it_fails_no_run_in_a_long_queue_whose_worker_restarts_or_lost_the_database_for_a_while(redis, column):
    make_node()
    Node.objects.update(**{column: database_now() - HOUR / 30})
    make_node(name="celery@new")
    make_run(node="celery@here", state=State.SUCCEEDED)
    run = sent(LONG_AGO)
    outbox.send_waiting()
    assert Run.objects.get(id=run.id).state == State.QUEUED


def test_it_fails_no_run_in_a_long_queue_while_its_consumers_execute_steps(redis):
    make_node()
    run = sent(LONG_AGO)
    of = make_run(state=State.RUNNING, node="celery@there")
    Step.objects.create(id="a", run=of, attempt=1, task="tests.nothing", state="running", node="celery@here")
    outbox.send_waiting()
    assert Run.objects.get(id=run.id).state == State.QUEUED


def test_it_fails_a_run_that_workers_have_refused_for_long(redis):
    make_node()
    make_run(state=State.RUNNING, node="celery@here")
    run = sent(LONG_AGO)
    outbox.give_back(run.id, 1, "celery@here knows no task tests.nothing")
    Run.objects.filter(id=run.id).update(not_before=database_now())
    outbox.send_waiting()
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.FAILED, "undeliverable: celery@here knows no task tests.nothing")


def test_it_gives_up_no_run_whose_sender_died_or_found_no_broker(redis):
    run = sent(LONG_AGO, state=State.WAITING, reason="sent 39 times")
    outbox.send_waiting()
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.QUEUED, "sent 39 times")
