"""How does a process keep its resources current, and what can people see and do: in the admin, by command, by code?"""

import gc
import re
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.urls import reverse

from jobs.cache import resources as cached
from jobs.cache.resources import Resource, Tally
from jobs.models import AuditEntry, Holding, Node, ResourceVersion, database_now
from jobs.worker import resources
from jobs.worker.resources import UnknownResourceError
from tests.app.tasks import borrow, inherit, lent
from tests.database.test_admin import text
from tests.forking import forks, in_child

pytestmark = pytest.mark.django_db

RESOURCES = reverse("admin:jobs_resourceversion_changelist")
HERE = {"node": "celery@here", "pid": 7}


@pytest.fixture
def prices():
    """A resource whose values are numbers, counted from 1; its first version is known."""
    loads: list[int] = []
    resource = Resource("prices", lambda: loads.append(1) or len(loads))
    resources.drop_outdated()
    yield resource
    del cached.registry["prices"]


def holding(name: str, **columns: Any) -> Holding:
    row, _ = ResourceVersion.objects.get_or_create(name=name)
    figures = {"entries": 2, "bytes": 3 * 2**20, "hits": 30, "misses": 10}
    return Holding.objects.create(resource=row, **{**HERE, **figures, **columns})


def page_of(client, name: str) -> str:
    return text(client.get(reverse("admin:jobs_resourceversion_change", args=[name])))


def act(client, *names: str):
    return client.post(RESOURCES, {"action": "invalidate", "_selected_action": names}, follow=True)


def unavailable(*_: Any) -> None:
    raise OperationalError("the server closed the connection unexpectedly")


# --- versions -------------------------------------------------------------------------------------------------------


def test_it_drops_values_that_another_process_has_invalidated(prices):
    assert prices.get() == 1
    ResourceVersion.objects.filter(name="prices").update(number=1)
    resources.drop_outdated()
    assert prices.get() == 2
    resources.drop_outdated()
    assert prices.get() == 2


def test_it_drops_values_that_were_loaded_before_the_versions_could_be_read(prices):
    prices.version = None
    prices.get()
    resources.drop_outdated()
    assert prices.tally().entries == 0


def test_it_drops_values_when_the_version_numbers_start_again(prices):
    prices.drop(version=5)
    prices.get()
    resources.drop_outdated()
    assert (prices.tally().entries, prices.version) == (0, 0)


@pytest.mark.django_db(transaction=True)
def test_it_reads_the_versions_before_a_process_first_uses_a_resource(prices, monkeypatch):
    for module, name in ((cached, "_hook"), (cached, "_unused"), (resources, "_watch")):
        monkeypatch.setattr(module, name, None)
    prices.get()
    ResourceVersion.objects.filter(name="prices").update(number=1)
    cached.before_first_use(resources._begin)
    try:
        assert prices.get() == 2
    finally:
        resources._watch.stop()


def test_it_reads_all_versions_with_one_query(prices, django_assert_num_queries):
    with django_assert_num_queries(1):
        resources.drop_outdated()


def test_it_records_when_and_by_whom_a_resource_was_invalidated(prices):
    resources.invalidate("prices", actor="ada")
    resources.invalidate("prices", actor="eve")
    row = ResourceVersion.objects.get(name="prices")
    assert (row.number, row.invalidated_by) == (2, "eve")
    assert abs(row.invalidated_at - database_now()) < timedelta(minutes=1)


def test_it_invalidates_a_resource_that_only_other_processes_know():
    ResourceVersion.objects.create(name="elsewhere")
    resources.invalidate("elsewhere")
    assert ResourceVersion.objects.get(name="elsewhere").number == 1


def test_it_invalidates_none_when_one_of_them_does_not_exist(prices):
    with pytest.raises(UnknownResourceError, match="Did you mean 'prices'"):
        resources.invalidate("prices", "price")
    assert ResourceVersion.objects.get(name="prices").number == 0


