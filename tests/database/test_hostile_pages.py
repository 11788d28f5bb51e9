"""No query makes a list, form or action of any app fail, even one that no page offers."""

import logging
from collections.abc import Iterator
from http import HTTPStatus
from itertools import cycle, islice
from urllib.parse import quote

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule
from django_celery_results.models import GroupResult, TaskResult

from jobs.models import database_now
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db

NUL, LONG, DEEP = "\x00", "9" * 400, "[" * 5_000
BAD = ["", "x", "-1", "0", "1e9", LONG, NUL, "(", "🦆", "1,2", "2026-13-45", "0001-01-01", "9999-12-31 23:59:59+00:00"]
# Lookups of Django, with or without a meaning for a column; their values come from BAD.
LOOKUPS = [
    "",
    "__exact",
    "__isnull",
    "__regex",
    "__iregex",
    "__in",
    "__range",
    "__year",
    "__date",
    "__gte",
    "__lt",
    "__pk",
]
LOOKUPS += ["__id__exact", "__contains", "__x__y", "__date__year__gte", "__password__startswith"]
FILTERED = ["", "__exact", "__gte", "__isnull"]
SHARES = 16  # each page is asked one share: there are more pages than shares
WHOLE = [
    *(
        "o=x",
        "o=99",
        "o=-99.1.1",
        "o=1.-1.x",
        f"o={LONG}",
        "p=x",
        "p=-1",
        "p=99999999",
        f"p={LONG}",
        "all=",
        "all=x",
        "e=1",
    ),
    *("q=%00", "q=%ff", "q='\"\\", f"q={'a+' * 200}", f"q={LONG}", "q=%F0%9F%A6%86", "_facets=True", "_facets=%00"),
    *("_popup=1", "_popup=x", "_to_field=id", "_to_field=password", "_to_field=x__y", "_to_field=%00", "_to_field="),
    *(
        "_changelist_filters=%00",
        "_changelist_filters=q%3D%2500",
        "_changelist_filters=x",
        "%00=1",
        "x=%00",
        "x=y",
        "=",
        "&",
        "__=1",
    ),
    *(
        "pk=x",
        "id=x",
        "id__exact=%00",
        "id__in=1,x",
        "_save=1",
        "user__password__regex=(",
        "🦆=1",
        f"{LONG}=1",
        "a__b__c__d__e=1",
    ),
    *("id__isnull=x", "id__isnull=1&id__isnull=0", "locked_out=x", "condition=x", "enabled__exact=x", "enabled=x"),
]


def pages() -> list[str]:
    return [f"admin:{model._meta.app_label}_{model._meta.model_name}" for model in admin.site._registry]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Logging the traceback of a refused query takes longer than refusing it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def rows() -> None:
    """One row or more in most of the tables, so that queries reach the database and lists render a line."""
    make_run(make_schedule())
    now = database_now()
    IntervalSchedule.objects.create(every=1, period="days")
    CrontabSchedule.objects.create()
    ClockedSchedule.objects.create(clocked_time=now)
    SolarSchedule.objects.create(event="sunset", latitude=1, longitude=1)
    TaskResult.objects.create(task_id="a", task_name="tests.nothing", result='"x"')
    GroupResult.objects.create(group_id="b", result="[]")
    Group.objects.create(name="operators")


def superuser() -> Client:
    return _client(User.objects.create_superuser("root"))


def viewer() -> Client:
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return _client(user)


def _client(user: User) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


def status(client: Client, address: str, data: dict | None = None) -> int:
    with transaction.atomic():
        response = client.get(address) if data is None else client.post(address, data)
        transaction.set_rollback(True)
    return response.status_code


def failures(client: Client, addresses: list[str]) -> list[str]:
    return [each[:120] for each in addresses if status(client, each) >= HTTPStatus.INTERNAL_SERVER_ERROR]


def queries_of(number: int, model) -> list[str]:
    """A share of the queries for each list. Together, the lists get each query and each kind of column."""
    hierarchy = admin.site._registry[model].date_hierarchy
    found = WHOLE[number % SHARES :: SHARES]
    for place, column in enumerate(field.name for field in model._meta.fields):
        pairs = zip(cycle(LOOKUPS), BAD * 2, strict=False)
        found += [
            f"{column}{lookup}={quote(value)}" for lookup, value in islice(pairs, (number + place) % 26, None, 26)
        ]
    for filter_ in admin.site._registry[model].list_filter:
        name = getattr(filter_, "parameter_name", None) or (filter_ if isinstance(filter_, str) else filter_[0])
        found += [
            f"{name}{lookup}={quote(value)}"
            for lookup, value in islice(zip(cycle(FILTERED), BAD * 3), number % 5, None, 5)
        ]
    for year in ["0", "9999", "10000", "-1", LONG, "x", "%00", ""] if hierarchy else []:
        found += [f"{hierarchy}__year={year}", f"{hierarchy}__year=2026&{hierarchy}__month={year}"]
        found += [f"{hierarchy}__year=9999&{hierarchy}__month=12&{hierarchy}__day={year}", f"{hierarchy}__day={year}"]
    return [*found, f"{hierarchy}__year=9999&{hierarchy}__month=12&{hierarchy}__day=31"]


