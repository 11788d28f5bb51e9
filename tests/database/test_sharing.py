"""What a process does about its cached, and what people see of it and may do: in the admin, by command, by code."""

import gc
import re
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.urls import reverse

from jobs.cache import resources as cached
from jobs.cache.resources import Resource, Tally
from jobs.models import Holding, Node, ResourceVersion, database_now
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
    resources.look()
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


def away(*_: Any) -> None:
    raise OperationalError("the server closed the connection unexpectedly")


# --- versions -------------------------------------------------------------------------------------------------------


def test_it_drops_what_another_process_has_invalidated(prices):
    assert prices.get() == 1
    ResourceVersion.objects.filter(name="prices").update(number=1)
    resources.look()
    assert prices.get() == 2
    resources.look()
    assert prices.get() == 2


def test_it_drops_what_was_loaded_before_the_versions_could_be_read(prices):
    prices.version = None
    prices.get()
    resources.look()
    assert prices.tally().entries == 0


def test_it_drops_what_it_holds_when_the_versions_begin_again(prices):
    prices.drop(version=5)
    prices.get()
    resources.look()
    assert (prices.tally().entries, prices.version) == (0, 0)


@pytest.mark.django_db(transaction=True)
def test_it_looks_before_a_process_uses_a_resource_for_the_first_time(prices, monkeypatch):
    for module, name in ((cached, "_hook"), (cached, "_unused"), (resources, "_watch")):
        monkeypatch.setattr(module, name, None)
    prices.get()
    ResourceVersion.objects.filter(name="prices").update(number=1)
    cached.before_first_use(resources._begin)
    try:
        assert prices.get() == 2
    finally:
        resources._watch.stop()


def test_it_looks_with_one_query_for_all(prices, django_assert_num_queries):
    with django_assert_num_queries(1):
        resources.look()


def test_it_notes_when_and_by_whom_a_resource_was_invalidated(prices):
    resources.invalidate("prices", actor="ada")
    resources.invalidate("prices", actor="eve")
    row = ResourceVersion.objects.get(name="prices")
    assert (row.number, row.invalidated_by) == (2, "eve")
    assert abs(row.invalidated_at - database_now()) < timedelta(minutes=1)


def test_it_invalidates_what_only_other_processes_know():
    ResourceVersion.objects.create(name="elsewhere")
    resources.invalidate("elsewhere")
    assert ResourceVersion.objects.get(name="elsewhere").number == 1


def test_it_invalidates_none_when_one_of_them_does_not_exist(prices):
    with pytest.raises(UnknownResourceError, match="Did you mean 'prices'"):
        resources.invalidate("prices", "price")
    assert ResourceVersion.objects.get(name="prices").number == 0


@pytest.mark.django_db(transaction=True)
def test_it_drops_with_the_end_of_the_transaction_that_changes_the_data(prices):
    prices.get()
    with transaction.atomic():
        resources.invalidate("prices")
        assert prices.get() == 1
    assert prices.get() == 2
    with transaction.atomic():
        resources.invalidate("prices")
        transaction.set_rollback(True)
    resources.look()
    assert prices.get() == 2


# --- what a process tells -------------------------------------------------------------------------------------------


@pytest.fixture
def watch(prices):
    """The watch of a process that was never started as a thread: a test takes its steps itself."""
    return resources._Watch("celery@here")


def test_it_tells_what_this_process_holds_and_takes_it_back_in_the_end(watch, prices):
    prices.get()
    prices.get()
    watch._look_and_tell()
    row = Holding.objects.get(resource="prices", node="celery@here")
    assert Tally(row.entries, row.bytes, row.hits, row.misses) == prices.tally() == Tally(1, 28, 1, 1)
    watch._say_goodbye()
    assert not Holding.objects.exists()


def test_it_tells_what_has_changed_at_most_every_ten_seconds(watch, prices, django_assert_num_queries):
    prices.get()
    watch._look_and_tell()
    prices.get()
    watch._look_and_tell()
    assert Holding.objects.get(resource="prices").hits == 0
    watch._told_at -= resources.TELL_EVERY
    watch._look_and_tell()
    assert Holding.objects.get(resource="prices").hits == 1
    watch._told_at -= resources.TELL_EVERY
    with django_assert_num_queries(1):
        watch._look_and_tell()


def test_it_tells_that_it_lives_when_nothing_has_changed(watch, prices):
    prices.get()
    watch._look_and_tell()
    Holding.objects.update(seen_at=database_now() - timedelta(minutes=2))
    watch._told_at -= resources.REPEAT_EVERY
    watch._look_and_tell()
    assert Holding.objects.get(resource="prices").seen_at > database_now() - timedelta(minutes=1)


