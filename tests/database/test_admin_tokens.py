"""The admin's pages of API tokens: who makes, sees and revokes which ones, and where the secret shows."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import PeriodicTask

from jobs.admin.tokens import scopes_of
from jobs.models import ApiToken, AuditEntry, database_now
from jobs.models.tokens import digest_of
from tests.database.test_admin import text
from tests.database.test_typed import complaints
from tests.making import make_schedule
from tests.servers import ROOT

pytestmark = pytest.mark.django_db

NEW, ALL = reverse("admin:jobs_apitoken_add"), reverse("admin:jobs_apitoken_changelist")
VIEW_RUN, ADD_RUN, ADD_USER = "jobs.view_run", "jobs.add_run", "auth.add_user"
SECRET = re.compile(r'id="secret" type="text" value="([^"]+)"')


def make_user(name: str, *codenames: str) -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    assert user.user_permissions.count() == len(codenames)
    return user


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def ada() -> Client:
    """A client whose user may make tokens and work with runs."""
    return client_of(make_user("ada", "add_apitoken", "delete_apitoken", "view_run", "add_run", "add_user"))


def asked(**fields: object) -> dict[str, object]:
    """The form data of a new token."""
    return {"name": "ci", "scopes": [VIEW_RUN, ADD_RUN], "jobs": "", "schedules": "", "rate": 60} | fields


def make(client: Client, **fields: object) -> tuple[ApiToken, str]:
    page = client.post(NEW, asked(**fields))
    return ApiToken.objects.get(name=fields.get("name", "ci")), unescape(SECRET.search(page.content.decode())[1])


def page_of(token: ApiToken) -> str:
    return reverse("admin:jobs_apitoken_change", args=[token.pk])


def test_it_shows_the_secret_of_a_new_token_once(ada):
    page = ada.post(NEW, asked())
    (secret,) = SECRET.findall(page.content.decode())
    token = ApiToken.objects.get()
    assert (token.digest, token.user.username, token.created_by) == (digest_of(secret), "ada", "ada")
    assert (token.scopes, token.jobs, token.schedules, token.rate) == ([ADD_RUN, VIEW_RUN], [], [], 60)
    assert "no-store" in page["Cache-Control"]
    for address in (ALL, page_of(token), NEW):
        assert secret not in ada.get(address).content.decode()
    assert secret not in str(dict(ada.session))
    assert ApiToken.objects.admit(secret).token == token
    entry = AuditEntry.objects.get()
    assert (entry.kind, entry.act, entry.actor, entry.door, entry.key) == (
        "token",
        "add",
        "ada",
        "admin",
        str(token.pk),
    )
    assert secret not in f"{entry.before} {entry.after}"


def test_it_loads_the_copy_button_as_a_file(ada):
    page = ada.post(NEW, asked()).content.decode()
    assert 'src="/static/jobs/copy.js"' in page
    assert 'data-copy="#secret" hidden' in page
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=", page)
    assert finders.find("jobs/copy.js")


def test_it_has_one_button_because_each_would_show_the_secret(ada):
    assert re.findall(r'<input type="submit"[^>]* name="(\w+)"', ada.get(NEW).content.decode()) == ["_save"]


def test_it_offers_the_permissions_of_the_user_that_the_api_asks_for(ada):
    offered = re.findall(r'name="scopes" value="([^"]+)"', ada.get(NEW).content.decode())
    assert sorted(offered) == [ADD_RUN, VIEW_RUN]
    root = {scope for _, group in scopes_of(User.objects.create_superuser("root")) for scope, _ in group}
    assert {VIEW_RUN, ADD_RUN, "jobs.change_run", "jobs.start:jobs.cleanup"} < root
    assert {"django_celery_beat.delete_periodictask", "jobs.add_storedfile", "jobs.view_node"} < root
    assert not {ADD_USER, "jobs.add_apitoken", "jobs.delete_run", "jobs.delete_apitoken"} & root


def test_it_offers_every_permission_that_the_api_names():
    modules = [path.read_text() for path in ROOT.glob("jobs/web/api/*.py")]
    named = {name for module in modules for name in re.findall(r'@needs\("(\w+\.\w+)"', module)}
    offered = {scope for _, group in scopes_of(User.objects.create_superuser("root")) for scope, _ in group}
    assert named <= offered


@pytest.mark.parametrize("scope", ["jobs.change_run", ADD_USER, "jobs.add_apitoken", "x", ""])
def test_it_gives_no_token_more_than_its_user_has(ada, scope):
    (found,) = complaints(ada.post(NEW, asked(scopes=[scope])))
    assert "is not one of the available choices" in found
    assert not ApiToken.objects.exists()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scopes": []}, "This field is required."),
        ({"name": ""}, "This field is required."),
        ({"name": "a\tb"}, "Write the name of a token in one line."),
        ({"jobs": "tests.nothin"}, "No job is named 'tests.nothin'"),
        ({"schedules": "no such"}, "No schedule is named “no such”"),
        ({"rate": 0}, "greater than or equal to 1"),
        ({"rate": 10**30}, "less than or equal to"),
        ({"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}, "Choose an expiry in the next hundred years"),
        ({"expires_at_0": "9999-12-31", "expires_at_1": "23:59"}, "Choose an expiry in the next hundred years"),
    ],
)
def test_it_refuses_a_token_that_would_never_work(ada, wrong, sentence):
    page = ada.post(NEW, asked(**wrong))
    assert sentence in text(page)
    assert not ApiToken.objects.exists()


def test_it_refuses_a_name_twice(ada):
    make(ada)
    assert "API token with this Name already exists." in text(ada.post(NEW, asked()))
    assert ApiToken.objects.count() == 1


def test_it_limits_a_token_to_jobs_and_schedules(ada):
    schedule = make_schedule("nightly, 1")
    expiry = {"expires_at_0": "2090-01-01", "expires_at_1": "12:00:00"}
    token, _ = make(ada, jobs=" tests.nothing\n\nbilling.*\n", schedules="nightly, 1\n", **expiry)
    assert (token.jobs, token.schedules) == (["billing.*", "tests.nothing"], [schedule.pk])
    page = text(ada.get(page_of(token)))
    assert "billing.*, tests.nothing, “nightly, 1”" in page
    assert "2090-01-01 12:00:00" in page
    PeriodicTask.objects.filter(pk=schedule.pk).delete()
    assert f"schedule {schedule.pk} (deleted)" in text(ada.get(page_of(token)))


def test_it_shows_users_their_own_tokens_only(ada):
    mine, _ = make(ada)
    other, _ = make(client_of(make_user("bob", "add_apitoken", "view_run")), name="other", scopes=[VIEW_RUN])
    seen = text(ada.get(ALL))
    assert "ci" in seen
    assert "other" not in seen
    assert ada.get(page_of(other)).status_code == 302
    ada.post(page_of(other), {"revoke": "Revoke"})
    ada.post(ALL, {"action": "revoke", "_selected_action": [other.pk]})
    assert not ApiToken.objects.exclude(revoked_at=None).exists()
    seen = text(client_of(make_user("eve", "change_apitoken")).get(ALL))
    assert "ci" in seen
    assert "other" in seen
    assert client_of(make_user("dan", "view_run")).get(ALL).status_code == 403
    assert client_of(make_user("zoe", "view_run")).get(page_of(mine)).status_code == 403


def test_it_revokes_tokens_on_their_page_and_in_the_list(ada):
    (first, secret), (second, _) = make(ada, name="first"), make(ada, name="second")
    AuditEntry.objects.all().delete()
    assert "1 token was revoked" in text(ada.post(page_of(first), {"revoke": "Revoke"}, follow=True))
    assert ApiToken.objects.admit(secret).token is None
    page = ada.get(page_of(first))
    assert 'value="Revoke"' not in page.content.decode()
    assert "revoked" in text(page)
    revoking = {"action": "revoke", "_selected_action": [first.pk, second.pk]}
    assert "1 token was revoked" in text(ada.post(ALL, revoking, follow=True))
    assert "No token was revoked" in text(ada.post(ALL, revoking, follow=True))
    entries = AuditEntry.objects.filter(act="revoke", kind="token", door="admin", actor="ada")
    assert sorted(entries.values_list("name", flat=True)) == ["first", "second"]
    assert AuditEntry.objects.count() == 2


def test_it_revokes_tokens_of_others_for_users_who_may_change_tokens(ada):
    token, _ = make(ada)
    eve = client_of(make_user("eve", "change_apitoken"))
    assert "1 token was revoked" in text(eve.post(page_of(token), {"revoke": "Revoke"}, follow=True))
    assert AuditEntry.objects.latest("id").actor == "eve"


def test_it_deletes_tokens_and_frees_their_names(ada):
    (first, secret), (second, _) = make(ada, name="first"), make(ada, name="second")
    AuditEntry.objects.all().delete()
    ada.post(page_of(first), {"revoke": "Revoke"})
    assert ada.post(reverse("admin:jobs_apitoken_delete", args=[first.pk]), {"post": "yes"}).status_code == 302
    ada.post(ALL, {"action": "delete_selected", "_selected_action": [second.pk], "post": "yes"})
    assert not ApiToken.objects.exists()
    assert ApiToken.objects.admit(secret).token is None
    acts = AuditEntry.objects.order_by("id").values_list("act", "name", "actor")
    done = [("revoke", "first"), ("delete", "first"), ("revoke", "second"), ("delete", "second")]
    assert list(acts) == [(act, name, "ada") for act, name in done]
    make(ada, name="first")


def test_it_deletes_no_token_of_others_or_without_the_permission(ada):
    mine, _ = make(ada)
    bob = client_of(make_user("bob", "add_apitoken", "delete_apitoken", "view_run"))
    eve = client_of(make_user("eve", "change_apitoken"))
    for client in (bob, eve):
        client.post(reverse("admin:jobs_apitoken_delete", args=[mine.pk]), {"post": "yes"})
        client.post(ALL, {"action": "delete_selected", "_selected_action": [mine.pk], "post": "yes"})
    assert ApiToken.objects.get() == mine


def test_it_changes_no_token(ada):
    token, _ = make(ada)
    before = ApiToken.objects.values().get()
    root = client_of(User.objects.create_superuser("root"))
    root.post(page_of(token), asked(name="other", scopes=[VIEW_RUN], revoke=""))
    after = ApiToken.objects.values().get()
    assert {**before, "revoked_at": None} == {**after, "revoked_at": None}


def test_it_filters_tokens_by_state(ada):
    def listed(client: Client, name: str) -> list[str]:
        return re.findall(r'/change/[^"]*">(\w+)</a>', client.get(ALL, {"state": name}).content.decode())

    _, expired, revoked = (make(ada, name=name)[0] for name in ("usable", "expired", "revoked"))
    ApiToken.objects.filter(pk=expired.pk).update(expires_at=database_now() - timedelta(seconds=1))
    ada.post(page_of(revoked), {"revoke": "Revoke"})
    for name in ("usable", "expired", "revoked"):
        assert listed(ada, name) == [name]
    assert ada.get(ALL, {"state": "x"}).status_code == 302
    User.objects.update(is_active=False)
    root = client_of(User.objects.create_superuser("root"))
    assert "its user is disabled" in text(root.get(ALL))
    assert listed(root, "usable") == []
