"""Does every snippet of the documents run, and does it do what the text beside it says?

Its one rule: a Python block of README.md or docs/ is a module of a user's app, and its first line names the file. Each
block is executed as it stands, and `claims` marks the tests that check the text beside it. tests/live/test_workflows.py
does this for docs/workflows.md.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from shutil import which
from types import ModuleType
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from celery import _state, current_app
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.core import mail as django_mail
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.test import Client
from django.urls import include, path
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_results.models import TaskResult
from pydantic import ValidationError

from jobs import testing
from jobs.cache import resources
from jobs.cache.backend import NotJSONError
from jobs.models import Run, State, StoredFile, WebhookSource, database_now
from jobs.tasks.report import report
from jobs.tasks.send_bulk_email import send_bulk_email
from jobs.testing import execute
from jobs.toolkit import (
    cache_usage,
    cached,
    files,
    http,
    invalidate_cached,
    invalidate_resources,
    mail,
    queries,
    run_job,
)
from jobs.toolkit.webhooks import read as read_webhook
from tests.api import make_token, make_user
from tests.app import billing
from tests.app.billing import Article, Customer, Order, Rate
from tests.database.test_admin import NEW, form, text
from tests.database.test_typed import complaints, stored, typed
from tests.making import inside, make_run, make_schedule
from tests.pure.test_signatures import OTHER, STANDARD, signed
from tests.servers import ROOT
from tests.waiting import DEADLINE, eventually
from tests.web import Web, serving

pytestmark = pytest.mark.django_db(transaction=True)
HOUR = timedelta(hours=1)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CAN_STAND_IN_A_DOCUMENT = {"python", "mermaid"}  # languages of its blocks

Place = tuple[str, int]  # a document, and the number of a block in it
Load = Callable[[str, int], ModuleType]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


SNIPPETS: dict[Place, str] = {
    (str(document.relative_to(ROOT)), number): block
    for document in DOCUMENTS
    if document.name != "workflows.md"
    for number, block in enumerate(blocks(document, "python"), 1)
}
CLAIMED: set[Place] = set()


def claims(document: str, number: int) -> pytest.MarkDecorator:
    """The test checks what the text says of this block, which it is given as an executed module, `snippet`."""
    CLAIMED.add((document, number))
    return pytest.mark.parametrize("snippet", [(document, number)], ids=[f"{document}:{number}"], indirect=True)


@contextmanager
def cleaned_registries() -> Iterator[None]:
    """On exit, remove the tasks, resources and queries that were registered inside: no other test may find them."""
    apps = [app.tasks for app in _state._get_active_apps() if app.finalized]  # other tests may have made some
    registries: list[Any] = [*apps, resources.registry, queries._queries]
    before, finalizers = [set(registry) for registry in registries], set(_state._on_app_finalizers)
    try:
        yield
    finally:
        for registry, names in zip(registries, before, strict=True):
            for name in set(registry) - names:
                del registry[name]
        _state._on_app_finalizers.intersection_update(finalizers)


@contextmanager
def tables() -> Iterator[None]:
    """The tables of the user's app, for one test."""
    with connection.schema_editor() as editor:
        for model in billing.MODELS:
            editor.create_model(model)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            for model in reversed(billing.MODELS):
                editor.delete_model(model)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> Iterator[Load]:
    """Executes a block as the module that its first line names."""
    settings.MEDIA_ROOT, settings.VAR_DIR = tmp_path / "files", tmp_path
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    django_mail.outbox = []
    package = ModuleType("billing")
    monkeypatch.setitem(sys.modules, "billing", package)
    monkeypatch.setitem(sys.modules, "billing.models", billing)

    def execute(document: str, number: int) -> ModuleType:
        code = SNIPPETS[document, number]
        path = re.match(r"# (billing/(?:tests/)?\w+\.py)\n", code)
        assert path, f"Begin block {number} of {document} with the path of its file, such as `# billing/tasks.py`."
        module = ModuleType(path[1].removesuffix(".py").replace("/", "."))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"{document}, block {number}", "exec"), module.__dict__)
        return module

    with tables(), cleaned_registries():
        yield execute