def test_it_fails_at_no_query_of_any_list(rows):
    client, addresses = viewer(), []
    for number, (model, name) in enumerate(zip(admin.site._registry, pages(), strict=True)):
        addresses += [f"{reverse(f'{name}_changelist')}?{query}" for query in queries_of(number, model)]
    assert failures(client, addresses) == []


def test_it_filters_no_list_by_what_another_app_hides(rows):
    users = reverse("admin:auth_user_changelist")
    for query in ("password__gte=a", "password=a", "password__exact=a", "last_login__year=2026"):
        assert status(superuser(), f"{users}?{query}") == HTTPStatus.BAD_REQUEST, query
        User.objects.all().delete()
    for query in (
        "is_staff__exact=1",
        "username=x",
        "username__gte=a",
        "groups__id__exact=1",
        "last_login__gte=2026-01-01 00:00:00%2B00:00",
    ):
        assert status(superuser(), f"{users}?{query}") == HTTPStatus.OK, query
        User.objects.all().delete()


@pytest.mark.parametrize("user", [superuser, viewer])
def test_it_fails_at_no_key_and_query_of_any_form(rows, user):
    client, addresses = user(), []
    keys = [
        *filter(None, BAD),
        "_00",
        "_0",
        "a_2Fb",
        str(2**31),
        str(2**63),
        str(2**64),
        "1.5",
        "None",
        "true",
        "add",
        "%2e",
    ]
    for number, name in enumerate(pages()):
        for key in keys[number % SHARES :: SHARES]:
            of_row = f"{reverse(name + '_changelist')}{quote(key)}"
            addresses += [f"{of_row}/{page}/" for page in ("change", "history", "delete")]
        addresses += [f"{reverse(f'{name}_add')}?{query}" for query in WHOLE[number % SHARES :: SHARES]]
    addresses += [f"{reverse('admin:auth_user_changelist')}{quote(key)}/password/" for key in keys]
    assert failures(client, addresses) == []


@pytest.mark.parametrize("user", [superuser, viewer])
def test_it_fails_at_no_query_of_the_pages_of_a_row(rows, user):
    """All queries for one model, and a share of them for each other one."""
    client, addresses = user(), []
    existing = [(model, row) for model in admin.site._registry if (row := model._default_manager.first())]
    assert len(existing) > 8
    for number, (model, row) in enumerate(existing):
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        for place, page in enumerate(("change", "delete", "history")):
            address = reverse(f"{name}_{page}", args=[row.pk])
            queries = WHOLE if number == 0 else WHOLE[(number + place) % SHARES :: SHARES]
            addresses += [f"{address}?{query}" for query in {*queries, "_to_field="}]
    assert failures(client, addresses) == []
    for address in {each.partition("?")[0] for each in addresses}:
        for value in ("", NUL, "x", "password"):
            assert status(client, address, {"_to_field": value}) < HTTPStatus.INTERNAL_SERVER_ERROR, (address, value)


@pytest.mark.parametrize("user", [superuser, viewer])
def test_it_fails_at_no_query_of_the_pages_beside_the_lists(rows, user):
    client = user()
    around = [
        reverse(f"admin:{name}") for name in ("index", "jsi18n", "password_change", "login", "autocomplete", "logout")
    ]
    addresses = [f"{page}?{query}" for number, page in enumerate(around) for query in WHOLE[number::3]]
    for app, model, field in [
        ("django_celery_beat", "periodictask", "crontab"),
        ("auth", "user", "groups"),
        ("x", "y", "z"),
        (NUL, NUL, NUL),
    ]:
        for term in BAD:
            asked = f"app_label={quote(app)}&model_name={quote(model)}&field_name={quote(field)}"
            asked += f"&term={quote(term)}&page={quote(term)}"
            addresses.append(f"{reverse('admin:autocomplete')}?{asked}")
    addresses += [
        f"{reverse('admin:index')}{quote(path)}"
        for path in ("r/1/1/", f"r/{LONG}/x/", "r/x/\x00/", "nothing/", "\x00/", "auth/", "x/")
    ]
    addresses += [
        f"{page}{quote(value)}"
        for page in ("/files/", "/statistics?", "/", "/static/", "/admin")
        for value in BAD
        if value
    ]
    assert failures(client, addresses) == []


@pytest.mark.parametrize("user", [superuser, viewer])
def test_it_fails_at_no_key_of_an_action(rows, user):
    client, failed = user(), []
    for place, (model, name) in enumerate(zip(admin.site._registry, pages(), strict=True)):
        own = [each if isinstance(each, str) else each.__name__ for each in admin.site._registry[model].actions or ()]
        names = [*own, "delete_selected", NUL, "x"]
        for number, action in enumerate(names, place):
            for key in [LONG, NUL, "", "x", str(2**63)][number % 2 :: 2]:
                data = {"action": action, "_selected_action": [key], "post": "yes", "select_across": "x", "index": key}
                code = status(client, reverse(f"{name}_changelist"), data)
                failed += [f"{name} {action} {key[:9]!r}"] * (code >= HTTPStatus.INTERNAL_SERVER_ERROR)
    assert failed == []
