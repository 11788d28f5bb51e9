"""A webhook starts one run of the job of its source, however often it arrives; nothing that is forged starts any."""

import hmac
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest
from django.db import InternalError, OperationalError, connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs.models import AuditEntry, Run, State, Trigger, Webhook, WebhookSource, database_now
from jobs.toolkit import webhooks
from jobs.web.hooks import receive
from tests.pure.test_signatures import BODY, KEYS, OLDER, OTHER, PLAIN, STANDARD, signed
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db
ADDRESS = "/hooks/shop"
MINUTE = timedelta(minutes=1)
GONE = {"job": "tests.gone"}, {"job": "tests.note", "arguments": {}}, {"keys": "LOST"}, {"form": "standard"}


@pytest.fixture(autouse=True)
def _keys(settings) -> None:
    settings.WEBHOOK_KEYS = {"PLAIN": [PLAIN], "STANDARD": [STANDARD], "BOTH": [STANDARD, OTHER]}


def make_source(form: str = "github", **columns: Any) -> WebhookSource:
    row = {"keys": "STANDARD" if form == "standard" else "PLAIN", "job": "tests.nothing", "arguments": {"shop": 7}}
    return WebhookSource.objects.create(**{"name": "shop", "form": form, **row, **columns})


def headers_of(form: str = "github", **options: Any) -> dict[str, str]:
    """What a sender signs now, by the database's clock."""
    return signed(form, **{"at": database_now(), **options})


def send(client: Client, headers: dict[str, str], body: bytes = BODY, address: str = ADDRESS, **options: Any):
    return client.generic("POST", address, body, **{"content_type": "application/json", "headers": headers, **options})


def outcome(response) -> tuple[int, str]:
    return response.status_code, json.loads(response.content)["error"]


def nothing_ran() -> bool:
    return not Run.objects.exists() and not Webhook.objects.exists() and not AuditEntry.objects.exists()


# --- taken ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", KEYS)
def test_it_starts_the_job_of_the_source_once_for_each_event(form):
    source = make_source(form)
    client = Client(enforce_csrf_checks=True)
    response = send(client, headers_of(form) | {"authorization": "Bearer x" * 9, "webhook-kind": "paid"})
    assert response.status_code == 202
    run, webhook = Run.objects.get(), Webhook.objects.get()
    assert json.loads(response.content) == {"run": str(run.id)}
    assert (run.task, run.kwargs) == ("tests.nothing", {"shop": 7, "webhook": str(webhook.id)})
    assert (run.trigger, run.actor, run.key) == (Trigger.WEBHOOK, "shop", f"webhook:{source.pk}:{webhook.event}")
    assert (webhook.source, webhook.source_name, webhook.run_id) == (source, "shop", run.id)
    assert (bytes(webhook.body), webhook.content_type) == (BODY, "application/json")
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.door, entry.act, entry.kind, entry.key) == (
        "shop",
        "webhook",
        "start",
        "run",
        str(run.id),
    )

    again = send(client, headers_of(form, at=database_now() - MINUTE))
    assert (again.status_code, json.loads(again.content)) == (202, {"run": str(run.id)})
    assert (Run.objects.count(), Webhook.objects.count(), AuditEntry.objects.count()) == (1, 1, 1)
    assert not response.cookies


def test_it_takes_a_replay_of_github_with_another_id_for_the_same_event(client):
    make_source()
    for delivery in ("1", "2"):
        assert (
            send(client, headers_of() | {"x-github-delivery": delivery, "x-github-event": delivery}).status_code == 202
        )
    assert Run.objects.count() == 1
    assert send(client, headers_of(body=b"{}"), b"{}").status_code == 202
    assert Run.objects.count() == 2


def test_it_takes_events_of_one_id_from_two_sources_for_two(client):
    make_source("standard", name="one")
    make_source("standard", name="two")
    for name in ("one", "two", "one"):
        assert send(client, headers_of("standard"), address=f"/hooks/{name}").status_code == 202
    assert Run.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_it_makes_one_run_of_deliveries_that_arrive_at_once():
    make_source()
    headers, barrier = headers_of(), threading.Barrier(4)

    def deliver(_: int) -> bytes:
        try:
            barrier.wait(DEADLINE)
            response = send(Client(), headers)
            assert response.status_code == 202
            return response.content
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(deliver, range(4)))
    assert answers == {json.dumps({"run": str(Run.objects.get().id)}).encode()}
    assert Webhook.objects.get().run_id == Run.objects.get().id


