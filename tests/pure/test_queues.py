"""Which names of queues and which headers are refused, and which replies of a broker concern only one message?"""

import re
from pathlib import Path

import amqp
import celery
import kombu
import pytest
from amqp.exceptions import ERROR_MAP
from celery import Celery
from celery.app.task import Context
from kombu import Queue
from kombu.exceptions import BatchPublishError, OperationalError
from kombu.transport.redis import Channel
from redis import exceptions as of_redis
from redis._parsers.base import BaseParser

from jobs.messages import queues
from jobs.messages.dispatch import is_of_one_message
from jobs.messages.message import OF_CELERY, OF_OTHERS
from jobs.rules.errors import Invalid
from jobs.rules.queues import LONGEST, refusal, reserved
from jobs.worker.app import Application

PLAIN = ["celery", "slow", "Mail-2.high_prio", "tenant-1", "_", "x" * LONGEST, "pidboxes", "unacked_jobs", "amqp"]
OWN = [
    *("unacked", "unacked_index", "unacked_mutex", "other:unacked", "other.unacked_index", "_kombu.binding.celery"),
    *("_kombu.binding_deadlines", "_kombu.binding_permanent.celery", "x_kombu.binding.celery", "ae.undeliver"),
    *("celery.pidbox", "reply.celery.pidbox", "worker@host.celery.pidbox", "celeryev", "celeryev.4711", "amq.gen-1"),
    *("celery-task-meta-1", "celery-taskset-meta-1", "chord-unlock-1", "celery_delayed_27"),
    *("celery\x06\x163", "unacked\x06\x163", "a\x00b", "a\nb", "a\x7f", "\ud800", "x" * (LONGEST + 1)),
]
ODD = ["", " ", "a b", "punctual:1:value", "ü", "a/b", "a*", "{a}", "a@b", '"']


@pytest.mark.parametrize("name", PLAIN)
def test_it_accepts_a_plain_name(name):
    assert refusal(name) == ""


@pytest.mark.parametrize("name", OWN)
def test_it_refuses_a_name_of_celery_or_a_broker_wherever_it_comes_from(name):
    assert name[:3] in refusal(name) or repr(name)[:3] in refusal(name)
    assert refusal(name, {name}) == reserved(name) != ""


@pytest.mark.parametrize("name", ODD)
def test_it_refuses_an_odd_name_unless_it_is_defined(name):
    assert "letters, digits" in refusal(name)
    assert refusal(name, {name}) == ""


def test_it_refuses_every_key_of_kombu_s_transport_for_redis():
    keys = [value for name, value in vars(Channel).items() if name.startswith(("unacked_", "keyprefix_"))]
    names = [key.replace("%s", "celery") for key in keys if isinstance(key, str) and not key.startswith("/")]
    assert len(names) >= 6
    assert [name for name in names if not reserved(name)] == []
    assert reserved(f"celery{Channel.sep}3")


# --- Celery's tables --------------------------------------------------------------------------------------------------


def application(**conf: object) -> Celery:
    app = Application("its", set_as_current=False)
    app.conf.update(broker_url="memory://", **conf)
    return app


@pytest.mark.parametrize("name", ["unacked", "celery.pidbox", "punctual:1:value"])
def test_it_refuses_a_queue_that_a_worker_or_a_message_names(name):
    app = application(task_routes={"routed": {"queue": "unacked"}})
    with pytest.raises(Invalid, match=re.escape(name)):
        app.amqp.queues.select([name])
    with pytest.raises(Invalid, match=re.escape(name)):
        app.send_task("any", queue=name)
    with pytest.raises(Invalid, match="'unacked'"):
        app.send_task("routed")


def test_it_refuses_objects_and_exchanges_that_are_in_no_table():
    app = application()
    with pytest.raises(Invalid):
        app.amqp.queues.select_add("unacked")  # as remote control does
    for options in (
        {"queue": Queue("unacked")},
        {"exchange": "celery.pidbox"},
        {"exchange": kombu.Exchange("celeryev")},
    ):
        with pytest.raises(Invalid):
            app.send_task("any", **options)


