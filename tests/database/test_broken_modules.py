"""A `tasks.py` that cannot be imported hides no other job, and every door says which file and line to mend."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import current_app
from django.core import checks
from django.urls import reverse
from django_celery_beat.models import PeriodicTask

from jobs.messages import discovery
from jobs.messages.arguments import check_fits, find_task
from jobs.rules.errors import Invalid
from jobs.schedules import entries
from tests.making import make_schedule

pytestmark = pytest.mark.django_db
ERRORS = {
    "import os\n\nimport no_such_module\n": "No module named 'no_such_module'",
    "import os\nimport sys\ndef pay(:\n": "invalid syntax",
    "import decimal\nNO = decimal.Decimal\nNO('x')\n": "InvalidOperation",
    "import os\nimport json\njson.loads('password=hunter2')\n": "Expecting value",
    "import os\nimport sys\nraise LookupError('token=abcdefgh')\n": r"LookupError: token=\*\*\*",
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch) -> Iterator[Callable[[str], Path]]:
    """`shop(text)`: a module of jobs that holds this text, when jobs have been looked for; returns its path."""
    find_task("")
    path = tmp_path / "shop" / "tasks.py"
    path.parent.mkdir()
    (path.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> Path:
        path.write_text(text)
        discovery.load()
        return path

    loader = current_app.loader
    monkeypatch.setattr(loader, "default_modules", (*loader.default_modules, "shop.tasks"), raising=False)

    yield write
    current_app.loader.broken.clear()
    for name in ("shop", "shop.tasks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("text", "error"), ERRORS.items(), ids=str)
def test_it_names_the_file_and_the_line_of_a_broken_module(shop, text, error):
    path = shop(text)
    (sentence,) = discovery.broken()
    assert sentence.startswith(f"The module shop.tasks cannot be imported ({path}, line 3): ")
    with pytest.raises(Invalid, match=f"No job is named 'shop.tasks.pay'. The module shop.tasks cannot be .*{error}"):
        check_fits("shop.tasks.pay", [], {})
    check_fits("tests.nothing", [], {})


def test_it_serves_the_pages_of_schedules_and_shows_which_module_is_broken(shop, admin_client):
    path = shop("import no_such_module\n")
    changed = reverse("admin:django_celery_beat_periodictask_change", args=[make_schedule(task="shop.tasks.pay").pk])
    for name in ("changelist", "add"):
        page = admin_client.get(reverse(f"admin:django_celery_beat_periodictask_{name}"))
        assert (page.status_code, f"{path}, line 1" in page.content.decode()) == (200, True)
    page = admin_client.get(changed)
    assert page.content.decode().count("The module shop.tasks cannot be imported") == 1
    assert "tests.nothing" in page.content.decode()


def test_it_shows_no_module_to_users_who_may_not_see_schedules(shop, client, django_user_model):
    shop("import no_such_module\n")
    client.force_login(django_user_model.objects.create_user("eve", is_staff=True))
    assert client.get(reverse("admin:django_celery_beat_periodictask_changelist")).status_code == 403
    assert b"shop.tasks" not in client.get(reverse("admin:index")).content


def test_it_keeps_the_schedule_of_an_entry_that_a_broken_module_would_add(shop, settings):
    settings.CELERY_BEAT_SCHEDULE = {"job": {"task": "tests.nothing", "schedule": 60}}
    assert entries.install(current_app).changed == 1
    settings.CELERY_BEAT_SCHEDULE = {}
    path = shop("import no_such_module\n")
    assert entries.install(current_app).changed == 0
    assert PeriodicTask.objects.exists()
    path.write_text("")
    assert entries.install(current_app).changed == 1


def test_it_warns_in_the_checks_of_django_until_the_module_is_mended(shop):
    path = shop("import no_such_module\n")
    (warning,) = [message for message in checks.run_checks() if message.id == "jobs.W001"]
    assert warning.msg.startswith(f"The module shop.tasks cannot be imported ({path}, line 1): ")
    path.write_text("")
    assert "jobs.W001" not in {message.id for message in checks.run_checks()}
