"""Which sources of webhooks may users make in the admin, and what do they see of what was sent?"""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs.ledger import webhooks as received
from jobs.models import Act, Actor, AuditEntry, Door, Kind, Webhook, WebhookSource, database_now
from jobs.rules.errors import Forbidden, Invalid
from tests.database.test_admin import text
from tests.database.test_hooks import headers_of, make_source, send
from tests.pure.test_signatures import PLAIN, STANDARD

pytestmark = pytest.mark.django_db
SOURCES, NEW = reverse("admin:jobs_webhooksource_changelist"), reverse("admin:jobs_webhooksource_add")
RECEIVED = reverse("admin:jobs_webhook_changelist")


@pytest.fixture(autouse=True)
def _keys(settings) -> None:
    settings.WEBHOOK_KEYS = {"PLAIN": [PLAIN], "STANDARD": [STANDARD]}


def permit(user: User, *codenames: str) -> None:
    user.user_permissions.add(*Permission.objects.filter(codename__in=codenames))


@pytest.fixture
def editor(client) -> Client:
    """A client whose user may add and change sources, and start jobs."""
    user = User.objects.create_user("eve", is_staff=True)
    permit(user, "add_webhooksource", "change_webhooksource", "view_webhooksource", "add_run")
    client.force_login(user)
    return client


def fields(**changes: str) -> dict[str, str]:
    usual = {"name": "shop", "form": "github", "keys": "PLAIN", "job": "tests.nothing", "is_enabled": "on"}
    return {**usual, "arguments": '{"shop": 7}', **changes}


def test_it_lets_users_add_change_and_delete_a_source_and_records_each(admin_client, settings):
    settings.SITE_URL = "https://punctual.example"
    assert admin_client.post(NEW, fields()).status_code == 302
    source = WebhookSource.objects.get()
    assert source.arguments == {"shop": 7}
    page = reverse("admin:jobs_webhooksource_change", args=[source.pk])
    shown = text(admin_client.get(page))
    assert "https://punctual.example/hooks/shop" in shown
    assert "Last refused: never" in shown
    assert PLAIN not in shown
    WebhookSource.objects.update(refused_at=database_now(), refused_reason="forged: by eve")
    assert admin_client.post(page, fields(arguments="", job="jobs.heartbeat")).status_code == 200
    assert admin_client.post(page, fields(arguments="")).status_code == 302
    assert "forged: by eve" in text(admin_client.get(SOURCES))
    assert (
        admin_client.post(reverse("admin:jobs_webhooksource_delete", args=[source.pk]), {"post": "yes"}).status_code
        == 302
    )
    seen = [
        (each.act, each.kind, each.actor, each.door, each.before, each.after)
        for each in AuditEntry.objects.order_by("id")
    ]
    columns = {"name": "shop", "form": "github", "keys": "PLAIN", "job": "tests.nothing", "is_enabled": True}
    source = (Kind.SOURCE, "admin", Door.ADMIN)
    assert seen == [
        (Act.ADD, *source, None, {**columns, "arguments": {"shop": 7}}),
        (Act.CHANGE, *source, {"arguments": {"shop": 7}}, {"arguments": {}}),
        (Act.DELETE, *source, {**columns, "arguments": {}}, None),
    ]


def test_it_notes_no_saved_source_that_a_user_did_not_change(admin_client):
    assert admin_client.post(NEW, fields()).status_code == 302
    AuditEntry.objects.all().delete()
    page = reverse("admin:jobs_webhooksource_change", args=[WebhookSource.objects.get().pk])
    assert admin_client.post(page, fields()).status_code == 302
    assert not AuditEntry.objects.exists()


def test_it_deletes_selected_sources_and_records_each(admin_client):
    rows = [make_source(name=f"s{number}") for number in range(2)]
    data = {"action": "delete_selected", "_selected_action": [row.pk for row in rows], "post": "yes"}
    assert admin_client.post(SOURCES, data).status_code == 302
    assert not WebhookSource.objects.exists()
    assert sorted(AuditEntry.objects.values_list("act", "name")) == [("delete", "s0"), ("delete", "s1")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"job": "tests.note", "arguments": '{"path": "/x"}'}, "A job for webhooks takes the argument `webhook`."),
        ({"job": "jobs.http_call"}, "The arguments do not fit 'jobs.http_call'"),
        ({"arguments": '{"webhook": "x"}'}, "Leave out the argument `webhook`"),
        ({"arguments": "[1]"}, "The arguments must be a JSON object."),
        ({"arguments": '{"a": NaN}'}, "Enter a valid JSON."),
        ({"arguments": '{"a": "\\u0000"}'}, "control characters or broken Unicode"),
        ({"arguments": '{"a": "https://ada:pass@example.org/"}'}, "A URL contains a password"),
        ({"arguments": "[" * 5_000}, "Enter a valid JSON."),
        ({"form": "standard"}, "A key of Standard Webhooks is base64 after whsec_"),
        ({"keys": "LOST"}, "Select a valid choice."),
        ({"job": "jobs.etl.load"}, "Select a valid choice."),
        ({"job": "tests.gone"}, "Select a valid choice."),
        ({"name": "a b"}, "Enter a valid “slug”"),
        ({"name": ""}, "This field is required."),
    ],
)
def test_it_refuses_a_source_that_could_start_nothing(admin_client, changes, sentence):
    assert sentence in text(admin_client.post(NEW, fields(**changes)))
    assert not WebhookSource.objects.exists()


