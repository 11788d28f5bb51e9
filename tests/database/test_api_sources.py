"""The API lists, makes and changes sources of webhooks, shows what they have sent, and lists and revokes tokens."""

import json

import pytest
from django.test import Client

from jobs.models import Act, ApiToken, AuditEntry, Door, Run, Webhook, WebhookSource
from tests.api import Caller, checked, make_caller, make_token, make_user
from tests.database.test_hooks import headers_of, make_source, send
from tests.pure.test_signatures import PLAIN, STANDARD

pytestmark = pytest.mark.django_db(transaction=True)

SOURCES, WEBHOOKS, TOKENS = "/api/webhook-sources", "/api/webhooks", "/api/tokens"
EDITING = [*(f"jobs.{act}_webhooksource" for act in ("view", "add", "change", "delete")), "jobs.add_run"]
NEW = {"name": "shop", "form": "github", "keys": "PLAIN", "job": "tests.nothing", "arguments": {"shop": 7}}


@pytest.fixture(autouse=True)
def _keys(settings) -> None:
    settings.WEBHOOK_KEYS = {"PLAIN": [PLAIN], "STANDARD": [STANDARD]}


@pytest.fixture
def editor() -> Caller:
    return make_caller("eve", *EDITING)


def test_it_makes_a_source_that_takes_webhooks_and_changes_and_deletes_it(editor, client):
    made = editor.post(SOURCES, NEW, 201)
    assert {name: made[name] for name in NEW} == NEW
    assert (made["is_enabled"], made["refused_at"], made["refused_reason"]) == (True, None, "")
    address = f"{SOURCES}/{made['id']}"
    assert editor.get(address) == made
    assert editor.get(SOURCES) == {"items": [made], "next": None}
    assert send(client, headers_of()).status_code == 202
    assert editor.patch(address, {"is_enabled": False}) == {**made, "is_enabled": False}
    assert send(client, headers_of(body=b"{}"), b"{}").status_code == 404
    editor.delete(address)
    editor.get(address, 404)
    editor.patch(address, {}, 404)
    editor.delete(address, 404)
    acts = AuditEntry.objects.filter(kind="webhook source").order_by("id")
    assert [(each.act, each.door, each.actor, each.token) for each in acts] == [
        (act, Door.API, "eve", "eve 0") for act in (Act.ADD, Act.CHANGE, Act.DELETE)
    ]
    assert PLAIN not in str(made)


def test_it_notes_no_change_of_a_source_that_changes_nothing(editor):
    address = f"{SOURCES}/{editor.post(SOURCES, NEW, 201)['id']}"
    AuditEntry.objects.all().delete()
    for body in ({}, NEW, {"arguments": {"shop": 7}}):
        editor.patch(address, body)
    assert not AuditEntry.objects.filter(kind="webhook source").exists()
    assert editor.patch(address, {"arguments": {"shop": True}})["arguments"] == {"shop": True}
    editor.patch(address, {"arguments": {"shop": 1}})
    notes = AuditEntry.objects.filter(kind="webhook source").order_by("id").values_list("before", "after")
    seven, true, one = ({"arguments": {"shop": value}} for value in (7, True, 1))
    assert json.dumps(list(notes)) == json.dumps([(seven, true), (true, one)])


def test_it_lists_sources_by_name_page_by_page(editor):
    for name in "cab":
        make_source(name=name)
    first = editor.get(f"{SOURCES}?limit=2")
    assert [row["name"] for row in (*first["items"], *editor.get(first["next"])["items"])] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "no slug"}, "body/name"),
        ({"form": "none"}, "body/form"),
        ({"keys": "LOST"}, "no keys named LOST"),
        ({"keys": "PLAIN", "form": "standard"}, "base64"),
        ({"job": "tests.none"}, "No job is named"),
        ({"job": "tests.note", "arguments": {"path": "x"}}, "takes the argument `webhook`"),
        ({"arguments": {"webhook": "x"}}, "Leave out the argument"),
        ({"arguments": {"a": "\0"}}, "control characters"),
        ({"arguments": {"a": "https://eve:pass@example.org/"}}, "password"),
        ({"arguments": []}, "body/arguments"),
        ({"unknown": 1}, "body/unknown"),
        ({"name": None}, "body/name"),
    ],
)
def test_it_refuses_a_source_that_could_start_nothing(editor, changes, sentence):
    make_source(name="other")
    source = make_source(form="github")
    before = list(WebhookSource.objects.values())
    assert sentence in editor.patch(f"{SOURCES}/{source.pk}", changes, 422)["detail"]
    source.delete()
    before.pop()
    assert sentence in editor.post(SOURCES, {**NEW, **changes}, 422)["detail"]
    assert list(WebhookSource.objects.values()) == before
    assert not AuditEntry.objects.filter(kind="webhook source").exists()


