"""Two users save the same unique name at once: the second one is refused like a user who comes later."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask, SolarSchedule

from jobs.alerts import acts as of_alerts
from jobs.ledger import webhooks
from jobs.models import ApiToken, AuditEntry, Channel, WebhookSource
from jobs.rules.errors import Conflict
from jobs.schedules import acts, timings
from tests.database.test_admin import form, text
from tests.database.test_admin_tokens import asked
from tests.database.test_hooks import make_source
from tests.database.test_hooks_in_admin import fields
from tests.making import blocked, make_schedule, only_where_rows_are_locked
from tests.pure.test_signatures import PLAIN

pytestmark = [pytest.mark.django_db(transaction=True), only_where_rows_are_locked]
COLUMNS = {"name": "shop", "form": "github", "keys": "PLAIN", "job": "tests.nothing"}
CHANNEL = {"name": "ops", "kind": "mail", "addresses": ["ops@example.org"]}
PLACE = {"event": "sunset", "latitude": "52.500000", "longitude": "13.400000"}


@pytest.fixture(autouse=True)
def _keys(settings) -> None:
    settings.WEBHOOK_KEYS = {"PLAIN": [PLAIN]}


@pytest.fixture
def ada(client) -> Client:
    client.force_login(User.objects.create_superuser("ada"))
    client.raise_request_exception = False
    return client


def second(first: Callable[[], object], request: Callable[[], Any]) -> Any:
    """The answer to a request that came to wait for the transaction of `first`."""
    answers: list[Any] = []
    with transaction.atomic():
        first()
        thread = blocked(lambda: answers.append(request()))
    thread.join()
    return answers[0]


def page_of(kind: str, *args: Any) -> str:
    return reverse(f"admin:{kind}_{'change' if args else 'add'}", args=args)


def save_source() -> None:
    webhooks.save(WebhookSource(**COLUMNS), "bob")


def save_schedule() -> None:
    acts.save(PeriodicTask(name="new", task="tests.nothing", interval=IntervalSchedule.objects.get()), {}, "bob")


def lock_and_save_schedule() -> None:
    PeriodicTask.objects.select_for_update().get(name="other")  # the other request waits before it saves
    save_schedule()


def issue_token() -> None:
    ApiToken.objects.issue("ci", User.objects.get(), ["jobs.view_run"], "bob")


def save_channel() -> None:
    of_alerts.save_channel(Channel(**CHANNEL), "bob")


def save_place() -> None:
    acts.save_timing(SolarSchedule(**PLACE), "bob")


def in_schedule(other: PeriodicTask | None = None) -> dict[str, Any]:
    return form(other, interval=IntervalSchedule.objects.get().pk, description="typed")


SCHEDULE, SOURCE = "django_celery_beat_periodictask", "jobs_webhooksource"
PAGES: dict[str, tuple[Callable[[], None], Callable[[], tuple[str, dict[str, Any]]], str]] = {
    "source": (save_source, lambda: (page_of(SOURCE), fields()), "{&quot;shop&quot;: 7}"),
    "renamed source": (
        save_source,
        lambda: (page_of(SOURCE, make_source(name="other").pk), fields()),
        "{&quot;shop&quot;: 7}",
    ),
    "schedule": (save_schedule, lambda: (page_of(SCHEDULE), in_schedule()), "typed"),
    **{
        f"renamed schedule{name}": (
            first,
            lambda: (page_of(SCHEDULE, PeriodicTask.objects.get().pk), in_schedule(PeriodicTask.objects.get())),
            "typed",
        )
        for name, first in (("", save_schedule), (" that is locked", lock_and_save_schedule))
    },
    "channel": (
        save_channel,
        lambda: (page_of("jobs_channel"), CHANNEL | {"addresses": "ops@example.org", "patterns": "typed*"}),
        "typed*",
    ),
    "token": (issue_token, lambda: (page_of("jobs_apitoken"), asked(jobs="tests.nothing")), "tests.nothing"),
    "place": (save_place, lambda: (page_of("django_celery_beat_solarschedule"), PLACE), PLACE["latitude"]),
    "user": (
        lambda: User.objects.create_user("eve"),
        lambda: (page_of("auth_user"), {"username": "eve", "password1": "lantern-7431", "password2": "lantern-7431"}),
        "eve",
    ),
}


@pytest.mark.parametrize("case", PAGES)
def test_it_shows_the_form_again_if_another_user_takes_the_name_meanwhile(ada, case):
    make_schedule("other")
    first, request, typed = PAGES[case]
    address, data = request()
    page = second(first, lambda: ada.post(address, data))
    assert page.status_code == 200
    assert re.search(r"already exists\.", text(page))
    assert typed in page.content.decode()
    assert set(AuditEntry.objects.values_list("actor", flat=True)) <= {"bob"}


REQUESTS: dict[str, tuple[Callable[[], None], str, str, dict[str, Any]]] = {
    "source": (save_source, "POST", "/api/webhook-sources", COLUMNS),
    "renamed source": (save_source, "PATCH", "/api/webhook-sources/{source}", {"name": "shop"}),
    "channel": (save_channel, "POST", "/api/channels", CHANNEL),
    "renamed channel": (save_channel, "PATCH", "/api/channels/{channel}", {"name": "ops"}),
    "schedule": (
        save_schedule,
        "POST",
        "/api/schedules",
        {"name": "new", "job": "tests.nothing", "timing": {"every": 3600}},
    ),
    "renamed schedule": (save_schedule, "PATCH", "/api/schedules/{schedule}", {"name": "new"}),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_it_answers_409_if_another_request_takes_the_name_meanwhile(ada, case):
    keys = {"schedule": make_schedule("other").pk, "source": make_source(name="other").pk}
    keys["channel"] = Channel.objects.create(**CHANNEL | {"name": "other"}).pk
    first, method, address, body = REQUESTS[case]

    def request() -> Any:
        return ada.generic(method, address.format(**keys), json.dumps(body), "application/json")

    for answer in (second(first, request), request()):  # the same as of one that comes later
        assert answer.status_code == 409, answer.content
        assert "already" in answer.json()["detail"]
    assert set(AuditEntry.objects.values_list("actor", flat=True)) == {"bob"}


def test_it_says_that_another_request_has_taken_the_name_of_a_token():
    user = User.objects.create_superuser("ada")

    def issue() -> str:
        with pytest.raises(Conflict) as error:
            ApiToken.objects.issue("ci", user, ["jobs.view_run"], "ada")
        return str(error.value)

    assert second(issue_token, issue) == "There is a token “ci” already: choose another name."
    assert ApiToken.objects.get().created_by == "bob"


def test_it_finds_a_solar_event_that_a_user_saves_meanwhile():
    same = {"solar": "sunset", "latitude": 52.5, "longitude": 13.4}
    found = second(save_place, lambda: timings.saved(timings.parse(same)))
    assert found == SolarSchedule.objects.get()