@pytest.fixture
def snippet(load: Load, request: pytest.FixtureRequest) -> ModuleType:
    return load(*request.param)


def make_customer(name: str, joined_at: Any = None) -> Customer:
    joined_at = joined_at or database_now()
    return Customer.objects.create(name=name, email=f"{name}@example.org", country="DE", joined_at=joined_at)


def make_hourly_run() -> Run:
    """A run whose data window is an hour."""
    due_at = database_now().replace(minute=0, second=0, microsecond=0)
    return make_run(make_schedule(cron={"minute": "0"}), State.RUNNING, due_at=due_at)


def elsewhere(function: Callable[[], Any]) -> Any:
    """What a function returns in another thread, which has its own database connection."""

    def call() -> Any:
        try:
            return function()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(DEADLINE)


# --- Every block -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", SNIPPETS, ids=lambda place: f"{place[0]}:{place[1]}")
def test_it_executes_every_snippet_as_it_stands(load, place):
    load(*place)


def test_it_checks_the_text_beside_every_snippet():
    assert set(SNIPPETS) == CLAIMED


def test_it_finds_every_block_of_code():
    for document in DOCUMENTS:
        fences = re.findall(r"^\s*(?:```|~~~)(.*)$", document.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= CAN_STAND_IN_A_DOCUMENT, f"{document.name} has a block that no test executes."
        assert len(blocks(document, r"\w+")) * 2 == len(fences), (
            f"A block of {document.name} is indented or not closed."
        )


def test_it_leaves_no_name_of_a_snippet_behind(load):
    tasks, finalizers = current_app.tasks, len(_state._on_app_finalizers)
    with cleaned_registries():
        load("docs/resources.md", 1)
        load("docs/mail-and-reports.md", 2)
        assert "billing.tasks.quote" in tasks
        assert {"prices", "rates"} <= resources.registry.keys()
        assert "new customers" in queries.names()
    assert "billing.tasks.quote" not in tasks
    assert not {"prices", "rates"} & resources.registry.keys()
    assert "new customers" not in queries.names()
    assert len(_state._on_app_finalizers) == finalizers


# --- README.md -------------------------------------------------------------------------------------------------------


@claims("README.md", 1)
def test_it_schedules_a_first_job_and_rejects_arguments_that_do_not_fit(snippet, admin_client):
    schedule = {"task": "billing.tasks.send_invoices", "args": '["2026-03"]'}
    schedule["interval"] = IntervalSchedule.objects.create(every=1, period="days").pk
    page = text(admin_client.post(NEW, form(**schedule | {"args": "[]"}), follow=True))
    assert "The arguments do not fit 'billing.tasks.send_invoices'" in page
    page = text(admin_client.post(NEW, form(**schedule | {"task": "billing.tasks.send_invoice"}), follow=True))
    assert "No job is named 'billing.tasks.send_invoice'. Did you mean 'billing.tasks.send_invoices'?" in page
    assert not PeriodicTask.objects.exists()
    assert admin_client.post(NEW, form(**schedule)).status_code == 302
    assert PeriodicTask.objects.get().task == snippet.send_invoices.name


# --- docs/api.md -----------------------------------------------------------------------------------------------------


@claims("docs/api.md", 1)
def test_it_sends_a_file_and_gets_the_result_of_its_run(snippet, tmp_path, settings):
    settings.ALLOWED_HOSTS = ["punctual.test"]
    scopes = ("jobs.view_run", "jobs.add_run", "jobs.add_storedfile", "django_celery_results.view_taskresult")
    token = make_token(make_user("tom", *scopes), *scopes)
    file = tmp_path / "7.txt"
    file.write_text("hello\n")

    def execute_the_run() -> None:
        run = eventually(Run.objects.first)
        TaskResult.objects.create(task_id=str(run.id), status="SUCCESS", result='{"bytes": 6}')  # as a worker does
        execute(run)
        connection.close()

    worker = threading.Thread(target=execute_the_run)
    worker.start()
    headers, web = {"Authorization": f"Bearer {token}"}, httpx.WSGITransport(app=get_wsgi_application())
    with httpx.Client(base_url="http://punctual.test", headers=headers, transport=web) as site:
        assert snippet.describe(site, file)["bytes"] == 6
    worker.join(DEADLINE)
    assert Run.objects.get().actor == "tom"


@claims("docs/api.md", 2)
def test_it_shows_the_progress_of_a_run_on_a_page_of_the_user(snippet, live_server, settings, tmp_path):
    """The browser asks the API with the session of the user, and stops when the run has ended."""
    if (browser := which("chromium")) is None:
        pytest.skip("chromium is not installed: apt install chromium")
    run = make_run(state=State.SUCCEEDED, progress_done=3, progress_total=4, progress_message="reading <rows>")
    user = make_user("tom", "jobs.view_run")

    def enter(request: HttpRequest) -> HttpResponse:
        login(request, user, "django.contrib.auth.backends.ModelBackend")
        return redirect(f"/orders/{run.id}")

    settings.ROOT_URLCONF, settings.LOGIN_URL = ModuleType("billing.urls"), "/enter"
    settings.ROOT_URLCONF.urlpatterns = [
        path("enter", enter),
        path("orders/<uuid:run>", snippet.progress),
        path("api/", include("jobs.web.api.urls")),
    ]
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=9000", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={tmp_path}", f"{live_server.url}/enter"]
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout
    assert 'max="4" value="3"' in page
    assert ">succeeded: reading &lt;rows&gt;</span>" in page
    assert Client().get(f"/orders/{run.id}").status_code == 302


