"""A web request has an id: its answer, its log lines, its runs and their messages name it."""

import json
import logging

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from jobs.ledger import outbox, requests
from jobs.logs import Formatter
from jobs.messages import keys, request_ids
from jobs.models import Run, State
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db
HEADER = "X-Request-ID"
FORGED = ["", "x" * 65, "a b", "a\nb", "<script>", "é", f"punctual_{'a' * 43}"]


def test_each_request_has_an_id_of_its_own(client):
    first, second = (client.get("/nothing").headers[HEADER] for _ in range(2))
    assert request_ids.checked(first) == first != second
    assert request_ids.current() == ""


def test_it_takes_the_id_of_a_proxy_only(client, settings):
    assert client.get("/healthz", headers={HEADER: "from-1.2"}).headers[HEADER] != "from-1.2"
    settings.BEHIND_PROXY = True
    assert client.get("/healthz", headers={HEADER: "from-1.2"}).headers[HEADER] == "from-1.2"


@pytest.mark.parametrize("forged", FORGED)
def test_it_takes_no_id_that_may_do_harm(client, settings, forged):
    settings.BEHIND_PROXY = True
    given = client.get("/healthz", headers={HEADER: forged}).headers[HEADER]
    assert request_ids.HARMLESS.fullmatch(given)
    assert given != forged
    run = make_run(options={"headers": {request_ids.HEADER: forged}})
    assert "request_id" not in keys.of_run(run)


def test_a_line_about_a_failed_request_has_its_id(client, caplog):
    given = client.get("/nothing").headers[HEADER]
    record = next(record for record in caplog.records if record.name == "django.request")
    assert json.loads(Formatter(as_json=True).format(record))["request_id"] == given


def test_a_run_that_a_request_starts_carries_its_id_in_each_message(client, redis):
    client.force_login(User.objects.create_superuser("ada"))
    schedule = make_schedule()
    address = reverse("admin:django_celery_beat_periodictask_changelist")
    form = {"action": "run_now", "_selected_action": [schedule.pk]}
    given = client.post(address, form).headers[HEADER]
    run = Run.objects.get(schedule=schedule)
    outbox.send([run])
    sent = [json.loads(item)["headers"] for item in redis.lrange("celery", 0, -1)]
    assert {headers["punctual_request"] for headers in sent} == {given}
    assert keys.of_run(run)["request_id"] == given


def test_a_repeated_run_carries_the_id_of_the_request_that_repeats_it():
    run = make_run(state=State.FAILED, options={"headers": {request_ids.HEADER: "first"}})
    with request_ids.within("second"):
        (repeated,) = requests.retry([run], "ada").runs
        line = Formatter(as_json=True).format(logging.makeLogRecord({"name": "shop", "msg": "hello"}))
    assert repeated.options["headers"] == {request_ids.HEADER: "second"}
    assert json.loads(line)["request_id"] == "second"
