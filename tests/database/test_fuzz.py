"""The API answers as its document says, whatever a client sends: no 500, and no answer outside of the document.

schemathesis reads the OpenAPI document and makes valid and invalid requests for each operation. `make test` sends few,
always the same ones; `make fuzz` sends many, others each time (FUZZ_EXAMPLES: how many for each operation and role).
Random ids and names of jobs would meet nothing, so most of them are replaced by ones that exist.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from django.contrib.auth.models import Permission, User
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ninja.openapi.schema import OpenAPISchema
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from jobs.ledger import sending
from jobs.models import (
    Alert,
    ApiToken,
    Channel,
    Notice,
    ResourceVersion,
    RunLog,
    Silence,
    State,
    StoredFile,
    Webhook,
    WebhookSource,
    database_now,
    new_run_id,
    rights,
)
from jobs.web.api.urls import api
from tests.making import make_run, make_schedule
from tests.pure.test_signatures import PLAIN
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

MANY = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=MANY or 3,
    derandomize=not MANY,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHECKED = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
)
CSRF = "x" * 32
VIEWING = (
    *("view_periodictask", "view_run", "view_node", "view_storedfile", "view_resourceversion"),
    *("view_webhooksource", "view_webhook", "view_apitoken", "view_alert", "view_channel", "view_silence"),
)
ROLES = ("anonymous", "viewer", "operator", "superuser", "token")
TIMINGS: list[dict[str, Any]] = [
    {"every": "1 hour"},
    {"crontab": "0 4 * * *", "zone": "Europe/Berlin"},
    {"once": "2099-01-01T00:00:00Z"},
    {"solar": "sunset", "latitude": 52.5, "longitude": 13.4},
]


def sender(role: str) -> dict[str, dict[str, str]]:
    """The cookies and headers of a role's requests."""
    if role == "anonymous":
        return {"cookies": {}, "headers": {}}
    user = User.objects.create_user(role, is_staff=role != "token", is_superuser=role in {"superuser", "token"})
    ours = Permission.objects.filter(content_type__app_label__in=["jobs", "django_celery_beat"])
    if role == "viewer":
        user.user_permissions.set(ours.filter(codename__in=VIEWING))
    if role == "operator":
        user.user_permissions.set(ours.exclude(codename__startswith=rights.PREFIX))
    if role == "token":
        scopes = [f"{each.content_type.app_label}.{each.codename}" for each in ours.select_related("content_type")]
        limits: Any = {"jobs": ["tests.nothing"], "rate": 60_000}
        _, secret = ApiToken.objects.issue("program", user, scopes, "test", **limits)
        return {"cookies": {}, "headers": {"Authorization": f"Bearer {secret}"}}
    client = Client()
    client.force_login(user)
    session = client.cookies["sessionid"].value
    return {"cookies": {"sessionid": session, "csrftoken": CSRF}, "headers": {"X-CSRFToken": CSRF}}


def make_rows(label: str) -> dict[str, list[Any]]:
    """Rows for one operation, which may delete them: what a place in an address may name."""
    schedule = make_schedule(label, cron={"minute": "30"}, kwargs={"a": [1, None]})
    theirs = make_schedule(f"{label}, theirs", "jobs.heartbeat")
    states = (State.WAITING, State.FAILED, State.SUCCEEDED, State.SKIPPED)
    runs = [make_run(schedule, state, kwargs={"a": "ä"}, started_at=database_now()) for state in states]
    RunLog.objects.create(run=runs[1], attempt=1, text="one\ntwo\n")
    kept = [StoredFile.objects.create(name="a", file=f"{label}/{kind}", size=1, kind=kind) for kind in StoredFile.Kind]
    ResourceVersion.objects.get_or_create(name="prices")
    sources = [WebhookSource.objects.create(name=uuid4().hex, keys="PLAIN", form="github", job="tests.nothing")]
    sent = Webhook.objects.create(id=new_run_id(), source=sources[0], event="e", body=b"\xff", run=runs[0])
    channel = Channel.objects.create(name=uuid4().hex, addresses=["ada@example.org"])
    now = database_now()
    alert = Alert.objects.create(
        schedule=schedule, name="it", before="ok", health="failing", at=now, since=now, sentence="no"
    )
    Notice.objects.create(channel=channel, alert=alert, not_before=now)
    silence = Silence.objects.create(schedule=schedule, ends_at=now + timedelta(hours=1))
    owner, _ = User.objects.get_or_create(username="other", is_superuser=True)
    other, _ = ApiToken.objects.issue(uuid4().hex, owner, ["jobs.view_run"], "test")
    return {
        "source": [row.pk for row in sources],
        "webhook": [str(sent.pk)],
        "channel": [channel.pk],
        "alert": [alert.pk],
        "silence": [silence.pk],
        "token": [other.pk],
        "schedule": [schedule.pk, theirs.pk],
        "run": [str(run.pk) for run in runs],
        "file": [str(row.pk) for row in kept],
        "name": ["tests.nothing", "jobs.heartbeat", "prices"],
    }


