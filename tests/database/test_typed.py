"""The page of a schedule whose job is typed: a field for each argument, and each error beside its field."""

import json
import re
from typing import Annotated, Any, Literal

import pytest
from celery import shared_task
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from pydantic import Field, validate_call

from tests.database.test_admin import NEW, form
from tests.making import make_schedule

pytestmark = pytest.mark.django_db

CALL = "jobs.http_call"


def page(schedule: PeriodicTask) -> str:
    return reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])


def typed(task: str = CALL, schedule: PeriodicTask | None = None, **arguments: object) -> dict[str, Any]:
    """The form data that a browser sends for a page with fields."""
    sent = form(schedule, regtask=task, interval=IntervalSchedule.objects.create(every=1, period="hours").pk)
    del sent["args"], sent["kwargs"]
    defaults = {"method": "GET", "expected_status": 200, "deadline": 30, "largest_answer": 1_000_000, "retries": 0}
    filled = (defaults if task == CALL else {}) | arguments
    return sent | {"arguments_of": task} | {f"argument_{name}": value for name, value in filled.items()}


def stored(name: str = "new") -> dict[str, Any]:
    schedule = PeriodicTask.objects.get(name=name)
    assert schedule.args == "[]"
    return json.loads(schedule.kwargs)


def complaints(response) -> list[str]:
    assert response.status_code == 200
    return re.findall(r'<ul class="errorlist[^>]*><li>(.*?)</li>', response.content.decode())


def test_it_shows_a_field_for_each_argument_when_a_typed_job_is_chosen(admin_client):
    html = admin_client.get(NEW, {"regtask": CALL, "name": "kept"}).content.decode()
    assert re.findall(r'name="argument_(\w+)"', html) == [
        *(
            "url",
            "method",
            "headers",
            "body",
            "expected_status",
            "expected_text",
            "deadline",
            "largest_answer",
            "retries",
        )
    ]
    assert 'value="kept"' in html
    assert "An http or https address, or /path of this site." in html
    assert 'min="200" max="599"' in html
    assert 'name="kwargs"' not in html
    html = admin_client.get(NEW, {"regtask": "tests.nothing"}).content.decode()
    assert 'name="kwargs"' in html
    assert "argument_" not in html


def test_it_stores_filled_in_fields_and_leaves_defaults_to_the_job(admin_client, settings):
    settings.SECRET_HOSTS = {"TOKEN": ["*"]}
    headers = '{"Authorization": "Bearer secret:TOKEN"}'
    response = admin_client.post(NEW, typed(url="/livez", expected_status=204, headers=headers, body=" a\r\n b "))
    assert response.status_code == 302
    expected = {"url": "/livez", "expected_status": 204, "headers": json.loads(headers), "body": " a\n b "}
    assert stored() == expected


def test_it_reads_a_list_with_one_item_on_each_line(admin_client):
    sent = typed("jobs.run_command", command="check", arguments="--tag=models\r\n\r\n  --deploy \r\n")
    assert admin_client.post(NEW, sent).status_code == 302
    assert stored() == {"command": "check", "arguments": ["--tag=models", "--deploy"]}
    html = admin_client.get(page(PeriodicTask.objects.get())).content.decode()
    assert "--tag=models\n--deploy</textarea>" in html


def test_it_shows_stored_arguments_and_keeps_them_when_another_field_is_edited(admin_client):
    schedule = make_schedule(task=CALL, args=["/livez"], kwargs={"expected_status": 404, "headers": {"a": "b"}})
    html = admin_client.get(page(schedule)).content.decode()
    assert 'value="/livez"' in html
    assert 'value="404"' in html
    sent = typed(CALL, schedule, url="/livez", expected_status=404, headers='{"a": "b"}')
    assert admin_client.post(page(schedule), sent | {"name": schedule.name}).status_code == 302
    assert stored(schedule.name) == {"url": "/livez", "expected_status": 404, "headers": {"a": "b"}}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"url": ""}, "This field is required."),
        ({"url": "x" * 2001}, "Ensure this value has at most 2000 characters (it has 2001)."),
        ({"expected_status": 302}, "cannot be 302: redirects are followed, so expect the final status"),
        ({"expected_status": "9" * 5000}, "Enter a whole number."),
        ({"method": "get"}, "Select a valid choice. get is not one of the available choices."),
        ({"headers": "{"}, "Enter a valid JSON."),
        ({"headers": '["a"]'}, "Input should be a valid dictionary"),
        ({"headers": "[" * 10_000}, "Enter a valid JSON."),
        ({"deadline": "nan"}, "Enter a number."),
    ],
)
def test_it_shows_an_error_beside_its_field(admin_client, arguments, complaint):
    assert complaint in complaints(admin_client.post(NEW, typed(**({"url": "/"} | arguments))))
    assert not PeriodicTask.objects.exists()


def test_it_refuses_a_null_character_in_a_field(admin_client):
    response = admin_client.post(NEW, typed(url="/a\0b"))
    assert any("ull characters" in each or "control characters" in each for each in complaints(response))


def test_it_asks_for_the_arguments_of_the_new_job_when_the_job_changes(admin_client):
    schedule = make_schedule(task="jobs.import_feed", kwargs={"url": "/feed"})
    sent = typed("jobs.run_command", schedule) | {"argument_url": "/feed", "arguments_of": "jobs.import_feed"}
    response = admin_client.post(page(schedule), sent)
    assert "This field is required." in complaints(response)
    assert 'name="argument_command"' in response.content.decode()