def test_it_takes_each_key_while_a_sender_changes_it(client, settings):
    make_source("standard", keys="BOTH")
    for number, key in enumerate((STANDARD, OTHER)):
        assert send(client, headers_of("standard", key=key, event=f"evt_{number}")).status_code == 202
    settings.WEBHOOK_KEYS["BOTH"] = [OTHER]
    assert send(client, headers_of("standard", event="evt_2")).status_code == 401
    assert Run.objects.count() == 2


@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-8",
        "application/cloudevents+json",
        "application/x-www-form-urlencoded",
        "Application/JSON",
    ],
)
def test_it_takes_json_and_forms(client, kind):
    make_source()
    assert send(client, headers_of(), content_type=kind).status_code == 202


def test_it_answers_a_repeat_with_the_first_run_also_if_the_source_has_another_job_now(client):
    source = make_source()
    first = send(client, headers_of())
    WebhookSource.objects.filter(pk=source.pk).update(job="tests.gone")
    assert send(client, headers_of()).content == first.content


# --- refused --------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[str, Callable[[], dict[str, str]], int]] = [
    ("standard", dict, 401),
    ("standard", lambda: headers_of("standard", key=OTHER), 401),
    ("standard", lambda: headers_of("standard", at=database_now() - 6 * MINUTE), 401),
    ("standard", lambda: headers_of("standard", at=database_now() + 6 * MINUTE), 401),
    ("standard", lambda: headers_of("standard") | {"webhook-id": "another"}, 401),
    ("standard", lambda: headers_of("standard") | {"webhook-timestamp": "soon"}, 400),
    ("github", dict, 401),
    ("github", lambda: headers_of(key=OLDER), 401),
    ("github", lambda: headers_of(body=b"{}"), 401),
    ("github", lambda: headers_of() | {"x-hub-signature-256": "x" * 5_000}, 400),
    ("stripe", dict, 401),
    ("stripe", lambda: headers_of("stripe", key=OLDER), 401),
    ("stripe", lambda: headers_of("stripe", at=database_now() - 6 * MINUTE), 401),
    ("stripe", lambda: {"stripe-signature": "v1=1"}, 400),
]


@pytest.mark.parametrize(("form", "headers", "status"), REFUSED)
def test_it_refuses_what_no_key_has_signed_now_and_says_no_more(client, form, headers, status):
    make_source(form)
    told = outcome(send(client, headers()))
    assert told == (
        (401, "This webhook has no valid signature: check the key and the clock of the sender.")
        if status == 401
        else (400, "This webhook cannot be read: check its headers and its body.")
    )
    assert nothing_ran()


def test_it_refuses_a_signed_body_without_an_id(client):
    make_source("stripe")
    assert outcome(send(client, headers_of("stripe", body=b"[]"), b"[]"))[0] == 400
    assert nothing_ran()


@pytest.mark.parametrize("form", ["github", "standard"])
def test_it_takes_the_same_steps_for_an_unknown_and_a_disabled_source(client, form, monkeypatch):
    hashed: list[int] = []
    digest = hmac.digest
    monkeypatch.setattr(hmac, "digest", lambda *args: hashed.append(len(args[1])) or digest(*args))
    make_source(form, is_enabled=False)
    seen = []
    for address in ("/hooks/shop", "/hooks/nope", f"/hooks/{'x' * 60}"):
        for headers in (headers_of("standard"), headers_of(), {}):
            hashed.clear()
            with CaptureQueriesContext(
                connection,
            ) as queries:
                response = send(client, headers, address=address)
            statements = [query["sql"].replace(address.rpartition("/")[2], "NAME") for query in queries]
            told = {name: text for name, text in response.headers.items() if name != "X-Request-ID"}
            seen.append((response.status_code, response.content, told, list(hashed), statements))
    assert seen[:3] == seen[3:6] == seen[6:]
    assert (seen[0][0], len(seen[0][3])) == (404, 1)
    assert sum("jobs_webhooksource" in statement for statement in seen[0][4]) == 1
    assert nothing_ran()


