"""`manage.py sources`, `webhooks` and `files`: what they print, change and refuse, and their exit status."""

import json
from typing import Any
from uuid import UUID

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client

from jobs.models import Act, AuditEntry, Door, StoredFile, Webhook, WebhookSource, database_now
from jobs.models.audit import Actor
from jobs.toolkit import files
from tests.database.test_commands import EVIL, call
from tests.database.test_hooks import headers_of, make_source, send
from tests.making import make_run
from tests.pure.test_signatures import PLAIN, STANDARD

pytestmark = pytest.mark.django_db

NEW = {"name": "shop", "form": "github", "keys": "PLAIN", "job": "tests.nothing", "arguments": {"shop": 7}}
NO_TERMINAL = "No terminal can confirm it: add --yes."


@pytest.fixture(autouse=True)
def _keys(settings, tmp_path) -> None:
    settings.WEBHOOK_KEYS = {"PLAIN": [PLAIN], "STANDARD": [STANDARD]}
    settings.MEDIA_ROOT = tmp_path / "media"


@pytest.fixture
def form(tmp_path):
    def write(content: Any) -> str:
        path = tmp_path / "form.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def noted() -> list[tuple[str, str, str, str]]:
    return list(AuditEntry.objects.order_by("id").values_list("door", "actor", "act", "kind"))


# --- sources --------------------------------------------------------------------------------------------------------


def test_it_adds_changes_shows_and_deletes_a_source_and_notes_each(form):
    assert call("sources", "list").err == "There is no source of webhooks.\n"
    assert call("sources", "list", "--json").json == []
    made = call("sources", "add", form(NEW), "--json").json
    assert {name: made[name] for name in NEW} == NEW
    assert call("sources", "show", "shop", "--json").json == made == call("sources", "list", "--json").json[0]
    assert (
        call("sources", "change", "shop", form({"name": "store", "is_enabled": False})).out == "Changed source store.\n"
    )
    stored = WebhookSource.objects.get()
    assert (stored.name, stored.is_enabled, stored.arguments) == ("store", False, {"shop": 7})
    assert call("sources", "change", "store", form({})).status == 0
    assert call("sources", "delete", "store", "--yes", "--json").json == {"deleted": 1}
    by = ("shell", Actor.of_shell().name)
    assert noted() == [(*by, act, "webhook source") for act in (Act.ADD, Act.CHANGE, Act.DELETE)]


def test_it_shows_why_a_source_refused_a_request():
    source = make_source()
    WebhookSource.objects.filter(pk=source.pk).update(refused_at=database_now(), refused_reason=EVIL)
    out = call("sources", "show", "shop").out
    assert "\x1b" not in out
    assert "because       \\x1b[2J[red]x[/red]" in out
    assert PLAIN not in out + call("sources", "show", "shop", "--json").out


@pytest.mark.parametrize(
    ("words", "content", "status", "sentence"),
    [
        (["show", "none"], None, 3, "There is no source 'none': `manage.py sources list` shows all."),
        (["change", "none"], {}, 3, "There is no source 'none'"),
        (["delete", "shop", "none", "--yes"], None, 3, "There is no source 'none'"),
        (["delete", "shop"], None, 2, f"Delete 1 source: shop? {NO_TERMINAL}"),
        (["delete", "shop", "--json"], None, 2, NO_TERMINAL),
        (["add"], NEW, 1, "Name already exists."),
        (["add"], {**NEW, "name": "a b"}, 1, "name: "),
        (["add"], {**NEW, "name": "b", "keys": "LOST"}, 1, "no keys named LOST: set WEBHOOK_KEYS_LOST"),
        (["add"], {**NEW, "name": "b", "job": "tests.none"}, 1, "No job is named"),
        (["add"], {"name": "b"}, 1, "Field required"),
        (["add"], {**NEW, "name": "b", "unknown": 1}, 1, "unknown"),
        (["add"], "{", 2, "is not valid JSON"),
        (["change", "shop"], {"arguments": {"webhook": "x"}}, 1, "Leave out the argument"),
        (["change", "shop"], [], 1, "dictionary"),
    ],
)
def test_it_refuses_sources_that_could_start_nothing(form, words, content, status, sentence):
    make_source()
    before = list(WebhookSource.objects.values())
    refused = call("sources", *words, *([] if content is None else [form(content)]))
    assert (refused.status, refused.out) == (status, "")
    assert sentence in refused.err
    assert (list(WebhookSource.objects.values()), noted()) == (before, [])


# --- webhooks -------------------------------------------------------------------------------------------------------