def test_it_still_accepts_arguments_as_json(admin_client):
    sent = form(
        regtask=CALL, kwargs='{"url": "/livez"}', interval=IntervalSchedule.objects.create(every=1, period="hours").pk
    )
    assert admin_client.post(NEW, sent).status_code == 302
    assert stored() == {"url": "/livez"}
    sent |= {"name": "bad", "kwargs": '{"url": "/livez", "colour": 1}'}
    assert "unexpected keyword argument" in complaints(admin_client.post(NEW, sent))[0]


@pytest.mark.parametrize("kwargs", ['{"url": "/", "colour": 1}', "{", '{"headers": "/"}'])
def test_it_shows_json_when_stored_arguments_do_not_fit_the_job(admin_client, kwargs):
    schedule = make_schedule(task=CALL, kwargs=kwargs)
    html = admin_client.get(page(schedule)).content.decode()
    assert 'name="kwargs"' in html
    assert "argument_" not in html


def test_it_shows_json_to_a_user_who_may_only_view_the_schedule(client):
    schedule = make_schedule(task=CALL, kwargs={"url": "/livez"})
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_periodictask"))
    client.force_login(user)
    assert "/livez" in client.get(page(schedule)).content.decode()


@shared_task(name="tests.kinds")
@validate_call
def kinds(
    text: str = "hello",
    lines: list[str] = ["a"],  # noqa: B006 - read only
    number: Literal[1, 2, 5] = 1,
    flag: bool | None = None,
    note: str | None = None,
    body: Annotated[str, Field(json_schema_extra={"format": "multi-line"})] = "",
) -> None:
    """An argument of every kind."""


STORED = {"text": " ok ", "lines": [], "number": 5, "flag": None, "note": None, "body": "a\nb"}
SHOWN = {"text": " ok ", "lines": "", "number": "5", "flag": "unknown", "note": "", "body": "a\r\nb"}


def test_it_leaves_unedited_arguments_as_they_are(admin_client):
    schedule = make_schedule(task="tests.kinds", kwargs=STORED)
    sent = typed("tests.kinds", schedule, **SHOWN) | {"name": schedule.name, "description": "edited"}
    assert admin_client.post(page(schedule), sent).status_code == 302
    assert stored(schedule.name) == STORED


@pytest.mark.parametrize(
    ("filled", "became"),
    [
        ({"text": ""}, {"text": ""}),
        ({"text": "hello"}, {}),
        ({"lines": "b\r\nc"}, {"lines": ["b", "c"]}),
        ({"lines": ""}, {"lines": []}),
        ({"number": "2"}, {"number": 2}),
        ({"flag": "true"}, {"flag": True}),
        ({"flag": "false"}, {"flag": False}),
        ({"note": "x"}, {"note": "x"}),
        ({"body": "\r\n"}, {"body": "\n"}),
    ],
)
def test_it_stores_only_the_fields_that_differ_from_their_defaults(admin_client, filled, became):
    untouched = {"text": "hello", "lines": "a", "number": "1", "flag": "unknown", "note": "", "body": ""}
    assert admin_client.post(NEW, typed("tests.kinds", **untouched | filled)).status_code == 302
    assert stored() == became


@pytest.mark.parametrize(
    "kwargs", ['{"lines": ["a\\nb"]}', '{"lines": [" a"]}', '{"body": "\\ud800"}', "[" * 900 + "]" * 900, '["text"]']
)
def test_it_shows_json_when_fields_cannot_show_the_stored_arguments(admin_client, kwargs):
    schedule = make_schedule(task="tests.kinds", kwargs=kwargs)
    html = admin_client.get(page(schedule)).content.decode()
    assert 'name="kwargs"' in html
    assert "argument_" not in html


def test_it_accepts_a_page_with_fields_after_the_stored_arguments_changed(admin_client):
    schedule = make_schedule(task="jobs.cleanup", kwargs={"colour": 1})
    sent = typed("jobs.cleanup", schedule, succeeded_days=9, other_days=180, file_days=30) | {"name": schedule.name}
    assert admin_client.post(page(schedule), sent).status_code == 302
    assert stored(schedule.name) == {"succeeded_days": 9}


@pytest.mark.parametrize("task", ["tests.nothing", "tests.gone"])
def test_it_shows_the_fields_of_the_chosen_job_on_the_page_of_another_job(admin_client, task):
    schedule = make_schedule(task=task)
    html = admin_client.get(page(schedule), {"regtask": CALL}).content.decode()
    assert f'<option value="{CALL}" selected>' in html
    assert 'name="argument_url"' in html


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ('{"a": "\\ud800"}', "Enter a valid JSON."),
        ('{"a": %s}' % ("9" * 5000), "Enter a valid JSON."),
        ('{"a": "1", "a": "2"}', "Enter a valid JSON."),
        ('{"a": NaN}', "Enter a valid JSON."),
        ('{"secret:KEY": "a"}', "put secrets into values of headers"),
    ],
)
def test_it_refuses_invalid_json_beside_its_field(admin_client, headers, complaint):
    found = complaints(admin_client.post(NEW, typed(url="/", headers=headers)))
    assert any(complaint in each for each in found)