@pytest.mark.parametrize(
    "conf",
    [
        {"task_queues": [Queue("unacked_index")]},
        {"task_queues": {"unacked_index": {"exchange": "x"}}},
        {"task_default_queue": "unacked_index"},
        {"task_queues": [Queue("mine")], "broker_transport_options": {"unacked_key": "mine"}},
        {"task_queues": [Queue("events.1")], "event_queue_prefix": "events"},
    ],
)
def test_it_refuses_a_queue_of_the_settings(conf):
    with pytest.raises(Invalid, match=r"'(unacked_index|mine|events\.1)'"):
        _ = application(**conf).amqp.queues


def test_it_knows_the_queues_of_the_settings_and_of_tasks():
    routes = ({"a": {"queue": "of route"}, "b.*": "of pattern", "c": {"priority": 3}}, "builtins.print")
    app = application(task_routes=routes, task_queues=[Queue("of setting")])

    @app.task(name="d", queue="of task")
    def d() -> None: ...

    found = {"celery", "of setting", "of route", "of pattern", "of task"}
    assert set(queues.defined(app)) == found
    for name in found:
        queues.check(name, app)
        app.amqp.queues.select([name])
    with pytest.raises(Invalid, match="not defined"):
        queues.check("of nothing", app)


# --- Headers ----------------------------------------------------------------------------------------------------------


def is_refused(header: str) -> bool:
    return header in OF_CELERY or bool(OF_OTHERS.match(header))


@pytest.mark.parametrize("header", [*dir(Context), *vars(Context()), "task", "CC", "BCC", "cc", "x-death", "x-delay"])
def test_it_refuses_every_header_that_would_become_an_attribute_of_the_task_s_request(header):
    assert is_refused(header)


def test_it_refuses_every_header_that_celery_reads_from_a_message():
    reads = re.compile(r"(?:headers|request_dict|req)(?:\.get|\.pop)?[(\[]['\"](\w+)['\"]")
    folders = [Path(celery.__file__).parent / "worker", Path(celery.__file__).parent / "app"]
    files = [*(file for folder in folders for file in folder.rglob("*.py")), Path(kombu.__file__).parent / "message.py"]
    names = {name for file in files for name in reads.findall(file.read_text())}
    assert {"timelimit", "compression", "stamps"} <= names
    assert sorted(name for name in names - {"hostname"} if not is_refused(name)) == []


@pytest.mark.parametrize("header", ["x-team", "traceparent", "tenant", "periodic_task_name"])
def test_it_accepts_other_headers(header):
    assert not is_refused(header)


# --- Replies of brokers -----------------------------------------------------------------------------------------------

OF_ONE_MESSAGE = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "NOPERM No permissions to access a key",
    "NOPERM this user has no permissions to access one of the keys used as arguments",
]
OF_THE_BROKER = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "LOADING Valkey is loading the dataset in memory",
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "CLUSTERDOWN The cluster is down",
    "NOPERM User default has no permissions to run the 'lpush' command",
    "ERR max number of clients reached",
    "DENIED Valkey is running in protected mode because no password is set",
    "NEWCODE of a later version",
]


def batch_error(reply: str, annotated: str = "") -> BatchPublishError:
    """As kombu raises it for this reply of the server, read and annotated by the client."""
    error = BaseParser.parse_error(reply)
    error.args = (annotated + str(error), *error.args[1:])
    wrapped = BatchPublishError("Redis publish batch failed; delivery is uncertain")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize("annotated", ["", 'Command # 3 (LPUSH key {"OOM ": "secret"}) of pipeline caused error: '])
def test_it_tells_a_reply_of_redis_that_concerns_one_message(annotated):
    for reply in OF_ONE_MESSAGE:
        assert is_of_one_message(batch_error(reply, annotated)), reply
    for reply in OF_THE_BROKER:
        assert not is_of_one_message(batch_error(reply, annotated)), reply


@pytest.mark.parametrize(
    "error", [of_redis.ConnectionError("gone"), of_redis.TimeoutError(), OperationalError("gone"), OSError("gone")]
)
def test_it_takes_a_lost_connection_for_no_refusal(error):
    assert not is_of_one_message(error)


def test_it_tells_an_error_of_amqp_that_concerns_one_message():
    of_message = {311, 313, 403, 404, 405, 406}
    assert {code for code, error in ERROR_MAP.items() if is_of_one_message(error("text"))} == of_message
    assert not is_of_one_message(amqp.ConnectionError("gone"))