def test_it_lists_webhooks_and_shows_one_with_secrets_masked(settings):
    assert call("webhooks", "list").err == "No webhook matches.\n"
    make_source()
    settings.JOB_SECRETS = {"A": "canary-1234"}
    body = b'{"note": "canary-1234 \x1b"}'
    assert send(Client(), headers_of(body=body) | {"x-github-event": "push"}, body).status_code == 202
    webhook = Webhook.objects.get()
    (listed,) = call("webhooks", "list", "--json").json
    assert (listed["id"], listed["run"], listed["size"]) == (str(webhook.id), str(webhook.run_id), len(body))
    key = str(webhook.id)
    for part in (key, key[-12:], key[:18]):
        shown = call("webhooks", "show", part)
        assert shown.status == 0
        assert '"push"' in shown.out
        assert shown.out.endswith('{"note": "*** \\x1b"}\n')
    assert call("webhooks", "show", key, "--json").json == {
        **listed,
        "headers": webhook.headers,
        "body": '{"note": "*** \x1b"}',
    }
    assert call("webhooks", "list", "--source", "other", "--json").json == []
    assert call("webhooks", "list", "--source", "shop", "--limit", "1").out.count("\n") == 2
    missing = call("webhooks", "show", "ffff")
    assert (missing.status, missing.err) == (3, "There is no webhook 'ffff': it was deleted, or never existed.")


# --- files ----------------------------------------------------------------------------------------------------------


def make_file(name: str = "a.txt", **columns: Any) -> StoredFile:
    path = default_storage.save(f"uploads/{name}", ContentFile(b"text"))
    return StoredFile.objects.create(**{"name": name, "file": path, "size": 4, **columns})


def test_it_lists_files_by_kind_and_run_and_shows_one():
    assert call("files", "list").err == "No file matches.\n"
    run = make_run()
    first, second = make_file(), make_file(EVIL[:9], kind=StoredFile.Kind.REPORT, run_id=run.id, size=None)
    keys = [str(row.id) for row in (second, first)]
    assert [row["id"] for row in call("files", "list", "--json").json] == keys
    assert [row["id"] for row in call("files", "list", "--json", "--kind", "upload").json] == keys[1:]
    assert [row["id"] for row in call("files", "list", "--json", "--run", str(run.id)[-12:]).json] == keys[:1]
    listed = call("files", "list").out
    assert "\x1b" not in listed
    assert "incomplete" in listed
    assert f"path          {first.file.name}\n" in call("files", "show", keys[1][-12:]).out
    assert call("files", "show", keys[1], "--json").json["size"] == 4
    assert call("files", "list", "--run", "ffff").status == 3


def test_it_prints_a_link_that_opens_the_file(client, settings):
    settings.SITE_URL = "https://punctual.example"
    row = make_file()
    linked = call("files", "link", str(row.id))
    assert linked.err == f"Anyone may fetch the file from this address for {files.LINK_DAYS} days.\n"
    address = linked.out.strip().removeprefix(settings.SITE_URL)
    assert b"".join(client.get(address).streaming_content) == b"text"
    assert call("files", "link", str(row.id), "--json").json["days"] == files.LINK_DAYS
    backup = make_file("dump", kind=StoredFile.Kind.BACKUP)
    assert "it contains secrets" in call("files", "link", str(backup.id)).err
    assert call("files", "link", str(make_file("half", size=None).id)).status == 1


def test_it_deletes_files_and_notes_each():
    rows = [make_file(f"{number}.txt", kind=kind) for number, kind in enumerate((StoredFile.Kind.UPLOAD, "backup"))]
    keys = [str(row.id) for row in rows]
    refused = call("files", "delete", keys[0])
    assert (refused.status, refused.err) == (2, f"Delete 1 file: 0.txt? {NO_TERMINAL}")
    assert call("files", "delete", keys[0], "ffff", "--yes").status == 3
    assert StoredFile.objects.count() == 2
    assert call("files", "delete", *keys, keys[0], "--yes").out == "Deleted 2 files.\n"
    assert not StoredFile.objects.exists()
    assert not any(default_storage.exists(row.file.name) for row in rows)
    assert noted() == [(Door.SHELL, Actor.of_shell().name, Act.DELETE, "file")] * 2


def test_it_names_no_file_by_the_part_of_several():
    for start in ("0a", "0b"):
        make_file(id=UUID(f"{start}000000-0000-4000-8000-00000000abcd"))
    several = call("files", "show", "0000abcd")
    assert (several.status, several.err) == (
        2,
        "The ids of several files begin or end with '0000abcd': give more characters.",
    )
