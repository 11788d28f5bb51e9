"""The admin's pages of audit entries: what they show, to whom, and how the pages of rows lead to them."""

import re
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from jobs.admin.guard import AUDITED
from jobs.models import Act, Actor, AuditEntry, Door, Kind
from jobs.models.audit import Changed, note
from jobs.schedules import acts
from tests.database.test_admin import text
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db

ALL = reverse("admin:jobs_auditentry_changelist")


def client_of(name: str, *codenames: str) -> Client:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def auditor() -> Client:
    return client_of("eve", "view_auditentry", "view_periodictask", "view_run")


def make_entry(actor: str = "ada", act: Act = Act.CHANGE, kind: Kind = Kind.SCHEDULE, **columns) -> AuditEntry:
    values = {"key": "7", "name": "nightly", "before": None, "after": None} | columns
    summary, door = values.pop("summary", ""), values.pop("door", Door.ADMIN)
    note(Actor(actor, door=door), kind, act, [Changed(**values)], summary)
    return AuditEntry.objects.latest("id")


def page_of(entry: AuditEntry) -> str:
    return reverse("admin:jobs_auditentry_change", args=[entry.pk])


def listed(client: Client, **filters: str) -> list[str]:
    """The names of the rows in a list of entries."""
    page = client.get(ALL, filters)
    assert page.status_code == 200
    return re.findall(r'field-row">(?:<a [^>]*>)?[^<“]*“([^”]*)”', page.content.decode())


def test_it_shows_who_did_what_through_which_door(auditor):
    make_entry("ada", Act.PAUSE, summary="Paused for the move.", door=Door.SHELL)
    page = text(auditor.get(ALL))
    for shown in ("ada", "Shell", "Pause", "Schedule “nightly”", "Paused for the move."):
        assert shown in page


def test_it_shows_the_changed_columns_before_and_after(auditor):
    before = {"queue": "a", "kwargs": {"month": 1}, "same": 1}
    entry = make_entry(before=before, after={"queue": "b", "kwargs": {"month": 2}, "same": 1})
    page = re.sub(r"\s+", " ", auditor.get(page_of(entry)).content.decode())
    cells = "<tr><th>{}</th><td><pre>{}</pre></td><td><pre>{}</pre></td></tr>"
    assert cells.format("queue", "a", "b") in page
    assert cells.format("kwargs", "{ &quot;month&quot;: 1 }", "{ &quot;month&quot;: 2 }") in page
    assert "same" not in page
    new = auditor.get(page_of(make_entry(act=Act.ADD, after={"queue": "b"}))).content.decode()
    assert cells.format("queue", "–", "b") in new


def test_it_shows_durations_in_words(auditor):
    schedule = make_schedule()
    values = {"catch_up_window": timedelta(hours=1), "jitter": timedelta(seconds=90), "retry_delay": timedelta(0.5)}
    acts.save(schedule, {**values, "time_limit": 7200, "max_attempts": 60}, "ada", [])
    page = auditor.get(page_of(AuditEntry.objects.get())).content.decode()
    cells = dict(re.findall(r"<tr><th>(\w+)</th><td><pre>.*?</pre></td><td><pre>(.*?)</pre></td></tr>", page))
    assert cells == {
        "catch_up_window": "1 hour",
        "jitter": "90 seconds",
        "max_attempts": "60",
        "retry_delay": "12 hours",
        "time_limit": "2 hours",
    }
    assert "<td><pre>1 day</pre></td>" in page
    entry = make_entry(before={"jitter": 10**20, "time_limit": "***"}, after={"jitter": 0, "time_limit": True})
    odd = auditor.get(page_of(entry)).content.decode()
    assert f"<td><pre>1{'0' * 20}</pre></td><td><pre>0 seconds</pre></td>" in odd
    assert "<td><pre>***</pre></td><td><pre>true</pre></td>" in odd


def test_it_offers_no_history_of_an_entry(auditor):
    page = auditor.get(page_of(make_entry())).content.decode()
    assert "History" not in page
    assert "/history/" not in page


def test_it_masks_a_secret_that_is_newer_than_the_entry(auditor, settings):
    entry = make_entry(before={"kwargs": "key canary-5b1f77"}, after={"kwargs": "none"})
    assert "canary-5b1f77" in auditor.get(page_of(entry)).content.decode()
    settings.JOB_SECRETS = {"CANARY": "canary-5b1f77"}
    page = auditor.get(page_of(entry)).content.decode()
    assert "canary-5b1f77" not in page
    assert "key ***" in page


