"""Celery gets the settings of its namespace, whatever their names, and prints none of the secrets in them."""

from types import SimpleNamespace

from celery.app.defaults import DEFAULTS
from celery.worker import state as worker_state
from celery.worker.control import Panel
from django.conf import settings as django_settings

from jobs.worker.reports import mask_replies
from project.celery import app
from project.conf import own

URL, SHOWN = "https://ada:canary-1234@example.com/", "https://ada:***@example.com/"


def test_it_gives_celery_only_settings_of_its_namespace():
    named = {name for name in dir(django_settings) if name.startswith("CELERY_")}
    assert {f"CELERY_{name.upper()}" for name in own} == named
    assert set(own) - set(DEFAULTS) == {"db_reuse_max"}  # of Celery's support for Django
    assert not {name for name in app.conf.without_defaults() if name.isupper()}


def test_it_gives_celery_what_a_project_adds_to_its_settings(settings):
    settings.CELERY_TASK_ROUTES = {"billing.*": {"queue": "billing"}}
    settings.CELERY_TASK_ROUTS = "misspelt"
    settings.CELERYD_CONCURRENCY = 3  # as Celery 3 called it
    assert app.conf.task_routes == settings.CELERY_TASK_ROUTES
    assert (app.conf.get("CELERY_DB_REUSE_MAX"), app.conf["db_reuse_max"]) == (settings.CELERY_DB_REUSE_MAX,) * 2
    assert (app.conf.worker_concurrency, app.conf.timezone) == (3, "UTC")
    assert "task_routs: 'misspelt'" in app.conf.humanize()  # the report shows the mistake
    assert app.conf.get("secret_key") is None


def test_it_masks_every_address_and_job_secret_in_a_report(settings):
    settings.JOB_SECRETS = {"BILLING": "canary-5678"}
    settings.CELERY_BEAT_SCHEDULE = {
        "call": {"args": [URL], "kwargs": {"urls": ({"url": URL},), "note": "canary-5678"}}
    }
    settings.CELERY_BROKER_READ_URL = f"redis://:canary-1234@one/0;{URL}"
    settings.CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"sentinel_kwargs": {"password": "canary-1234"}}
    settings.CELERY_BROKER_FAILOVERS = [URL]
    report = app.bugreport()
    assert SHOWN in report
    assert "canary" not in report


def test_it_masks_every_address_and_job_secret_in_the_replies_of_a_worker(settings):
    settings.JOB_SECRETS = {"BILLING": "canary-5678"}
    settings.CELERY_BEAT_SCHEDULE = {
        "call": {"args": [URL], "kwargs": {"urls": ({"url": URL},), "note": "canary-5678"}}
    }
    for _ in range(2):
        mask_replies()
    conf = Panel.data["conf"](SimpleNamespace(app=app), with_defaults=True)
    masked = {"args": [SHOWN], "kwargs": {"urls": [{"url": SHOWN}], "note": "***"}}
    assert conf["beat_schedule"]["call"] == masked
    assert (conf["task_acks_late"], conf["worker_prefetch_multiplier"]) == (False, 1)
    assert app.conf.beat_schedule == settings.CELERY_BEAT_SCHEDULE


def test_it_masks_the_arguments_of_tasks_in_the_replies_of_a_worker(settings, monkeypatch):
    settings.JOB_SECRETS = {"BILLING": "canary-5678"}
    mask_replies()
    request = SimpleNamespace(id="it", info=lambda **_: {"args": ["canary-5678"], "kwargs": {"password": "hunter2"}})
    monkeypatch.setitem(worker_state.requests, "it", request)
    monkeypatch.setattr(worker_state, "active_requests", [request])
    state = SimpleNamespace(app=app, tset=list)
    for reply in (Panel.data["query_task"](state, ids=["it"])["it"][1], Panel.data["active"](state)[0]):
        assert reply == {"args": ["***"], "kwargs": {"password": "***"}}