def test_it_forgets_processes_that_were_killed(watch, prices):
    prices.get()
    holding("prices", pid=8, seen_at=database_now() - timedelta(minutes=4))
    watch._look_and_tell()
    assert Holding.objects.filter(resource="prices").count() == 1


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_while_the_database_is_away(watch, prices, caplog):
    prices.get()
    caplog.set_level("INFO")
    with connection.execute_wrapper(away):
        watch._act(watch._look_and_tell)
        assert prices.get() == 1
    assert "cannot be read at present: the server closed the connection unexpectedly" in caplog.text
    ResourceVersion.objects.filter(name="prices").update(number=1)
    watch._act(watch._look_and_tell)
    assert prices.get() == 2


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_after_a_failure_that_nobody_thought_of(watch, caplog):
    watch._act(lambda: 1 / 0)
    assert "The resources of this process could not be looked after." in caplog.text
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
@pytest.mark.parametrize("wrapper", [away, lambda execute, *rest: execute(*rest)], ids=["database away", "all well"])
def test_it_preloads_what_it_can(bad, caplog, wrapper):
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
    assert lent.tally().entries == 0  # what was dropped in the middle was not loaded again


def test_it_lends_nothing_outside_of_a_task():
    with pytest.raises(RuntimeError, match=r"tests\.inherit is not executing"):
        _ = inherit.shared


def test_it_says_what_is_missing_when_a_task_names_no_resource():
    with pytest.raises(TypeError, match=r"tests\.borrow shares nothing: give its decorator resource="):
        _ = borrow.shared


# --- the command ----------------------------------------------------------------------------------------------------


def test_it_invalidates_by_command(prices):
    resources.look()
    call_command("invalidate", "prices", "tests.loaded", stdout=(out := StringIO()))
    assert "Invalidated: prices, tests.loaded." in out.getvalue()
    assert set(ResourceVersion.objects.filter(number=1).values_list("name", flat=True)) == {"prices", "tests.loaded"}


def test_it_refuses_an_unknown_name_by_command(prices):
    with pytest.raises(CommandError, match=r"No resource is called 'price'\. Did you mean 'prices'\?"):
        call_command("invalidate", "price")


# --- the admin ------------------------------------------------------------------------------------------------------


@pytest.fixture
def somebody(client) -> Callable[..., Any]:
    """A client of somebody with these permissions."""

    def somebody(*permissions: str) -> Any:
        user = User.objects.create_user("ada", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client.force_login(user)
        return client

    return somebody


def test_it_shows_what_all_processes_hold_together_and_each_alone(somebody):
    client = somebody("view_resourceversion")
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


def test_it_asks_the_database_as_often_for_many_resources_as_for_one(somebody, django_assert_num_queries):
    client = somebody("view_resourceversion")
    holding("prices")
    client.get(RESOURCES)
    with django_assert_num_queries(7):
        client.get(RESOURCES)
    for number in range(20):
        holding(f"r{number}")
    with django_assert_num_queries(7):
        client.get(RESOURCES)


def test_it_shows_beside_a_node_what_its_processes_hold(admin_client):
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


def test_it_invalidates_for_the_person_who_asks(somebody, prices):
    client = somebody("view_resourceversion", "change_resourceversion")
    page = text(act(client, "prices"))
    assert "1 resource is invalidated: every worker drops the values within seconds." in page
    row = ResourceVersion.objects.get(name="prices")
    assert (row.number, row.invalidated_by) == (1, "ada")
    assert LogEntry.objects.get(object_id="prices").get_change_message() == "Invalidated."


def test_it_lets_nobody_invalidate_who_may_only_look(somebody, prices):
    act(somebody("view_resourceversion"), "prices")
    assert ResourceVersion.objects.get(name="prices").number == 0


def test_it_lets_nobody_edit_a_version(admin_client, prices):
    assert admin_client.get(reverse("admin:jobs_resourceversion_add")).status_code == 403
    address = reverse("admin:jobs_resourceversion_change", args=["prices"])
    assert admin_client.post(address, {"number": 9}).status_code == 403


@pytest.mark.parametrize("name", ["no/name", "\x00", "", "a" * 200, "unknown"])
def test_it_survives_names_that_cannot_be(admin_client, name):
    assert act(admin_client, name).status_code == 200
    assert not ResourceVersion.objects.filter(number__gt=0).exists()
