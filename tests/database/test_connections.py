"""In which state a task finds its database connections: `tend` is called as each task starts and when it is over."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, connection, connections
from django.db.backends.signals import connection_created

from jobs.models import Run
from jobs.worker.connection import has_open_transaction, on_good_connection, tend
from tests.app.sessions import SPOILERS, backend, look
from tests.making import beside_event_loop, only_where_rows_are_locked

pytestmark = [pytest.mark.django_db(transaction=True), only_where_rows_are_locked]


@pytest.fixture(autouse=True)
def _new_connection() -> Iterator[None]:
    """No session of these tests is another test's."""
    connection.close()
    yield
    connection._close()
    del connections["default"]


def terminate(pid: int) -> None:
    """End another session, as a restart of the server does; returns once it is over."""
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])


def test_it_gives_each_task_and_the_ledger_a_session_as_new():
    clean, found = look(connection), {}
    for how, spoil in SPOILERS.items():
        spoil(connection)
        found[how, "ledger"] = on_good_connection(lambda: look(connection))
        spoil(connection)
        tend()
        found[how, "task"] = look(connection)
        tend()
    assert found == dict.fromkeys(found, clean)


def test_it_looks_after_connections_beside_an_event_loop_that_a_task_left_running():
    clean = look(connection)
    SPOILERS["transaction"](connection)
    with beside_event_loop():
        tend()
    assert look(connection) == clean


def test_it_keeps_the_connection_from_task_to_task():
    first = backend(connection)
    for _ in range(3):
        tend()
        on_good_connection(Run.objects.exists)
        tend()
    assert backend(connection) == first


def test_it_resets_no_session_that_only_the_ledger_used():
    backend(connection)
    tend()
    on_good_connection(lambda: SPOILERS["setting"](connection))
    tend()
    assert look(connection)[1] == "7s"


def test_it_applies_again_what_the_project_sets_on_every_new_connection():
    def set_timeout(connection, **_):
        connection.cursor().execute("SET lock_timeout = '3s'")

    connection_created.connect(set_timeout)
    try:
        backend(connection)
        tend()
        SPOILERS["setting"](connection)
        tend()
        assert look(connection)[1] == "3s"
    finally:
        connection_created.disconnect(set_timeout)


@pytest.mark.parametrize("after", ["the ledger's statements", "a task's statements"])
def test_it_replaces_a_connection_that_the_server_has_closed(after):
    first = backend(connection)
    if after == "the ledger's statements":
        tend()
    terminate(first)
    tend()
    assert backend(connection) != first


def test_it_replaces_a_connection_that_the_network_has_forgotten():
    first = backend(connection)
    tend()
    raw = connection.connection
    raw.wait.since -= 60
    ours, network = socket.socketpair()
    with ours:
        os.dup2(ours.fileno(), raw.fileno())

    def refuse() -> None:
        with network:
            network.recv(1)

    refusing = threading.Thread(target=refuse)
    refusing.start()
    tend()
    raw.close()  # also if `tend` has kept it: then the next statement fails
    refusing.join()
    assert backend(connection) != first


def test_it_keeps_a_connection_no_longer_than_its_database_allows():
    backend(connection)
    connection.close_at = 0.0
    tend()
    assert connection.connection is None


def test_it_closes_the_connections_of_a_thread_among_others():
    def work() -> None:
        backend(connection)
        tend()
        left.append(connection.connection)

    left: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert left == [None]


def test_it_writes_again_when_the_connection_breaks_under_the_statement():
    first = backend(connection)
    tend()

    def write() -> int:
        if (present := backend(connection)) == first:
            terminate(first)
        return backend(connection) if present == first else present

    assert on_good_connection(write) != first


def test_it_gives_up_after_the_second_error():
    with pytest.raises(DatabaseError):
        on_good_connection(lambda: connection.cursor().execute("SELECT no_such_column"))
    tend()
    assert look(connection)


def test_it_leaves_the_transactions_of_other_kinds_of_databases_alone():
    driver = SimpleNamespace(info=lambda: "as a method, not an object")
    wrapper = {"connection": driver, "vendor": "mysql", "in_atomic_block": False, "get_autocommit": lambda: True}
    assert not has_open_transaction(SimpleNamespace(**wrapper))


def test_it_hands_no_session_in_a_transaction_back_to_a_pool():
    pooled = connection.copy()
    options = {**connection.settings_dict["OPTIONS"], "pool": {"min_size": 1, "max_size": 1}}
    pooled.settings_dict = {**connection.settings_dict, "CONN_MAX_AGE": 0, "OPTIONS": options}
    others = pooled.copy()  # it takes its connections from the same pool
    try:
        clean = look(others)
        others.close()
        connections["default"] = pooled
        for how in ("setting", "transaction"):
            pooled.ensure_connection()
            SPOILERS[how](pooled)
        tend()
        assert look(others) == clean
    finally:
        others.close()
        others.close_pool()