@pytest.mark.django_db(transaction=True)
def test_it_drops_values_when_the_transaction_that_changes_the_data_commits(prices):
    prices.get()
    with transaction.atomic():
        resources.invalidate("prices")
        assert prices.get() == 1
    assert prices.get() == 2
    with transaction.atomic():
        resources.invalidate("prices")
        transaction.set_rollback(True)
    resources.drop_outdated()
    assert prices.get() == 2


# --- reports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def watch(prices):
    """The watch of a process, not started as a thread: the tests call its methods."""
    return resources._Watch("celery@here")


def test_it_reports_the_holdings_of_this_process_and_removes_the_report_at_the_end(watch, prices):
    prices.get()
    prices.get()
    watch._check()
    row = Holding.objects.get(resource="prices", node="celery@here")
    assert Tally(row.entries, row.bytes, row.hits, row.misses) == prices.tally() == Tally(1, 28, 1, 1)
    watch._remove_report()
    assert not Holding.objects.exists()


def test_it_reports_changes_at_most_every_ten_seconds(watch, prices, django_assert_num_queries):
    prices.get()
    watch._check()
    prices.get()
    watch._check()
    assert Holding.objects.get(resource="prices").hits == 0
    watch._reported_at -= resources.REPORT_EVERY
    watch._check()
    assert Holding.objects.get(resource="prices").hits == 1
    watch._reported_at -= resources.REPORT_EVERY
    with django_assert_num_queries(1):
        watch._check()


def test_it_repeats_an_unchanged_report(watch, prices):
    prices.get()
    watch._check()
    Holding.objects.update(seen_at=database_now() - timedelta(minutes=2))
    watch._reported_at -= resources.REPEAT_EVERY
    watch._check()
    assert Holding.objects.get(resource="prices").seen_at > database_now() - timedelta(minutes=1)


def test_it_deletes_the_reports_of_killed_processes(watch, prices):
    prices.get()
    holding("prices", pid=8, seen_at=database_now() - timedelta(minutes=4))
    watch._check()
    assert Holding.objects.filter(resource="prices").count() == 1


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_while_the_database_is_unavailable(watch, prices, caplog):
    prices.get()
    caplog.set_level("INFO")
    with connection.execute_wrapper(unavailable):
        watch._act(watch._check)
        assert prices.get() == 1
    assert "cannot be read now: the server closed the connection unexpectedly" in caplog.text
    ResourceVersion.objects.filter(name="prices").update(number=1)
    watch._act(watch._check)
    assert prices.get() == 2


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_after_an_unexpected_error(watch, caplog):
    watch._act(lambda: 1 / 0)
    assert "The resources of this process could not be checked." in caplog.text
    assert "ZeroDivisionError" in caplog.text


@forks
def test_it_has_no_watch_in_a_forked_child(watch, monkeypatch):
    monkeypatch.setattr(resources, "_watch", watch)
    assert in_child(lambda: resources._watch is None) is True


# --- preload --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad():
    resource = Resource("bad", lambda: 1 / 0, preload=True)
    yield resource
    del cached.registry["bad"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "wrapper", [unavailable, lambda execute, *rest: execute(*rest)], ids=["database unavailable", "all well"]
)
def test_it_preloads_the_resources_that_can_be_loaded(bad, caplog, wrapper):
    inherited = cached.registry["tests.inherited"]
    inherited.drop()
    with connection.execute_wrapper(wrapper):
        resources._preload()
    assert inherited.tally().entries == 1
    assert "bad could not be preloaded." in caplog.text
    assert connection.connection is None
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_it_lends_to_a_task_that_is_called_as_a_function(tmp_path):
    borrow(str(tmp_path / "lines"), "end")
    assert (tmp_path / "lines").read_text() == "end\nclosed\n"
    assert lent.tally().entries == 0  # the dropped value was not loaded again


def test_it_lends_nothing_outside_of_a_task():
    with pytest.raises(RuntimeError, match=r"tests\.inherit is not executing"):
        _ = inherit.shared


def test_it_says_how_to_name_a_resource_if_a_task_has_none():
    with pytest.raises(TypeError, match=r"tests\.borrow has no resource: give its decorator resource="):
        _ = borrow.shared


# --- the command ----------------------------------------------------------------------------------------------------


