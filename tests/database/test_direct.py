"""A session of its own for code that needs one; tests/live/test_pooler.py has a real pooler."""

import pytest
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError

from jobs.models import Run
from jobs.toolkit import direct
from tests.app.sessions import backend
from tests.making import make_run, only_where_rows_are_locked

pytestmark = [pytest.mark.django_db(transaction=True), only_where_rows_are_locked]


@pytest.fixture
def _known(settings):
    settings.DATABASE_DIRECT = {name: connection.settings_dict[name] for name in ("HOST", "PORT", "USER", "PASSWORD")}


@pytest.mark.usefixtures("_known")
def test_it_has_a_session_of_its_own_for_the_block_only():
    usual, run = backend(connection), make_run()
    seen = []

    def fail() -> None:
        with direct.session():
            seen.append((backend(connection), Run.objects.get()))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    [(own, found)] = seen
    assert own != usual
    assert found == run
    assert backend(connection) == usual


@pytest.mark.usefixtures("_known")
def test_it_refuses_to_leave_a_transaction_behind():
    with transaction.atomic(), pytest.raises(TransactionManagementError), direct.session():
        pass


def test_it_stays_in_the_usual_session_without_a_pooler():
    usual = backend(connection)
    with direct.session():
        assert backend(connection) == usual


def test_it_reaches_another_database_outside_of_any_pool():
    connection.settings_dict["OPTIONS"]["pool"] = True
    try:
        other = direct.separate({"NAME": "postgres"})
    finally:
        del connection.settings_dict["OPTIONS"]["pool"]
    assert other.pool is None
    assert backend(other) != backend(connection)
    other.close()
