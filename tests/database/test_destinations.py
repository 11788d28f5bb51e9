"""A secret goes only to its hosts and jobs: the form refuses others, and so does the worker."""

import json

import pytest
from django_celery_beat.models import PeriodicTask

from jobs.ledger import requests
from jobs.rules.errors import Invalid
from jobs.tasks.http_call import http_call
from jobs.toolkit import reveal
from tests.database.test_admin import NEW, form, text
from tests.making import inside, make_run, make_schedule
from tests.web import Web, serving

CANARY = "canary-7f3a"
HEADERS = {"Authorization": "Bearer secret:BILLING"}
BODY = '{"key": "secret:BILLING"}'


@pytest.fixture(autouse=True)
def _secrets(settings):
    settings.JOB_SECRETS = {"BILLING": CANARY, "HOMELESS": CANARY}
    settings.SECRET_HOSTS = {"BILLING": ["api.example.org"]}
    settings.SECRET_JOBS = {}


CASES = [
    ("https://evil.example/", {"headers": HEADERS}, "BILLING may not go to https://evil.example: SECRET_HOSTS_BILLING"),
    ("https://evil.example/", {"body": BODY}, "BILLING may not go to https://evil.example: SECRET_HOSTS_BILLING"),
    (
        "http://api.example.org/",
        {"headers": HEADERS},
        "may not go to http://api.example.org: SECRET_HOSTS_BILLING allows",
    ),
    ("https://api.example.org:8443/", {"body": BODY}, "may not go to https://api.example.org:8443"),
    ("/livez", {"headers": HEADERS}, "BILLING may not go to http://127.0.0.1"),
    (
        "https://api.example.org/",
        {"body": "secret:HOMELESS"},
        "HOMELESS may not go to any host: set SECRET_HOSTS_HOMELESS",
    ),
    ("https://api.example.org/", {"headers": {"a": "secret:NOPE"}}, "No secret is named NOPE: set JOB_SECRET_NOPE"),
    ("https://api.example.org@evil.example/", {"body": BODY}, "contains a user name"),
    ("https://api.example.org/secret:BILLING", {}, "cannot name a secret"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("url", "arguments", "why"), CASES)
def test_it_refuses_a_secret_for_another_host_when_a_schedule_is_saved(admin_client, settings, url, arguments, why):
    settings.JOB_SECRETS = {"HOMELESS": CANARY} if "HOMELESS" in why else {}  # a web process has no values
    every = make_schedule("other").interval_id
    given = {"url": url, **arguments}
    page = text(admin_client.post(NEW, form(task="jobs.http_call", kwargs=json.dumps(given), interval=every)))
    assert why in page
    assert not PeriodicTask.objects.filter(name="new").exists()
    fields = {
        f"argument_{name}": value if isinstance(value, str) else json.dumps(value) for name, value in given.items()
    }
    typed = form(task="jobs.http_call", arguments_of="jobs.http_call", interval=every, **fields)
    assert why in text(admin_client.post(NEW, typed))
    with pytest.raises(Invalid):
        requests.start("jobs.http_call", given, "code")
    assert not PeriodicTask.objects.filter(name="new").exists()


@pytest.mark.parametrize(("url", "arguments", "why"), CASES)
def test_it_refuses_a_secret_for_another_host_in_the_worker(web: Web, url, arguments, why):
    with pytest.raises(ValueError, match=why.replace(".", r"\.")):
        http_call(url, "POST", **arguments)
    assert web.asked == []


def test_it_takes_no_secret_to_the_host_of_a_redirect(web: Web, settings):
    settings.HTTP_ALLOW_PRIVATE = True
    settings.SECRET_HOSTS = {"BILLING": [web.address]}
    with serving({"/": b"ok"}) as stranger:
        web.redirects = {"/away": f"{stranger.address}/"}
        http_call("/away", "GET", HEADERS)
        assert stranger.asked == ["GET /"]
        assert "authorization" not in stranger.headers[0]
        assert CANARY not in str(stranger.headers) + str(stranger.bodies)
        with pytest.raises(ValueError, match="redirects the request body"):
            http_call("/away", "PUT", HEADERS, BODY)
        assert len(stranger.asked) == 1


@pytest.mark.django_db
def test_it_reveals_a_secret_without_a_host_only_in_the_listed_jobs(settings):
    assert reveal("secret:BILLING") == CANARY  # a shell
    with inside(make_run(state="running")):
        with pytest.raises(
            Invalid, match=r"tests\.nothing uses the secret BILLING without a host: list the job in SECRET"
        ):
            reveal("secret:BILLING")
        assert reveal("secret:BILLING", "https://api.example.org/") == CANARY
        settings.SECRET_JOBS = {"BILLING": ["billing.*"]}
        for to in (None, "https://api.example.org/"):
            with pytest.raises(
                Invalid, match=r"tests\.nothing may not use the secret BILLING: SECRET_JOBS_BILLING allows"
            ):
                reveal("secret:BILLING", to)
        settings.SECRET_JOBS = {"BILLING": ["billing.*", "tests.nothing"]}
        assert reveal("secret:BILLING") == CANARY
        with pytest.raises(Invalid, match=r"may not go to https://evil\.example"):
            reveal("secret:BILLING", "https://evil.example/")


@pytest.mark.django_db
def test_it_refuses_a_secret_of_other_jobs_when_a_schedule_is_saved(admin_client, settings):
    settings.SECRET_JOBS = {"BILLING": ["billing.*"]}
    every = make_schedule("other").interval_id
    deep = json.dumps({"a": [{"b": "secret:BILLING"}]}).replace("secret", "secr\\u0065t")
    why = "tests.nothing may not use the secret BILLING: SECRET_JOBS_BILLING allows billing.*."
    assert why in text(admin_client.post(NEW, form(kwargs=deep, interval=every)))
    assert why in text(admin_client.post(NEW, form(args='["secret:BILLING"]', interval=every)))
    free = form(args='["secret:sauce"]', interval=every)  # no secret: any text may hold these words
    assert admin_client.post(NEW, free).status_code == 302