def fields(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Values that fields of bodies may have, besides random ones."""
    end = database_now().replace(microsecond=0)
    start = end - timedelta(hours=3)
    return {
        "job": ["tests.nothing", "jobs.process_upload"],
        "keys": ["PLAIN"],
        "form": ["github"],
        "timing": TIMINGS,
        "arguments": [{}, {"a": 1}],
        "queue": ["celery"],
        "headers": [{}],
        "expires": [None],
        "until": [(end + timedelta(days=1)).isoformat()],
        "at": [end.isoformat()],
        "ends_at": [(end + timedelta(days=1)).isoformat()],
        "starts_at": [None],
        "addresses": [["ada@example.org"]],
        "kind": ["mail"],
        "url": [""],
        "patterns": [[], ["billing.*"]],
        "healths": [[], ["failing"]],
        "zone": ["", "Europe/Berlin"],
        "quiet_from": [None],
        "quiet_until": [None],
        "start": [start.isoformat()],
        "end": [end.isoformat()],
        "runs": [rows["run"]],
        "policy": [{"overlap": "allow"}, {}],
    }


@st.composite
def cases(draw: Callable[..., Any], operation: Any, rows: dict[str, list[Any]]) -> Any:
    """A request for the operation: half of them valid as the document says, and most with known values."""
    mode = draw(st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
    case = draw(operation.as_strategy(generation_mode=mode))

    def replace(values: Any, known: dict[str, list[Any]]) -> None:
        for name in known.keys() & values.keys() if isinstance(values, dict) else ():
            if draw(st.integers(0, 3)):
                values[name] = draw(st.sampled_from(known[name]))

    replace(case.path_parameters, rows)
    replace(case.body, fields(rows))
    if isinstance(case.query, dict) and "wait" in case.query:  # nothing ends its run
        case.query["wait"] = 0
    if draw(st.integers(0, 3)):  # otherwise nearly every request would have an unknown token
        case.headers.pop("Authorization", None)
    return case


def try_operation(operation: Any, role: dict[str, Any]) -> tuple[set[int], str]:
    """The statuses of the answers, and what was wrong with one of them."""
    rows, statuses, checks = make_rows(operation.label), set(), CHECKS.get_by_names([*CHECKED])

    @SETTINGS
    @given(cases(operation, rows))
    def answered(case: Any) -> None:
        headers = {**(case.headers or {}), **role["headers"]} if "Authorization" not in (case.headers or {}) else {}
        response = case.call(cookies=role["cookies"], headers=headers)
        statuses.add(response.status_code)
        case.validate_response(response, checks=checks)

    try:
        answered()
    except FailureGroup as error:
        return statuses, f"{operation.label}: {error}"
    return statuses, ""


def closing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """The site, with each answer closed as a web server does."""
    answer = WSGIHandler()(environ, start_response)
    try:
        return [b"".join(answer)]
    finally:
        answer.close()


class Distinct(OpenAPISchema):
    """The document, which refuses that two shapes have one name: the later one would replace the earlier."""

    def add_schema_definitions(self, definitions: dict[str, Any]) -> None:
        for name, shape in definitions.items():
            assert self.schemas.get(name, shape) == shape, f"Two shapes of the API are named {name}: rename one."
        super().add_schema_definitions(definitions)


def test_it_gives_each_shape_a_name_of_its_own():
    assert Distinct(api, "api/")["components"]["schemas"]


@pytest.mark.parametrize("name", ROLES)
def test_it_answers_every_request_as_documented(settings, tmp_path, name):
    settings.MEDIA_ROOT = tmp_path
    settings.WEBHOOK_KEYS = {"PLAIN": [PLAIN]}
    load_all_checks()
    schema = schemathesis.openapi.from_dict(api.get_openapi_schema())
    schema.app = closing
    role, reached, wrong = sender(name), defaultdict(set), []
    for result in schema.get_all_operations():
        operation = result.ok()
        reached[operation.label], why = try_operation(operation, role)
        wrong += [why] if why else []
    assert sending.wait(DEADLINE)
    assert not wrong, "\n\n".join(wrong)
    done = {label for label, statuses in reached.items() if any(status < 300 for status in statuses)}
    if name == "anonymous":
        assert not done
    if name in {"superuser", "operator"}:  # or the requests would say little
        assert len(done) > len(reached) / 2, sorted(reached.keys() - done)