def test_it_takes_the_same_steps_for_a_forged_delivery_as_for_one_of_an_unknown_source(client, monkeypatch):
    hashed: list[int] = []
    digest = hmac.digest
    monkeypatch.setattr(hmac, "digest", lambda *args: hashed.append(len(args[1])) or digest(*args))
    make_source("standard", refused_at=database_now())
    counts = []
    for address in (ADDRESS, "/hooks/nope"):
        headers = headers_of("standard", key=OTHER)
        hashed.clear()
        with CaptureQueriesContext(connection) as queries:
            assert send(client, headers, address=address).status_code in {401, 404}
        counts.append((len(hashed), [query["sql"] for query in queries if not query["sql"].startswith("UPDATE")]))
    assert counts[0][0] == counts[1][0] == 1
    assert len(counts[0][1]) == len(counts[1][1]) > 0


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"content_type": "text/plain"}, 415),
        ({"content_type": ""}, 415),
        ({"content_type": "application/jsonx"}, 415),
        ({"content_type": "multipart/form-data; boundary=b"}, 415),
        ({"CONTENT_LENGTH": ""}, 411),
        ({"CONTENT_LENGTH": "soon"}, 411),
        ({"CONTENT_LENGTH": "1000001"}, 413),
        ({"CONTENT_LENGTH": "9" * 300}, 413),
    ],
)
def test_it_refuses_a_request_by_its_length_and_type_before_it_reads_the_body(client, options, status):
    make_source()
    assert send(client, headers_of(), **options).status_code == status
    assert nothing_ran()


def test_it_refuses_a_file_without_reading_it(client):
    make_source()
    response = client.post(ADDRESS, {"file": BytesIO(b"x" * 1000)}, headers=headers_of())
    assert outcome(response)[0] == 415


def test_it_takes_a_body_of_a_million_bytes(client):
    make_source()
    body = b"x" * 1_000_000
    assert send(client, headers_of(body=body), body).status_code == 202
    assert send(client, headers_of(body=b"x" + body), b"x" + body).status_code == 413


def test_it_refuses_a_large_body_also_in_a_project_without_the_middleware_of_this_one(rf):
    body = b"x" * 1_000_001
    assert outcome(receive(rf.post(ADDRESS, body, content_type="application/json"), "shop"))[0] == 413


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_takes_no_other_method(client, method):
    make_source()
    response = client.generic(method, ADDRESS, BODY, content_type="application/json", headers=headers_of())
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


def test_it_notes_and_logs_refused_deliveries_once_a_minute(client, caplog):
    source = make_source("standard")
    for _ in range(3):
        send(client, headers_of("standard", key=OTHER))
        send(client, {})
    source.refresh_from_db()
    [line] = [record.message for record in caplog.records if record.name == "jobs.ledger.webhooks"]
    assert line == "A webhook of source shop was refused; forged: no key of this source made its signature."
    assert source.refused_reason == "forged: no key of this source made its signature."
    assert database_now() - source.refused_at < MINUTE

    WebhookSource.objects.update(refused_at=database_now() - MINUTE)
    send(client, headers_of("standard", at=database_now() - 6 * MINUTE))
    send(client, {}, address="/hooks/nope")
    source.refresh_from_db()
    assert source.refused_reason.startswith("old: it was signed ")
    assert len([record for record in caplog.records if record.name == "jobs.ledger.webhooks"]) == 2


# --- what the site cannot take now ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", GONE)
def test_it_lets_the_sender_repeat_what_the_site_cannot_start_now(client, columns, caplog):
    make_source()
    WebhookSource.objects.update(**columns)
    headers = headers_of()
    for _ in range(2):
        response = send(client, headers)
        assert outcome(response) == (503, "This site cannot take the webhook now: send it again later.")
        assert response.headers["Retry-After"] == "60"
    assert nothing_ran()
    assert len([record for record in caplog.records if record.name == "jobs.ledger.webhooks"]) == 1
    WebhookSource.objects.update(job="tests.nothing", keys="PLAIN", form="github")
    assert send(client, headers).status_code == 202


def test_it_does_not_hide_its_own_fault_behind_forged_deliveries(client, caplog):
    source = make_source()
    send(client, {})
    WebhookSource.objects.update(job="tests.gone")
    for _ in range(3):
        send(client, headers_of())
        send(client, {})
    source.refresh_from_db()
    assert source.refused_reason.startswith("No job is named 'tests.gone'.")
    assert len([record for record in caplog.records if record.name == "jobs.ledger.webhooks"]) == 2