# --- docs/caching.md -------------------------------------------------------------------------------------------------


@claims("docs/caching.md", 1)
def test_it_caches_a_value_until_it_is_invalidated(snippet, redis):
    hat = Article.objects.create(name="hat", cents=100)
    assert [snippet.prices(), snippet.prices()] == [{"hat": 100}, {"hat": 100}]
    assert (cache_usage("prices").hits, cache_usage("prices").misses) == (1, 1)
    assert cache_usage("prices").hit_rate == 0.5
    Article.objects.update(cents=150)
    assert snippet.prices() == {"hat": 100}
    with transaction.atomic():
        assert snippet.prices() == {"hat": 150}
    hat.save()
    snippet.double_prices()
    assert snippet.prices() == {"hat": 200}


@claims("docs/caching.md", 1)
def test_it_invalidates_a_cached_value_on_commit(snippet, redis):
    Article.objects.create(name="hat", cents=100)
    assert snippet.prices() == {"hat": 100}
    with transaction.atomic():
        snippet.double_prices()
        assert elsewhere(snippet.prices) == {"hat": 100}
    assert snippet.prices() == {"hat": 200}


@claims("docs/caching.md", 1)
def test_it_finds_no_value_whose_computation_began_before_an_invalidation(snippet, redis):
    is_computing, may_end = threading.Event(), threading.Event()

    @cached("slow", seconds=30)
    def slow() -> int:
        if threading.current_thread() is threading.main_thread():
            return 2
        is_computing.set()
        assert may_end.wait(DEADLINE)
        return 1

    with ThreadPoolExecutor(1) as pool:
        earlier = pool.submit(slow)
        assert is_computing.wait(DEADLINE)
        invalidate_cached("slow")
        may_end.set()
        assert earlier.result(DEADLINE) == 1
    assert slow() == 2


@claims("docs/caching.md", 2)
def test_it_caches_a_value_for_each_argument_and_a_page(snippet, redis, rf):
    Article.objects.bulk_create([Article(name="hat", cents=100), Article(name="cap", cents=50)])
    assert (snippet.cheaper_than(100), snippet.cheaper_than(101)) == (["cap"], ["cap", "hat"])
    Article.objects.update(cents=1)
    assert snippet.cheaper_than(cents=100, limit=10) == ["cap"]
    assert snippet.cheaper_than(100, 1) == ["cap"]
    invalidate_cached("cheaper")
    assert snippet.cheaper_than(100) == ["cap", "hat"]
    Article.objects.all().delete()
    pages = [json.loads(snippet.cheap(rf.get("/cheap")).content) for _ in range(2)]
    assert pages == [{"articles": ["cap", "hat"]}] * 2
    assert snippet.cheaper_than(0) == []
    with pytest.raises(NotJSONError, match="isoformat"):
        snippet.cheaper_than(database_now())