def test_it_offers_only_jobs_that_the_user_may_start(editor):
    page = editor.get(NEW).content.decode()
    assert 'value="tests.nothing"' in page
    assert 'value="jobs.run_command"' not in page
    assert "Select a valid choice." in text(editor.post(NEW, fields(job="jobs.cleanup")))


def test_it_leaves_sources_of_restricted_jobs_to_users_with_the_right(editor, settings):
    source = make_source()
    settings.RESTRICTED_JOBS = ["tests.nothing"]
    page = reverse("admin:jobs_webhooksource_change", args=[source.pk])
    assert "eve may not change or start tests.nothing" in text(editor.get(page))
    assert editor.post(page, fields(job="jobs.heartbeat")).status_code == 403
    permit(User.objects.get(), "delete_webhooksource")
    data = {"action": "delete_selected", "_selected_action": [source.pk], "post": "yes"}
    assert "Left out: “shop”" in text(editor.post(SOURCES, data, follow=True))
    assert editor.post(reverse("admin:jobs_webhooksource_delete", args=[source.pk]), {"post": "yes"}).status_code == 403
    assert WebhookSource.objects.get().job == "tests.nothing"
    assert not AuditEntry.objects.exists()


def test_it_needs_the_permission_to_start_jobs_for_a_source(editor):
    User.objects.get().user_permissions.remove(Permission.objects.get(codename="add_run"))
    assert "eve lacks the permission jobs.add_run" in text(editor.post(NEW, fields()))
    assert not WebhookSource.objects.exists()


def test_it_checks_in_the_act_itself_who_may_save_and_delete_a_source(settings):
    source, user = make_source(), User.objects.create_user("eve")
    needed = ["add_run", "change_webhooksource", "delete_webhooksource", "add_webhooksource"]

    def refused(act: Callable[..., object], row: WebhookSource) -> str:
        with pytest.raises(Forbidden) as error:
            act(row, Actor.of_user(User.objects.get(), Door.API))
        return str(error.value)

    def delete(row: WebhookSource, actor: Actor) -> int:
        return received.delete([row], actor)

    assert "jobs.delete_webhooksource" in refused(delete, source)
    assert "jobs.change_webhooksource" in refused(received.save, source)
    assert "jobs.add_webhooksource" in refused(
        received.save, WebhookSource(name="b", form="github", keys="PLAIN", job="tests.nothing")
    )
    permit(user, *needed[1:])
    assert "jobs.add_run" in refused(received.save, source)
    permit(user, *needed)
    settings.RESTRICTED_JOBS = ["tests.nothing"]
    source.job, source.arguments = "tests.note_webhook", {"path": "x"}  # the stored one needs the right
    assert "may not change or start tests.nothing" in refused(received.save, source)
    assert "may not change or start tests.nothing" in refused(delete, source)
    assert not AuditEntry.objects.exists()


def test_it_refuses_keys_that_the_site_does_not_have():
    with pytest.raises(Invalid, match="have no keys named LOST: set WEBHOOK_KEYS_LOST for them"):
        received.save(WebhookSource(name="b", form="github", keys="LOST", job="tests.nothing"), "code")


def test_it_keeps_a_refusal_that_was_noted_while_a_user_edited_the_source():
    source = make_source()
    WebhookSource.objects.update(refused_at=database_now(), refused_reason="forged")
    source.is_enabled = False
    received.save(source, "code")
    assert (WebhookSource.objects.get().refused_reason, WebhookSource.objects.get().is_enabled) == ("forged", False)


def test_it_shows_what_was_received_with_secrets_masked_and_changes_nothing(admin_client, settings):
    source = make_source()
    settings.JOB_SECRETS = {"A": "canary-1234"}
    body = b'{"password": "hunter2", "note": "canary-1234 \xff", "html": "<b>"}'
    send(Client(), headers_of(body=body) | {"x-github-event": "push"}, body)
    webhook = Webhook.objects.get()
    listed = text(admin_client.get(f"{RECEIVED}?source__id__exact={source.pk}"))
    assert "1 webhook" in listed
    assert webhook.event in listed
    page = reverse("admin:jobs_webhook_change", args=[webhook.pk])
    shown = admin_client.get(page).content.decode()
    assert "push" in shown
    assert "&lt;b&gt;" in shown
    assert "canary" not in shown
    assert "hunter2" not in shown
    assert reverse("admin:jobs_run_change", args=[webhook.run_id]) in shown
    assert admin_client.post(page, {"event": "other"}).status_code == 403
    assert admin_client.get(reverse("admin:jobs_webhook_add")).status_code == 403
    assert webhook.event in text(admin_client.get(f"{RECEIVED}?q={webhook.id}"))
    assert "0 webhooks" in text(admin_client.get(f"{RECEIVED}?q=other"))


def test_it_reads_no_body_for_the_list(admin_client):
    make_source()
    send(Client(), headers_of())
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(RECEIVED)
    assert not [query for query in queries if '"jobs_webhook"."body",' in query["sql"]]


def test_it_shows_bodies_to_users_who_may_view_webhooks_only(editor):
    make_source()
    send(Client(), headers_of())
    page = reverse("admin:jobs_webhook_change", args=[Webhook.objects.get().pk])
    assert editor.get(page).status_code == 403
    permit(User.objects.get(), "view_webhook")
    assert editor.get(page).status_code == 200
