"""The API refuses requests with problem documents, knows its senders, and describes itself to staff."""

import json
from datetime import timedelta
from types import ModuleType
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.wsgi import get_wsgi_application
from django.db import OperationalError, connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import include, path

from jobs.models import Alert, Channel, Run, Silence, State, StoredFile, Webhook, database_now, new_run_id
from jobs.models.tokens import ApiToken
from jobs.web.api.urls import REFUSALS
from tests.api import Caller, checked, make_caller, make_token, make_user, problem_of
from tests.database.test_hooks import make_source
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db(transaction=True)

RUNS = "/api/runs"


@pytest.fixture
def browser():
    """The session of a superuser in a browser, which sends no CSRF token by itself."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("ada"))
    return client


@pytest.fixture
def reader():
    return make_caller("reader", "jobs.view_run")


def csrf_token_of(client):
    return client.get("/api/docs").content.decode().partition('data-csrf-token="')[2].partition('"')[0]


def test_it_asks_a_stranger_for_a_token_and_reads_no_body():
    stranger = Client(enforce_csrf_checks=True)
    for address in (RUNS, f"{RUNS}/{uuid4()}", "/api/jobs", "/api/files", "/api/nodes", "/api/statistics"):
        answer = stranger.get(address)
        assert "in the header Authorization, after “Bearer”" in checked(answer, 401)["detail"]
        assert answer["WWW-Authenticate"] == 'Bearer realm="api"'
    for address in (RUNS, "/api/uploads", "/api/nothing"):
        checked(stranger.post(address, {"job": "tests.nothing"}, "application/json"), 401)
    assert not Run.objects.exists()


def test_it_answers_every_refusal_of_the_site_with_a_problem(browser, reader):
    assert "nothing at this address" in reader.get("/api/nothing", 404)["detail"]
    assert "GET, HEAD, POST" in checked(reader.client.put(RUNS), 405)["detail"]
    assert {*reader.client.put(RUNS)["Allow"].split(", ")} == {"GET", "HEAD", "POST"}
    large = reader.client.generic("POST", RUNS, "x", "application/json", CONTENT_LENGTH="9999999999")
    assert "too large" in checked(large, 413)["detail"]
    assert "X-CSRFToken" in checked(browser.post(RUNS, {"job": "tests.nothing"}, "application/json"), 403)["detail"]
    foreign = Client(headers={"host": "elsewhere.example"})
    checked(foreign.get(RUNS), 400)
    assert browser.get("/nothing")["Content-Type"].startswith("text/html")


def failing(table: str, error: Exception):
    """Within the block, every statement that reads this table raises the error."""

    def fail(execute, sql, *rest):
        if f'"{table}"' in sql:
            raise error
        return execute(sql, *rest)

    return connection.execute_wrapper(fail)


@pytest.mark.parametrize("debug", [False, True])
def test_it_answers_an_error_in_the_site_without_its_text(reader, settings, debug):
    settings.DEBUG = debug
    reader.client.raise_request_exception = False
    for accept in ("application/json", "text/html"):
        with failing("jobs_run", ZeroDivisionError("a secret text")):
            detail = reader.get(RUNS, 500, Accept=accept)["detail"]
        assert "ask its operator" in detail
        assert "secret" not in detail


@pytest.mark.parametrize("table", ["jobs_run", "jobs_apitoken"])
def test_it_asks_to_try_again_while_the_database_is_away(reader, table):
    with failing(table, OperationalError("connection refused")):
        answer = reader.client.get(RUNS)
    assert "try again" in checked(answer, 503)["detail"]
    assert answer["Retry-After"] == "5"


def test_it_takes_changes_of_a_session_with_its_csrf_token_only(browser):
    body = {"job": "tests.nothing"}
    checked(browser.post(RUNS, body, "application/json"), 403)
    checked(browser.post(RUNS, body, "application/json", headers={"X-CSRFToken": "x" * 64}), 403)
    assert not Run.objects.exists()
    right = csrf_token_of(browser)
    checked(browser.post(RUNS, body, "application/json", headers={"X-CSRFToken": right}), 202)
    checked(browser.get(RUNS), 200)


def test_it_takes_the_user_of_the_token_also_beside_a_session(browser):
    secret = make_token(make_user("tom", "jobs.view_run", "jobs.add_run"), "jobs.view_run", "jobs.add_run")
    headers = {"Authorization": f"Bearer {secret}"}
    run = checked(browser.post(RUNS, {"job": "tests.nothing"}, "application/json", headers=headers), 202)
    assert Run.objects.get(id=run["id"]).actor == "tom"
    checked(browser.get("/api/nodes", headers=headers), 403)
    checked(browser.get("/api/nodes"), 200)
    checked(browser.get(RUNS, headers={"Authorization": "Basic YTpi"}), 200)  # of a proxy


def test_it_refuses_a_token_that_is_not_valid(caplog):
    user = make_user("tom", "jobs.view_run")
    good = make_token(user, "jobs.view_run")
    expired = make_token(user, "jobs.view_run", expires_at=database_now() + timedelta(hours=1))
    ApiToken.objects.filter(expires_at__isnull=False).update(expires_at=database_now() - timedelta(seconds=1))
    for secret in ("", "x", "x" * 5_000, "ä" * 20, expired, good[:-1], f"{good}x", good.swapcase()):
        answer = Client(headers={"Authorization": f"Bearer {secret}"}).get(RUNS)
        assert "ask for a new one" in checked(answer, 401)["detail"]
        assert answer["WWW-Authenticate"] == 'Bearer realm="api", error="invalid_token"'
        assert len(secret) < 20 or secret not in answer.content.decode() + caplog.text
    Caller(good).get(RUNS)
    User.objects.update(is_active=False)
    Caller(good).get(RUNS, 401)


def test_it_limits_the_requests_of_a_token():
    caller = make_caller("tom", "jobs.view_run", rate=3)
    answers = [caller.client.get(RUNS) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert "try again in" in problem_of(answers[-1])["detail"]
    assert 1 <= int(answers[-1]["Retry-After"]) <= 60
    make_caller("eve", "jobs.view_run").get(RUNS)


def test_it_needs_the_permission_of_the_user_and_the_scope_of_the_token():
    user = make_user("tom", "jobs.view_run", "jobs.view_node")
    assert "jobs.view_node" in Caller(make_token(user, "jobs.view_run")).get("/api/nodes", 403)["detail"]
    Caller(make_token(user, "jobs.view_node")).get("/api/nodes")
    secret = make_token(user, "jobs.view_run", "jobs.view_node")
    user.user_permissions.clear()
    Caller(secret).get("/api/nodes", 403)


BODIES = [
    (b"{", 400, "not valid JSON"),
    (b'{"job": "a", "job": "b"}', 400, "a key occurs twice"),
    (b'{"job": "tests.nothing", "arguments": {"x": NaN}}', 400, "NaN is not JSON"),
    (b'{"job": "tests.nothing", "arguments": {"x": 1e999}}', 400, "too large for a number"),
    (b'{"job": "tests.nothing", "arguments": {"x": ' + b"9" * 5_000 + b"}}", 400, "digits"),
    (b'{"job": "tests.nothing", "arguments": ' + b'{"x":' * 100_000, 400, "not valid JSON"),
    (b'{"job": "tests.nothing", "arguments": {"x": "\\ud800"}}', 400, "surrogates"),
    (b'{"job": "tests.nothing\xff"}', 400, "not valid JSON"),
    (b"[]", 422, "body"),
    (b"null", 422, "body"),
    (b"", 422, "required"),
    (b'{"job": 7}', 422, "body/job"),
    (b'{"job": "a\\u0000b"}', 422, "control characters"),
    (b'{"job": "tests.nothing", "argument": {}}', 422, "body/argument"),
    (b'{"job": "tests.nothing", "arguments": {"x": "\\u0000"}}', 422, "control characters"),
    (b'{"job": "tests.nothing", "arguments": ' + b'{"x":' * 30 + b"1" + b"}" * 31, 422, "nested deeper"),
    (b'{"job": "no.such.job"}', 422, "No job is named"),
    (b'{"job": "jobs.heartbeat", "arguments": {"wrong": 1}}', 422, "do not fit"),
    (b'{"job": "tests.nothing", "delay": -1}', 422, "body/delay"),
    (b'{"job": "tests.nothing", "delay": 1e300}', 422, "body/delay"),
    (b'{"job": "tests.nothing", "at": "2026-01-01T00:00:00"}', 422, "add the offset"),
    (b'{"job": "tests.nothing", "at": "0001-01-01T00:00:00+14:00"}', 422, "years 1 to 9999"),
    (b'{"job": "tests.nothing", "at": "9999-12-31T23:00:00-14:00"}', 422, "years 1 to 9999"),
    (b'{"job": "tests.nothing", "priority": 256}', 422, "body/priority"),
    (b'{"job": "tests.nothing", "queue": "a\\nb"}', 422, "body/queue"),
    (b'{"job": "tests.nothing", "key": ""}', 422, "body/key"),
]


def test_it_refuses_bodies_that_no_job_could_take():
    caller = make_caller("tom", "jobs.add_run", "jobs.view_run")
    for body, status, words in BODIES:
        detail = checked(caller.client.generic("POST", RUNS, body, "application/json"), status)["detail"]
        assert words in detail, body[:100]
        assert len(detail) < 1_000
    assert not Run.objects.exists()


def test_it_takes_bodies_as_json_only():
    caller = make_caller("tom", "jobs.add_run", "jobs.view_run")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
        body = b"--b--\r\n" if "boundary" in kind else b'{"job": "tests.nothing"}'
        assert "Content-Type" in checked(caller.client.generic("POST", RUNS, body, kind), 415)["detail"]
    assert not Run.objects.exists()


QUERIES = [
    *("limit=0", "limit=201", "limit=x", "limit=1e9", "stat=failed", "state=nope", "trigger=nope", "job=a%00b"),
    *("schedule=0", "schedule=99999999999999999999", "since=yesterday", "since=2026-01-01", "parent=x"),
    *("cursor=x", "cursor=" + "x" * 5_000, "until=0001-01-01T00:00:00%2B14:00"),
]


def test_it_refuses_filters_without_a_meaning(reader):
    for query in QUERIES:
        assert reader.get(f"{RUNS}?{query}", 422)["errors" if query != "cursor=x" else "detail"], query


def test_it_pages_through_a_list_without_counting_or_skipping_rows(reader):
    runs = [make_run() for _ in range(7)]
    expected, seen, address = [str(run.id) for run in reversed(runs)], [], f"{RUNS}?limit=3&job=tests.nothing"
    with CaptureQueriesContext(
        connection,
    ) as queries:
        while address and len(seen) < 4:
            page = reader.get(address)
            seen.append([item["id"] for item in page["items"]])
            address = page["next"]
            make_run()  # newer: on no later page
    assert seen == [expected[:3], expected[3:6], expected[6:]]
    assert not [query for query in queries.captured_queries if "OFFSET" in query["sql"] or "COUNT(" in query["sql"]]
    Run.objects.filter(id=runs[3].id).delete()
    second = reader.get(reader.get(f"{RUNS}?limit=3&until={runs[-1].due_at.isoformat().replace('+', '%2B')}")["next"])
    assert all(item["id"] != str(runs[3].id) for item in second["items"])


def test_it_takes_a_cursor_for_the_list_that_gave_it_only(reader):
    for _ in range(2):
        make_run()
    cursor = reader.get(f"{RUNS}?limit=1")["next"].partition("cursor=")[2]
    steps = f"{RUNS}/{Run.objects.latest('id').id}/steps"
    assert "not one of this list" in reader.get(f"{steps}?cursor={cursor}", 422)["detail"]
    assert "not one of this list" in reader.get(f"{RUNS}?cursor={cursor[:-2]}xx", 422)["detail"]


def test_it_shows_its_document_to_staff_only_and_without_anything_inline(browser):
    for address in ("/api/docs", "/api/openapi.json"):
        assert Client().get(address)["Location"].startswith("/admin/login/")
        assert (
            make_caller(address.strip("/").replace("/", "-").replace(".", "-"), "jobs.view_run")
            .client.get(address)
            .status_code
            == 302
        )
    page = browser.get("/api/docs").content.decode()
    assert 'src="/static/ninja/swagger-ui-bundle' in page
    assert "http" not in page.replace('href="http', "")
    assert "<style" not in page
    assert page.count("<script") == page.count("<script src=") + page.count('<script type="application/json"')


def test_it_shows_its_document_in_a_project_without_the_admin(browser, settings):
    settings.ROOT_URLCONF = ModuleType("billing.urls")
    settings.ROOT_URLCONF.urlpatterns = [path("api/", include("jobs.web.api.urls"))]
    checked(Client().get("/api/docs"), 404)
    assert browser.get("/api/docs").status_code == 200


def test_it_names_every_answer_in_its_document(browser):
    document = browser.get("/api/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) > 20
    for operation in operations:
        answers = operation["responses"]
        assert {str(status) for status in REFUSALS} < set(answers), operation["operationId"]
        assert "application/problem+json" in answers["404"]["content"]
        assert operation["security"] == [{"Token": []}, {"Session": []}]
        assert operation["description"].strip()
    schemas = document["components"]["schemas"]
    assert schemas["State"]["enum"] == State.values  # models of one name would hide each other
    assert schemas["Kind"]["enum"] == StoredFile.Kind.values
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert set(document["components"]["schemas"]["Problem"]["properties"]) == {
        "type",
        "title",
        "status",
        "detail",
        "errors",
    }


def rows_of_paths() -> dict[str, object]:
    """A row for each parameter of a path, by its name."""
    file, now = StoredFile.objects.create(name="a.txt", size=1), database_now()
    run = make_run(make_schedule(), State.SUCCEEDED)
    source = make_source()
    webhook = Webhook.objects.create(id=new_run_id(), source=source, source_name="shop", event="1", run=run, body=b"{}")
    return {
        "run": run.id,
        "schedule": run.schedule_id,
        "file": file.id,
        "source": source.pk,
        "webhook": webhook.pk,
        "alert": Alert.objects.create(subject="it", name="it", before="ok", health="late", at=now, since=now).pk,
        "channel": Channel.objects.create(name="ops").pk,
        "silence": Silence.objects.create(ends_at=now + timedelta(hours=1)).pk,
        "name": "tests.nothing",
    }


def test_it_answers_head_as_it_answers_get_without_the_body(browser):
    paths = browser.get("/api/openapi.json").json()["paths"]
    rows, asked = rows_of_paths(), 0
    for name, operations in paths.items():
        assert "head" not in operations, name
        if "get" not in operations:
            assert "HEAD" not in browser.head(name.format(**rows, token=1))["Allow"], name
            continue
        address = name.format(**rows) + ("?at=2026-01-01T00:00:00Z" if "what-happened" in name else "")
        whole, head = browser.get(address), browser.head(address)
        expected = 404 if name.endswith("/result") else 200
        assert (head.status_code, whole.status_code) == (expected, expected), (name, whole.content)
        for header in ("Content-Type", "Content-Length", "Cache-Control", "ETag"):
            assert head.get(header) == whole.get(header), (name, header)
        assert not head.content
        asked += 1
    assert asked > 20
    for address in ("/api/docs", "/api/openapi.json"):
        assert browser.head(address).status_code == 200
    assert Client().head(RUNS).status_code == 401


def test_it_sends_the_server_no_body_of_an_answer_to_head(reader):
    """Django's test client would drop one, and gunicorn logs a warning before it does."""
    request = RequestFactory().head(RUNS, headers={"Authorization": f"Bearer {reader.secret}"})
    started = []
    parts = get_wsgi_application()(request.environ, lambda status, headers: started.append((status, dict(headers))))
    assert (b"".join(parts), started[0][0]) == (b"", "200 OK")
    assert int(started[0][1]["Content-Length"]) == len(reader.client.get(RUNS).content) > 0


def test_it_finds_runs_by_the_time_in_their_ids(reader):
    early, late = make_run(), make_run(id=new_run_id())
    del early, late
    json.dumps(reader.get(f"{RUNS}?since=1970-01-01T00:00:00Z&until=9999-12-31T00:00:00Z"))
    assert len(reader.get(f"{RUNS}?since=1970-01-01T00:00:00Z")["items"]) == 2
    assert len(reader.get(f"{RUNS}?since=0001-01-01T00:00:00Z")["items"]) == 2
    assert reader.get(f"{RUNS}?until=0001-01-01T00:00:00Z")["items"] == []
    assert reader.get(f"{RUNS}?since=9999-12-31T23:59:59Z")["items"] == []