def test_it_quotes_the_error_for_a_value_that_is_not_json(load, redis):
    customer = make_customer("ada")
    with pytest.raises(NotJSONError) as refused:
        cached("customer", seconds=30)(lambda: customer)()
    assert f"\n    {refused.value}\n" in (ROOT / "docs" / "caching.md").read_text()


# --- docs/enqueue.md -------------------------------------------------------------------------------------------------


def place(function: Callable[[Any], Any], rf: Any, email: str = "ada@example.org") -> dict[str, Any]:
    answer = function(rf.post("/orders", {"email": email}))
    assert answer.status_code == 202
    return dict(json.loads(answer.content))


@claims("docs/enqueue.md", 1)
def test_it_takes_plain_json_for_a_typed_argument(snippet):
    order = Order.objects.create(customer=make_customer("ada"), at=database_now())
    run = run_job(snippet.confirm, order=order.pk, day="2026-03-01")
    assert (run.task, run.kwargs) == ("billing.confirm", {"order": order.pk, "day": "2026-03-01"})
    assert testing.execute(run).state == State.SUCCEEDED
    assert charges() == [1]
    for wrong in ({"order": order.pk, "day": date(2026, 3, 1)}, {"order": Decimal(1)}, {"order": run.id}):
        with pytest.raises(ValueError, match="The arguments are not plain JSON"):
            run_job("billing.confirm", **wrong)
    for wrong in ({"order": order}, {}, {"order": order.pk, "day": "1 March"}, {"order": order.pk, "colour": "red"}):
        with pytest.raises(ValueError, match="rguments"):
            run_job("billing.confirm", **wrong)
    assert Run.objects.get() == run


@claims("docs/enqueue.md", 2)
def test_it_starts_a_job_exactly_if_its_order_is_committed(snippet, load, rf):
    load("docs/enqueue.md", 1)
    make_customer("ada")
    with pytest.raises(RuntimeError, match="undone"), transaction.atomic():
        raise RuntimeError(f"undone: {place(snippet.place_order, rf)}")
    assert not Run.objects.exists()
    assert not Order.objects.exists()
    for function in (snippet.place_order, async_to_sync(snippet.place_order_async)):
        placed = place(function, rf)
        run = Run.objects.get(id=placed["run"])
        assert run.kwargs["order"] == Order.objects.latest("pk").pk == placed["order"]
        assert testing.execute(run).state == State.SUCCEEDED
    assert charges() == [1, 1]


@claims("docs/enqueue.md", 3)
def test_it_starts_a_later_run_once_for_a_key(snippet, load):
    load("docs/enqueue.md", 1)
    orders = [Order.objects.create(customer=make_customer(name), at=database_now()) for name in ("ada", "eve")]
    first = snippet.remind(orders[0])
    assert snippet.remind_of_all()[0] == first
    run, other = Run.objects.order_by("pk")
    assert (str(run.id), other.kwargs) == (first, {"order": orders[1].pk})
    assert (run.queue, run.priority, run.state) == ("letters", 3, State.WAITING)
    assert run.not_before > database_now() + 71 * HOUR
    run.delete()
    assert snippet.remind(orders[0]) != first


# --- docs/files-and-data.md ------------------------------------------------------------------------------------------


@claims("docs/files-and-data.md", 1)
def test_it_stores_a_file_and_links_to_it(snippet, client, settings):
    run = make_run(state=State.RUNNING)
    with inside(run):
        snippet.export()
        link = snippet.export()
    assert StoredFile.objects.get().run_id == run.id  # the second attempt replaced the file of the first
    response = client.get(link.removeprefix(settings.SITE_URL))
    assert b"".join(response.streaming_content) == b"customer,amount\n7,70\n"
    assert timedelta(days=files.LINK_DAYS) == timedelta(weeks=1)


