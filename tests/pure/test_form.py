"""A message has the form in which Celery sends it, and a bounded size after decompression."""

import json

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


@pytest.mark.parametrize("name", ["get", "is_eager", "punctual_execution", "args"])
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
