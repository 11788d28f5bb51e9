"""Our rows belong to the default database; a project's routers decide about all other rows."""

from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.db import router
from django_celery_beat.models import PeriodicTask
from django_celery_results.models import TaskResult

from jobs.models import Run
from jobs.models.routing import Router


@pytest.fixture(autouse=True)
def _project(monkeypatch):
    """A router of a project that wants everything elsewhere, and relates nothing."""
    elsewhere = {name: lambda *_, **__: "elsewhere" for name in ("db_for_read", "db_for_write")}
    refusing = {name: lambda *_, **__: False for name in ("allow_relation", "allow_migrate")}
    monkeypatch.setattr(router, "routers", [*router.routers, SimpleNamespace(**elsewhere, **refusing)])


@pytest.mark.parametrize("model", [Run, PeriodicTask, TaskResult])
def test_it_keeps_our_rows_in_the_default_database_whatever_a_router_says(model):
    assert {router.db_for_read(model), router.db_for_write(model, instance=model())} == {"default"}
    assert router.allow_relation(model(), Run())
    assert router.allow_migrate_model("default", model)
    assert not router.allow_migrate_model("elsewhere", model)


def test_it_leaves_the_project_s_rows_to_its_routers():
    assert {router.db_for_read(User), router.db_for_write(User)} == {"elsewhere"}
    assert not router.allow_relation(User(), Run())
    assert not router.allow_migrate_model("default", User)
    assert Router().allow_migrate("default", "auth") is None