@claims("docs/files-and-data.md", 2)
def test_it_starts_one_run_for_an_upload_however_often_it_is_sent(snippet, client, settings):
    settings.ROOT_URLCONF = ModuleType("billing.urls")
    settings.ROOT_URLCONF.urlpatterns = [path("upload", snippet.upload)]

    def send(key: str) -> tuple[int, bytes]:
        upload = SimpleUploadedFile("table.csv", b"a,b\n1,2\n", "text/csv")
        response = client.post("/upload", {"file": upload, "key": key})
        return response.status_code, response.content

    assert send("form 7")[0] == 403
    client.force_login(User.objects.create_superuser("ada"))
    status, answer = send("form 7")
    assert (status, send("form 7")) == (201, (200, answer))
    run = Run.objects.get()
    assert str(run.id) in answer.decode()
    assert (run.task, run.actor, run.kwargs) == (
        "jobs.process_upload",
        "ada",
        {"file": str(StoredFile.objects.get().id)},
    )
    assert send("form 8")[0] == 201
    assert Run.objects.count() == 2


@claims("docs/files-and-data.md", 3)
def test_it_starts_one_run_of_a_job_for_a_key(snippet, load):
    load("README.md", 1)
    assert snippet.close_month("2026-03") == snippet.close_month("2026-03")
    run = Run.objects.get()
    assert (run.task, run.kwargs, run.actor) == ("billing.tasks.send_invoices", {"month": "2026-03"}, "code")


# --- docs/jobs.md ----------------------------------------------------------------------------------------------------


@claims("docs/jobs.md", 1)
def test_it_shows_fields_for_a_typed_job_and_stores_no_default(snippet, admin_client):
    page = admin_client.get(NEW, {"regtask": "billing.remind"}).content.decode()
    assert re.findall(r'name="argument_(\w+)"', page) == ["month", "copies"]
    assert "Such as 2026-03." in page
    for month, copies, complaint in (
        ("March", 1, "String should match pattern"),
        ("2026-03", 10, "less than or equal to 9"),
    ):
        (found,) = complaints(admin_client.post(NEW, typed("billing.remind", month=month, copies=copies)))
        assert complaint in found
    assert admin_client.post(NEW, typed("billing.remind", month="2026-03", copies=1)).status_code == 302
    assert stored() == {"month": "2026-03"}
    with pytest.raises(ValidationError, match="String should match pattern"):
        snippet.remind("March")


@claims("docs/jobs.md", 2)
def test_it_inserts_a_secret_where_the_job_uses_it(snippet, web: Web, settings):
    settings.JOB_SECRETS, settings.SECRET_HOSTS = {"BILLING_TOKEN": 'quoted"value'}, {"BILLING_TOKEN": [web.address]}
    web.pages["/rates"] = b"EUR 1.1"
    assert snippet.fetch_rates("/rates", "Bearer secret:BILLING_TOKEN") == "EUR 1.1"
    assert web.headers[-1]["authorization"] == 'Bearer quoted"value'
    with pytest.raises(ValueError, match=r"The secret BILLING_TOKEN may not go to https://evil\.example"):
        snippet.fetch_rates("https://evil.example/rates", "Bearer secret:BILLING_TOKEN")


@claims("docs/jobs.md", 2)
def test_it_never_calls_a_private_address(snippet, web: Web):
    with serving({"/rates": b"private"}) as private:
        with pytest.raises(http.FetchError, match="private"):
            snippet.fetch_rates(f"{private.address}/rates", "")
        assert private.asked == []


# --- docs/mail-and-reports.md ----------------------------------------------------------------------------------------


@claims("docs/mail-and-reports.md", 1)
def test_it_sends_a_message_to_each_address_once_in_all_attempts(snippet):
    make_customer("ada")
    run = make_run(state=State.RUNNING)
    with inside(run):
        assert snippet.remind_all() == {"sent": 1, "refused": 0, "in_doubt": 0}
        make_customer("bob")
        assert snippet.remind_all() == {"sent": 2, "refused": 0, "in_doubt": 0}
    assert [letter.to for letter in django_mail.outbox] == [["ada@example.org"], ["bob@example.org"]]
    snippet.remind_all()  # outside a run it remembers nothing
    assert len(django_mail.outbox) == 4


