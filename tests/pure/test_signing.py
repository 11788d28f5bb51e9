"""A signature is valid for exactly one message: a worker notices a change of any part."""

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.utils.json import dumps, loads

from jobs.messages import signing
from jobs.messages.signing import SIGNATURE_HEADER
from tests.hostile import message

KEYS = ["a" * 32, "b" * 32]
BODY = '[["x"], {}, {"chain": null}]'


@pytest.fixture(autouse=True)
def _keys(settings) -> None:
    settings.MESSAGE_KEYS = KEYS


def signed(headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """The parts of a signed message as a worker receives them: encoded and decoded in between."""
    whole = message(headers=headers or {})
    content = whole["content-type"], whole["content-encoding"]
    signature = signing.sign(signing.digest(BODY), content, whole["headers"], whole["properties"])
    parts = {"headers": {**whole["headers"], SIGNATURE_HEADER: signature}, "properties": whole["properties"]}
    return {**loads(dumps(parts)), "body": BODY.encode(), "content_type": content[0], "content_encoding": content[1]}


def fault(parts: dict[str, Any]) -> str:
    return signing.fault(SimpleNamespace(**parts))


@pytest.mark.parametrize(
    "headers", [{}, {"mine": {"2": [1.5, None], "a": {"c": 1, "b": "ä"}}}, {"mine": {1: "one", 10: "ten", 9: "nine"}}]
)
def test_it_trusts_a_signed_message(headers):
    assert fault(signed(headers)) == ""


def test_it_trusts_each_key_and_signs_with_the_first(settings):
    parts = signed()
    settings.MESSAGE_KEYS = KEYS[::-1]
    assert fault(parts) == ""
    settings.MESSAGE_KEYS = KEYS[1:]
    wrong = "its signature is wrong: another program changed it, or give its sender this installation's MESSAGE_KEYS"
    assert fault(parts) == wrong


def test_it_refuses_a_message_without_a_signature():
    parts = signed()
    del parts["headers"][SIGNATURE_HEADER]
    assert fault(parts) == "it is not signed: give its sender this installation's MESSAGE_KEYS"


CHANGED = ["changed", 1, None, [], {"a": 1}]


@pytest.mark.parametrize("name", [*message()["headers"], SIGNATURE_HEADER])
def test_it_refuses_a_change_of_any_header(name):
    for value in CHANGED:
        parts = signed()
        if parts["headers"][name] != value:
            parts["headers"][name] = value
            assert fault(parts), value
    parts = signed()
    del parts["headers"][name]
    assert fault(parts)


@pytest.mark.parametrize("name", ["punctual_attempt", "punctual_step", "mine", "callbacks", "xray"])
def test_it_refuses_a_header_that_was_added(name):
    parts = signed()
    parts["headers"][name] = 1
    assert fault(parts)


@pytest.mark.parametrize("name", ["redelivered", "x-death", "X-Received-From"])
def test_it_ignores_headers_that_a_broker_adds(name):
    parts = signed()
    parts["headers"][name] = [{"count": 1}]
    assert fault(parts) == ""


def test_it_refuses_a_change_of_the_body_at_any_place():
    for place in range(len(BODY)):
        parts = signed()
        parts["body"] = (BODY[:place] + "~" + BODY[place + 1 :]).encode()
        assert fault(parts)


@pytest.mark.parametrize("name", ["content_type", "content_encoding"])
def test_it_refuses_a_change_of_the_content(name):
    assert fault({**signed(), name: "application/x-python-serialize"})


@pytest.mark.parametrize("name", ["reply_to", "correlation_id"])
def test_it_refuses_another_address_for_the_result(name):
    parts = signed()
    parts["properties"][name] = "elsewhere"
    assert fault(parts)


def test_it_checks_nothing_without_a_key(settings):
    settings.MESSAGE_KEYS = []
    parts = {"headers": {}, "properties": {}, "body": b"", "content_type": None, "content_encoding": None}
    assert fault(parts) == ""
