"""A message has the form in which Celery sends it, and a bounded size after decompression."""

import json
from uuid import UUID

import pytest
from kombu import compression

from jobs.messages import form
from tests import hostile

ENCODERS = [kind for kind in compression.encoders() if kind != "application/x-brotli"]


@pytest.fixture
def limited():
    """kombu's decompression with limits, as in a worker."""
    before = dict(compression._decoders)
    form.limit_decompression()
    yield
    compression._decoders.update(before)


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_ends_decompression_at_its_limit(limited, kind):
    body, _ = compression.compress(b"x" * form.LARGEST, kind)
    assert len(compression.decompress(body, kind)) == form.LARGEST
    body, _ = compression.compress(b"x" * (form.LARGEST + 1), kind)
    with pytest.raises(ValueError, match="it has more than 16 MB after decompression"):
        compression.decompress(body, kind)
    body, _ = compression.compress(b"xyz" * 1000, kind)
    with pytest.raises((ValueError, EOFError), match="cut off"):
        compression.decompress(body[: len(body) // 2], kind)


def test_it_finds_no_fault_in_a_message_of_a_queue():
    whole = hostile.message()
    assert form.fault_of_item(json.dumps(whole).encode()) == ""
    assert form.fault_of_unacked(json.dumps([whole, "", "celery"]).encode()) == ""


@pytest.mark.parametrize("name", ["get", "is_eager", "punctual_execution", "children"])
def test_it_refuses_headers_that_would_replace_parts_of_the_request(name):
    whole = hostile.message(headers={name: "x"})
    assert (
        form.fault_of_task(whole["headers"], [[], {}, {}])
        == f"its header {name} would replace a part of Celery's request"
    )


def test_it_takes_messages_with_headers_of_tracing():
    tracing = {"sentry-trace": "abc-1", "baggage": "x=1", "traceparent": "00-abc-def-01", "x-datadog-trace-id": "7"}
    whole = hostile.message(headers={**tracing, "headers": tracing})
    assert form.fault_of_task(whole["headers"], [[], {}, {}]) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"correlation_id": "x", "hostname": "h", "properties": {}, "utc": True, "args": []},
        {"timelimit": [4_000_000_000, None]},
        {"id": 42},
        {"id": UUID(int=7), "root_id": UUID(int=7)},
        {"id": "x" * 300, "task": "t" * 300},
        {"eta": "1970-01-01T00:00:00+00:00", "ignore_result": "yes"},
    ],
)
def test_it_takes_what_celery_executes(headers):
    whole = hostile.message(headers=headers)
    assert form.fault_of_task(whole["headers"], [[], {}, {"callbacks": None, "further": 1}]) == ""


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {"task": "t", "id": "x", "args": [], "kwargs": {}, "queue": "celery", "timeouts": [None, None]}),
        ({"task": "t", "id": "x"}, {"args": [], "kwargs": {}, "chord": None}),
    ],
)
def test_it_takes_messages_of_other_clients(headers, body):
    assert form.fault_of_task(headers, body) == ""


@pytest.mark.parametrize("name", ["unacked", "unacked_index", "_kombu.binding.celery"])
def test_it_takes_no_message_that_would_be_put_back_under_a_key_of_the_broker(name):
    whole = hostile.message()
    whole["properties"]["delivery_info"] = {"exchange": "", "routing_key": name}
    assert "its routing key is not a queue" in form.fault_of_item(json.dumps(whole).encode())


@pytest.mark.parametrize("name", ["shadow", "origin", "lang"])
def test_it_takes_no_text_that_begins_a_line_of_the_log(name):
    whole = hostile.message(headers={name: "x\nCRITICAL forged"})
    assert form.fault_of_task(whole["headers"], [[], {}, {}])