@claims("docs/mail-and-reports.md", 1)
def test_it_identifies_a_message_by_its_name_or_else_by_its_text(snippet):
    with inside(make_run(state=State.RUNNING)):
        for name, words, sent in (("a", "first", 1), ("a", "second", 1), ("", "first", 2), ("", "second", 3)):
            mail.send(mail.Message("Hello", words, name=name), ["ada@example.org"])
            assert len(django_mail.outbox) == sent


@claims("docs/mail-and-reports.md", 1)
def test_it_sends_no_mail_inside_a_transaction(snippet):
    make_customer("ada")
    with inside(make_run(state=State.RUNNING)), pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        snippet.remind_all()
    assert django_mail.outbox == []


@claims("docs/mail-and-reports.md", 2)
def test_it_offers_a_query_to_reports_and_bulk_mail(snippet):
    run = make_hourly_run()
    for name, before in (("early", 2 * HOUR), ("first", HOUR), ("last", HOUR / 60), ("late", -HOUR)):
        make_customer(name, run.due_at - before)
    before_all = snippet.new_customers(None, run.due_at)
    assert [row[0] for row in before_all.rows] == [f"{name}@example.org" for name in ("early", "first", "last")]
    with inside(run):
        assert report("new customers")["rows"] == 2
        assert send_bulk_email("Welcome", "Text", query="new customers", per_minute=6000)["sent"] == 2
    assert [letter.to for letter in django_mail.outbox] == [["first@example.org"], ["last@example.org"]]


# --- docs/resources.md -----------------------------------------------------------------------------------------------


@claims("docs/resources.md", 1)
def test_it_loads_a_resource_once_for_all_calls_of_a_task(snippet, django_assert_num_queries):
    Article.objects.create(name="hat", cents=200)
    Rate.objects.create(currency="EUR", value=1.5)
    Rate.objects.create(currency="CHF", value=2.0)
    with django_assert_num_queries(3):  # one for the prices, one for each rate
        for _ in range(2):
            assert (snippet.quote("hat", "EUR"), snippet.quote("hat", "CHF")) == (300, 400)
        assert (snippet.prices.get(), snippet.rates.get("EUR")) == ({"hat": 200}, 1.5)


@claims("docs/resources.md", 2)
def test_it_drops_a_resource_when_its_change_is_committed(snippet, load):
    prices = load("docs/resources.md", 1).prices
    Article.objects.create(name="hat", cents=100)
    invalidate_resources("prices")
    assert prices.get() == {"hat": 100}
    with transaction.atomic():
        snippet.double_prices()
        assert prices.get() == {"hat": 100}
    assert prices.get() == {"hat": 200}


@claims("docs/resources.md", 3)
def test_it_maps_a_table_from_one_file(snippet, tmp_path):
    articles = [Article.objects.create(name="hat", cents=cents) for cents in (100, 200)]
    assert [snippet.record(number) for number in (0, 1)] == [(article.pk, article.cents) for article in articles]
    assert isinstance(snippet.atlas.get(), memoryview)
    assert snippet.atlas.get().readonly
    (file,) = (tmp_path / "resources" / "atlas").iterdir()
    assert file.stat().st_size == 2 * snippet.RECORD.size


# --- docs/runs.md ----------------------------------------------------------------------------------------------------


def charges() -> list[int]:
    return list(Order.objects.order_by("at").values_list("charges", flat=True))


@claims("docs/runs.md", 1)
def test_it_charges_each_order_of_the_window_once_in_all_attempts(snippet):
    ada, run = make_customer("ada"), make_hourly_run()
    for before in (2 * HOUR, HOUR, HOUR / 60, timedelta(0)):
        Order.objects.create(customer=ada, at=run.due_at - before)
    with inside(run):
        snippet.charge()
        assert charges() == [0, 1, 1, 0]
        snippet.charge()
    assert charges() == [0, 1, 1, 0]