def test_it_escapes_what_an_entry_holds(auditor):
    evil = "<script>alert(1)</script>"
    entry = make_entry(evil, name=evil, summary=evil, before={evil: evil}, after={evil: [evil]})
    for address in (ALL, page_of(entry)):
        page = auditor.get(address).content.decode()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_it_filters_entries_by_door_act_kind_and_actor(auditor):
    make_entry("ada", Act.PAUSE, name="first", door=Door.API)
    make_entry("bob & co", Act.RETRY, Kind.RUN, name="second", door=Door.SHELL)
    assert listed(auditor, door__exact="api") == ["first"]
    assert listed(auditor, act__exact="retry") == ["second"]
    assert listed(auditor, kind__exact="run") == ["second"]
    assert listed(auditor, actor="bob & co") == ["second"]
    assert listed(auditor, actor="zoe") == []
    assert listed(auditor) == ["second", "first"]
    page = auditor.get(ALL).content.decode()
    assert page.count('href="?actor=bob') + page.count('href="/admin/jobs/auditentry/?actor=bob') == 2
    assert auditor.get(ALL, {"actor__contains": "a"}).status_code == 400
    assert auditor.get(ALL, {"door__exact": "x"}).status_code == 302


def test_it_finds_entries_by_the_beginning_of_a_name_and_by_key(auditor):
    make_entry(name="nightly export", key="12")
    make_entry(name="weekly", key="13")
    assert listed(auditor, q="night") == ["nightly export"]
    assert listed(auditor, q="13") == ["weekly"]
    assert listed(auditor, q="xport") == []


def test_it_links_to_the_row_of_each_kind_but_not_to_a_deleted_one(auditor):
    assert {kind for kind, _ in AUDITED.values()} == set(Kind)
    here = {f"{model._meta.app_label}_{model._meta.model_name}" for model in admin.site._registry}
    for name, (kind, prefix) in AUDITED.items():
        page = auditor.get(page_of(make_entry(kind=kind, key=f"{prefix}a/_b"))).content.decode()
        address = reverse(f"admin:{name}_change", args=[quote("a/_b")]) if name in here else "/change/"
        assert (f'href="{address}"' in page) == (name in here)
    deleted = auditor.get(page_of(make_entry(act=Act.DELETE))).content.decode()
    assert "/periodictask/" not in deleted


def test_it_leads_from_the_page_of_a_row_to_its_entries(auditor):
    schedule, run = make_schedule(), make_run()
    acts.pause(type(schedule).objects.filter(pk=schedule.pk), "ada", "move", None, "none")
    make_entry(kind=Kind.RUN, key=run.pk, name="its run")
    make_entry(kind=Kind.RUN, key=schedule.pk, name="a run with the key of the schedule")
    for page, key, names in (
        ("django_celery_beat_periodictask", schedule.pk, ["it"]),
        ("jobs_run", run.pk, ["its run"]),
    ):
        address = reverse(f"admin:{page}_history", args=[key])
        assert f'href="{address}"' in auditor.get(reverse(f"admin:{page}_change", args=[key])).content.decode()
        leads = auditor.get(address)
        assert leads.status_code == 302
        found = re.findall(r'field-row">(?:<a [^>]*>)?[^<“]*“([^”]*)”', auditor.get(leads.url).content.decode())
        assert found == names


def test_it_leads_to_the_entries_of_a_row_whatever_its_key(auditor):
    leads = auditor.get(reverse("admin:jobs_resourceversion_history", args=[quote("a_/&b")]))
    assert leads.url == f"{ALL}?kind__exact=resource&key__exact=a_%2F%26b"


def test_it_leads_from_the_page_of_a_timing_to_its_entries(auditor):
    interval = make_schedule().interval
    interval.every += 1
    acts.save_timing(interval, "ada")
    leads = auditor.get(reverse("admin:django_celery_beat_intervalschedule_history", args=[interval.pk]))
    assert listed(auditor, kind__exact="timing", key__exact=f"interval {interval.pk}") == [str(interval)]
    assert leads.url == f"{ALL}?kind__exact=timing&key__exact=interval+{interval.pk}"


def test_it_shows_the_entries_only_to_users_who_may_view_them(auditor):
    entry, schedule = make_entry(), make_schedule()
    viewer = client_of("viewer", "view_periodictask")
    assert viewer.get(ALL).status_code == viewer.get(page_of(entry)).status_code == 403
    history = viewer.get(reverse("admin:django_celery_beat_periodictask_history", args=[schedule.pk]))
    assert history.status_code == 200  # Django's own page, which shows what the admin noted


def test_it_neither_changes_nor_deletes_an_entry():
    entry = make_entry()
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    assert root.post(page_of(entry), {"actor": "eve"}).status_code == 403
    assert root.get(reverse("admin:jobs_auditentry_add")).status_code == 403
    assert root.post(reverse("admin:jobs_auditentry_delete", args=[entry.pk]), {"post": "yes"}).status_code == 403
    root.post(ALL, {"action": "delete_selected", "_selected_action": [entry.pk], "post": "yes"})
    assert AuditEntry.objects.get() == entry


def test_it_names_the_changed_columns_of_an_act_without_a_sentence(admin_client):
    make_entry("ada", before={"jitter": 0, "queue": "a"}, after={"jitter": 300, "queue": "a"})
    assert "Changed: jitter." in text(admin_client.get(reverse("admin:jobs_auditentry_changelist")))