@pytest.mark.parametrize("error", [OperationalError("the server is away"), InternalError("read-only transaction")])
def test_it_lets_the_sender_repeat_while_the_database_is_unavailable(client, error, caplog):
    make_source()

    def fail(*_: Any) -> None:
        raise error

    headers = headers_of()
    with connection.execute_wrapper(fail):
        response = send(client, headers)
    assert outcome(response) == (503, "This site cannot take the webhook now: send it again later.")
    assert response.headers["Retry-After"] == "60"
    [record] = [record for record in caplog.records if record.name == "jobs.web.hooks"]
    assert (record.levelno, bool(record.exc_info)) == (logging.ERROR, isinstance(error, InternalError))
    assert send(client, headers).status_code == 202


@pytest.mark.django_db(transaction=True)
def test_it_lets_the_sender_repeat_also_where_each_request_is_a_transaction(client, monkeypatch):
    """In a project with ATOMIC_REQUESTS, Django would begin the transaction before the view, and answer 500."""
    make_source()
    headers = headers_of()
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    client.raise_request_exception = False
    connection.close()
    monkeypatch.setattr(connection, "connect", unavailable)
    answer = send(client, headers)
    monkeypatch.undo()
    assert (answer.status_code, answer["Retry-After"]) == (503, "60")
    assert nothing_ran()


def unavailable() -> None:
    raise OperationalError("the server is away")


def test_it_leaves_nothing_of_a_delivery_whose_row_cannot_be_written(client):
    make_source()

    def fail(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if sql.startswith("INSERT") and Webhook._meta.db_table + '"' in sql:
            raise OperationalError("the disk is full")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        assert send(client, headers_of()).status_code == 503
    assert nothing_ran()


# --- what a job reads -----------------------------------------------------------------------------------------------


def test_it_gives_a_job_what_was_signed_and_no_signature(client, settings):
    make_source("stripe")
    settings.JOB_SECRETS = {"A": "canary-1234"}
    extra = {"stripe-account": "acct canary-1234", "stripe-odd": "caf\xe9", "cookie": "a=b", "x-remote-user": "ada"}
    send(client, headers_of("stripe") | extra)
    webhook = Webhook.objects.get()
    sent = webhooks.read(str(webhook.id))
    assert sent == webhooks.read(webhook.id)
    assert (sent.source, sent.event, sent.body, sent.json()) == ("shop", "evt_1", BODY, json.loads(BODY))
    assert sent.content_type == "application/json"
    assert sent.headers == {"stripe-account": "acct ***", "stripe-odd": "caf\xe9"}
    assert sent.received_at == webhook.received_at
    assert "evt_1" in repr(sent)
    assert "object" not in repr(sent)


def test_it_reads_the_payload_of_a_form_of_github(client):
    make_source()
    body = b"payload=%7B%22action%22%3A+%22opened%22%7D&x=1"
    send(client, headers_of(body=body), body, content_type="application/x-www-form-urlencoded; charset=utf-8")
    assert webhooks.read(Webhook.objects.get().id).json() == {"action": "opened"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b" ", "application/json"),
        (b"a=1", "application/x-www-form-urlencoded"),
        (b"payload=%ff\xff", "application/x-www-form-urlencoded"),
        (b"a=1&" * 100_000, "application/x-www-form-urlencoded"),
    ],
)
def test_it_says_when_a_body_is_not_json(client, body, kind):
    make_source()
    assert send(client, headers_of(body=body), body, content_type=kind).status_code == 202
    with pytest.raises(ValueError, match=r"^The webhook \w+ of shop is not JSON: "):
        webhooks.read(Webhook.objects.get().id).json()


def test_it_keeps_a_webhook_as_long_as_its_run(client):
    source = make_source()
    send(client, headers_of())
    key = Webhook.objects.get().id
    source.delete()
    assert webhooks.read(key).source == "shop"
    Run.objects.update(state=State.SUCCEEDED, finished_at=database_now())
    Run.objects.all().delete()
    for lost in (key, uuid4(), "nonsense", ""):
        with pytest.raises(webhooks.NoWebhookError, match="it is deleted together with its run"):
            webhooks.read(lost)