def test_it_answers_409_to_a_name_in_use(editor):
    make_source(name="other")
    source = make_source(form="github")
    before = list(WebhookSource.objects.order_by("pk").values())
    assert "Name already exists." in editor.patch(f"{SOURCES}/{source.pk}", {"name": "other"}, 409)["detail"]
    assert "Name already exists." in editor.post(SOURCES, {**NEW, "name": "other"}, 409)["detail"]
    wrong = {"name": "other", "keys": "x" * 99, "job": "tests.nothing"}
    assert "no keys named" in editor.patch(f"{SOURCES}/{source.pk}", wrong, 422)["detail"]
    assert list(WebhookSource.objects.order_by("pk").values()) == before
    assert not AuditEntry.objects.filter(kind="webhook source").exists()


@pytest.mark.parametrize("depth", [30, 500, 5000, 100_000])
def test_it_refuses_arguments_that_are_nested_too_deeply(editor, depth):
    text = '{"name": "shop", "keys": "PLAIN", "form": "github", "job": "tests.nothing", "arguments": {"a": %s}}'
    answer = editor.client.post(SOURCES, text % ("[" * depth + "]" * depth), "application/json")
    assert answer.status_code in {400, 422}, answer.content


def test_it_says_which_permission_is_missing_before_it_looks_at_the_values():
    wrong = {**NEW, "keys": "LOST"}
    source = make_source()
    starter = make_caller("starter", "jobs.add_run", "jobs.view_webhooksource")
    assert "jobs.add_webhooksource" in starter.post(SOURCES, wrong, 403)["detail"]
    assert "jobs.change_webhooksource" in starter.patch(f"{SOURCES}/{source.pk}", wrong, 403)["detail"]
    editor = make_caller("editor", *(name for name in EDITING if name != "jobs.add_run"))
    assert "jobs.add_run" in editor.post(SOURCES, wrong, 403)["detail"]
    for path in (SOURCES, f"{SOURCES}/{source.pk}", WEBHOOKS):
        make_caller(f"stranger {path}", "jobs.view_run").get(path, 403)


def test_it_lets_a_limited_token_meet_only_the_sources_and_webhooks_of_its_jobs(client):
    mine, other = make_source(name="mine"), make_source(name="other", job="jobs.heartbeat")
    for source in (mine, other):
        WebhookSource.objects.filter(pk=source.pk).update(job="tests.nothing", arguments={})
        assert send(client, headers_of(), address=f"/hooks/{source.name}").status_code == 202
    WebhookSource.objects.filter(pk=other.pk).update(job="tests.note_webhook", arguments={"path": "x"})
    Run.objects.filter(webhook__source=other).update(task="tests.other")
    allowed = (*EDITING, "jobs.view_webhook")
    for number, jobs in enumerate((["tests.nothing"], ["tests.noth*"])):
        limited = make_caller(f"limited {number}", *allowed, jobs=jobs)
        assert [row["name"] for row in limited.get(SOURCES)["items"]] == ["mine"]
        (seen,) = limited.get(WEBHOOKS)["items"]
        assert seen["source"] == mine.pk
        limited.get(f"{WEBHOOKS}/{Webhook.objects.get(source=other).pk}", 404)
        address = f"{SOURCES}/{other.pk}"
        limited.get(address, 404)
        limited.patch(address, {"is_enabled": False}, 404)
        limited.delete(address, 404)
        assert "limited" in limited.patch(f"{SOURCES}/{mine.pk}", {"job": "jobs.heartbeat"}, 403)["detail"]
    of_schedule = make_caller("of schedule", *allowed, schedules=[mine.pk])
    assert of_schedule.get(SOURCES)["items"] == []


