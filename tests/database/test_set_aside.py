"""Rows of items set aside are bounded and masked. Users with the right see them, and the clean-up deletes old ones."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from jobs.models import SetAside, database_now
from jobs.models.set_aside import MOST
from jobs.tasks.cleanup import cleanup
from jobs.worker import set_aside
from tests.waiting import eventually

pytestmark = pytest.mark.django_db


def note(digest: str, **columns: object) -> None:
    SetAside.note(digest, **{"node": "w", "queue": "celery", "why": "it is odd", "size": 1, "excerpt": "x", **columns})


def test_it_counts_the_same_item():
    note("a")
    note("a", node="v")
    item = SetAside.objects.get()
    assert (item.times, item.node) == (2, "v")
    assert item.first_at <= item.last_at


def test_it_keeps_the_newest_rows():
    old = [SetAside(digest=f"{n}", why="x", size=1, last_at=database_now() - timedelta(days=1)) for n in range(MOST)]
    SetAside.objects.bulk_create(old)
    note("new")
    assert SetAside.objects.count() == MOST
    assert SetAside.objects.filter(digest="new").exists()


def test_it_deletes_old_ones_with_the_clean_up():
    note("old")
    note("young")
    SetAside.objects.filter(digest="old").update(last_at=database_now() - timedelta(days=181))
    cleanup()
    assert [item.digest for item in SetAside.objects.all()] == ["young"]


@pytest.mark.django_db(transaction=True)
def test_it_writes_them_in_a_thread_masked_and_storable(settings, caplog):
    settings.JOB_SECRETS = {"IT": "hunter2-and-more"}
    set_aside.note("celery", b"\0\xff hunter2-and-more " + b"x" * 5_000, "it is \ud800 odd")
    item = eventually(SetAside.objects.first)
    assert item.excerpt.startswith("\\0\\xff *** xxx")
    assert (len(item.excerpt), item.size) == (2_000, 5_020)
    assert (item.why, item.queue) == ("it is \\ud800 odd", "celery")
    assert "An item of celery is set aside: it is \\ud800 odd" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_it_notes_a_message_of_any_broker():
    message = SimpleNamespace(headers={"a": object()}, body=b"[]", delivery_info={"routing_key": "mine"})
    set_aside.note_message(message, "it is odd")
    assert eventually(SetAside.objects.first).queue == "mine"


def test_it_shows_them_to_users_who_may_view_them(client):
    note("a", excerpt="<script>")
    user = User.objects.create_user("ada", is_staff=True)
    client.force_login(user)
    pages = [reverse("admin:jobs_setaside_changelist"), reverse("admin:jobs_setaside_change", args=["a"])]
    assert [client.get(page).status_code for page in pages] == [403, 403]
    user.user_permissions.add(Permission.objects.get(codename="view_setaside"))
    found = [client.get(page) for page in pages]
    assert [page.status_code for page in found] == [200, 200]
    assert b"it is odd" in found[0].content
    assert b"&lt;script&gt;" in found[1].content
    assert client.post(reverse("admin:jobs_setaside_delete", args=["a"]), {"post": "yes"}).status_code == 403