@claims("docs/runs.md", 1)
def test_it_charges_all_orders_if_no_moment_was_due_before(snippet):
    Order.objects.create(customer=make_customer("ada"), at=database_now() - 100 * HOUR)
    with inside(make_run(state=State.RUNNING)):
        snippet.charge()
    assert charges() == [1]


@claims("docs/runs.md", 2)
def test_it_charges_each_order_once_in_a_coroutine(snippet):
    ada, run = make_customer("ada"), make_run(state=State.RUNNING)
    for _ in range(3):
        Order.objects.create(customer=ada, at=run.due_at)
    with inside(run):
        for _ in range(2):
            snippet.charge_all.apply(throw=True)
            assert charges() == [1, 1, 1]


@claims("docs/runs.md", 3)
def test_it_fetches_each_rate_once_in_threads(snippet):
    with inside(make_run(state=State.RUNNING)):
        for _ in range(2):
            snippet.fetch_rates(["EUR", "USD", "SEK"])
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match=r"copy_context\(\)\.run"):
            pool.submit(snippet.fetch_rate, "JPY").result()
    assert sorted(Rate.objects.values_list("currency", flat=True)) == ["EUR", "SEK", "USD"]


@claims("docs/runs.md", 1)
def test_it_charges_all_orders_each_time_outside_a_run(snippet):
    Order.objects.create(customer=make_customer("ada"), at=database_now() + HOUR)
    snippet.charge()
    snippet.charge()
    assert charges() == [2]


# --- docs/testing.md -------------------------------------------------------------------------------------------------


@claims("docs/testing.md", 1)
def test_it_calls_a_job_like_a_function(snippet):
    Article.objects.create(name="hat", cents=100)
    snippet.raise_prices(1)
    assert Article.objects.get().cents == 101


@claims("docs/testing.md", 2)
def test_it_executes_the_runs_that_are_due_in_a_test(snippet, load, run_due):
    load("docs/testing.md", 1)
    snippet.test_prices_rise_on_the_first_of_the_month(run_due)


# --- docs/webhooks.md -----------------------------------------------------------------------------------------------


@pytest.fixture
def shop(settings) -> WebhookSource:
    """The source of docs/webhooks.md."""
    settings.WEBHOOK_KEYS = {"SHOP": [STANDARD]}
    row = {"form": "standard", "keys": "SHOP", "job": "billing.paid", "arguments": {"at_least": 100}}
    return WebhookSource.objects.create(name="shop", **row)


@claims("docs/webhooks.md", 1)
def test_it_charges_an_order_once_when_a_webhook_says_that_it_was_paid(snippet, client, shop):
    orders = [Order.objects.create(customer=make_customer("ada"), at=database_now()) for _ in range(2)]
    for order, cents in zip(orders, (100, 99), strict=True):
        body = json.dumps({"type": "order.paid", "data": {"order": order.pk, "cents": cents}}).encode()
        headers = signed("standard", body, at=database_now(), event=f"evt_{order.pk}")
        sent = client.post("/hooks/shop", body, content_type="application/json", headers=headers)
        run = Run.objects.get(id=sent.json()["run"])
        with inside(run):
            for _ in range(2):
                snippet.paid(**run.kwargs)
    assert charges() == [1, 0]


@claims("docs/webhooks.md", 2)
def test_it_lets_another_program_sign_an_event(snippet, live_server, monkeypatch, shop):
    WebhookSource.objects.update(job="tests.nothing")
    address = f"{live_server.url}/hooks/shop"
    monkeypatch.setenv("SHOP_KEY", STANDARD)
    for number in range(2):
        snippet.tell(address, {"type": "order.paid", "data": {"order": number, "cents": 100}})
    assert sorted(read_webhook(run.kwargs["webhook"]).json()["data"]["order"] for run in Run.objects.all()) == [0, 1]
    monkeypatch.setenv("SHOP_KEY", OTHER)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        snippet.tell(address, {})