def test_it_shows_what_was_sent_with_secrets_masked(client):
    one, two = make_source(name="one"), make_source(name="two")
    body = b'{"password": "hunter2hunter2", "a": "\xff"}'
    for source in (one, two):
        headers = headers_of(body=body) | {"x-github-event": "push", "authorization": "Bearer x"}
        assert send(client, headers, body, f"/hooks/{source.name}").status_code == 202
    reader = make_caller("reader", "jobs.view_webhook")
    assert [row["source_name"] for row in reader.get(WEBHOOKS)["items"]] == ["two", "one"]
    (line,) = reader.get(f"{WEBHOOKS}?source={one.pk}")["items"]
    webhook = Webhook.objects.get(source=one)
    assert (line["id"], line["run"], line["size"]) == (str(webhook.pk), str(webhook.run_id), len(body))
    whole = reader.get(f"{WEBHOOKS}/{webhook.pk}")
    assert whole == {**line, "headers": {"x-github-event": "push"}, "body": whole["body"]}
    assert '"a": "\\xff"' in whole["body"]
    assert "hunter2" not in whole["body"]
    Webhook.objects.filter(pk=webhook.pk).update(body=b"x" * 30_000)
    assert len(reader.get(f"{WEBHOOKS}/{webhook.pk}")["body"]) <= 20_000
    webhook.run.delete()
    reader.get(f"{WEBHOOKS}/{webhook.pk}", 404)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_it_lets_a_token_see_and_revoke_itself():
    tom = make_caller("tom", "jobs.view_run", jobs=["billing.*"], rate=7)
    make_caller("eve", "jobs.view_run")
    foreign = ApiToken.objects.get(user__username="eve")
    make_token(tom.user, "jobs.view_run")
    (seen,) = tom.get(TOKENS)["items"]
    shown = ("name", "user", "scopes", "jobs", "schedules", "rate", "state", "is_used", "created_by")
    assert [seen[name] for name in shown] == [
        "tom 0",
        "tom",
        ["jobs.view_run"],
        ["billing.*"],
        [],
        7,
        "usable",
        True,
        "test",
    ]
    assert tom.secret.startswith(seen["hint"])
    assert tom.secret not in str(seen)
    tom.post(f"{TOKENS}/{foreign.pk}/revoke", status=404)
    assert tom.post(f"{TOKENS}/{seen['id']}/revoke")["state"] == "revoked"
    tom.get(TOKENS, 401)
    entry = AuditEntry.objects.get(act=Act.REVOKE)
    assert (entry.actor, entry.door, entry.token, entry.name) == ("tom", Door.API, "tom 0", "tom 0")


def test_it_lets_a_token_that_may_only_view_tokens_revoke_no_other_one():
    tom = make_caller("tom", "jobs.view_apitoken")
    make_token(tom.user, "jobs.view_apitoken")
    make_caller("eve", "jobs.view_apitoken")
    seen = tom.get(TOKENS)["items"]
    assert [(row["name"], row["is_used"]) for row in seen] == [("tom 0", True), ("tom 1", False)]
    assert "jobs.change_apitoken" in tom.post(f"{TOKENS}/{seen[1]['id']}/revoke", status=403)["detail"]
    assert not ApiToken.objects.exclude(revoked_at=None).exists()


def test_it_lets_who_may_change_tokens_see_and_revoke_those_of_all_users():
    other = make_caller("tom", "jobs.view_run")
    root = make_caller("root", "jobs.change_apitoken")
    seen = root.get(TOKENS)["items"]
    assert [row["user"] for row in seen] == ["root", "tom"]
    for _ in range(2):
        assert root.post(f"{TOKENS}/{seen[1]['id']}/revoke")["state"] == "revoked"
    other.get(TOKENS, 401)
    assert AuditEntry.objects.filter(act=Act.REVOKE).count() == 1


def test_it_lets_a_session_revoke_the_tokens_of_its_user_and_makes_none():
    user = make_user("ada", "jobs.view_apitoken", "jobs.view_run")
    make_token(user, "jobs.view_run")
    browser = Client()
    browser.force_login(user)
    (seen,) = checked(browser.get(TOKENS), 200)["items"]
    assert (seen["is_used"], seen["last_used_at"]) == (False, None)
    assert checked(browser.post(f"{TOKENS}/{seen['id']}/revoke"), 200)["state"] == "revoked"
    checked(browser.post(TOKENS, {}, "application/json"), 405)
    stranger = Client()
    stranger.force_login(make_user("bob"))
    assert "jobs.view_apitoken" in checked(stranger.get(TOKENS), 403)["detail"]