def test_it_invalidates_by_command(prices):
    resources.drop_outdated()
    call_command("invalidate", "prices", "tests.loaded", stdout=(out := StringIO()))
    assert "Invalidated: prices, tests.loaded." in out.getvalue()
    assert set(ResourceVersion.objects.filter(number=1).values_list("name", flat=True)) == {"prices", "tests.loaded"}


def test_it_refuses_an_unknown_name_by_command(prices):
    with pytest.raises(CommandError, match=r"No resource is called 'price'\. Did you mean 'prices'\?"):
        call_command("invalidate", "price")


# --- the admin ------------------------------------------------------------------------------------------------------


@pytest.fixture
def client_with(client) -> Callable[..., Any]:
    """Logs a staff user with these permissions in; returns the client."""

    def log_in(*permissions: str) -> Any:
        user = User.objects.create_user("ada", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client.force_login(user)
        return client

    return log_in


def test_it_shows_the_holdings_in_total_and_per_process(client_with):
    client = client_with("view_resourceversion")
    holding("prices")
    holding("prices", pid=8, hits=0, misses=0)
    holding("prices", pid=9, seen_at=database_now() - timedelta(minutes=4))
    ResourceVersion.objects.create(name="rates", number=3, invalidated_at=database_now(), invalidated_by="eve")
    page = text(client.get(RESOURCES))
    assert re.search(r"prices 2 4 6.0\sMB 30 10 75.0 % 0 – –", page)
    assert re.search(r"rates 0 0 0\sbytes 0 0 – 3 \S+ \S+ eve", page)
    page = page_of(client, "prices")
    assert re.search(r"celery@here 7 2 3.0\sMB 30 10 75.0 %", page)
    assert re.search(r"celery@here 8 2 3.0\sMB 0 0 –", page)
    assert "celery@here 9" not in page


def test_it_takes_as_many_queries_for_many_resources_as_for_one(client_with, django_assert_num_queries):
    client = client_with("view_resourceversion")
    holding("prices")
    client.get(RESOURCES)
    with django_assert_num_queries(7):
        client.get(RESOURCES)
    for number in range(20):
        holding(f"r{number}")
    with django_assert_num_queries(7):
        client.get(RESOURCES)


def test_it_shows_the_holdings_of_each_node(admin_client):
    Node.objects.create(name="celery@here", kind="worker", pid=1)
    Node.objects.create(name="celery@there", kind="worker", pid=1)
    holding("prices")
    holding("prices", pid=8)
    holding("rates")
    page = text(admin_client.get(reverse("admin:jobs_node_changelist")))
    assert re.search(
        r"celery@here .* prices: 6.0\sMB in 2 processes, rates: 3.0\sMB in 1 process .* celery@there", page
    )
    assert "celery@there Worker live" in page
    assert page.count("prices") == 1


def test_it_invalidates_in_the_name_of_the_user(client_with, prices):
    client = client_with("view_resourceversion", "change_resourceversion")
    page = text(act(client, "prices"))
    assert "1 resource is invalidated: every worker drops the values within seconds." in page
    row = ResourceVersion.objects.get(name="prices")
    assert (row.number, row.invalidated_by) == (1, "ada")
    assert AuditEntry.objects.get(key="prices").act == "invalidate"


def test_it_refuses_to_invalidate_for_users_who_may_only_view(client_with, prices):
    act(client_with("view_resourceversion"), "prices")
    assert ResourceVersion.objects.get(name="prices").number == 0


def test_it_refuses_to_edit_a_version(admin_client, prices):
    assert admin_client.get(reverse("admin:jobs_resourceversion_add")).status_code == 403
    address = reverse("admin:jobs_resourceversion_change", args=["prices"])
    assert admin_client.post(address, {"number": 9}).status_code == 403


@pytest.mark.parametrize("name", ["no/name", "\x00", "", "a" * 200, "unknown"])
def test_it_survives_impossible_names(admin_client, name):
    assert act(admin_client, name).status_code == 200
    assert not ResourceVersion.objects.filter(number__gt=0).exists()
