"""Signatures of webhooks: the examples that senders publish, the library of Standard Webhooks, and any other input."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules import signatures
from jobs.rules.errors import Invalid
from jobs.rules.signatures import LARGEST_BODY, LONGEST_EVENT, Reason, RefusedError, verify

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STANDARD, OTHER = (f"whsec_{base64.b64encode(bytes([number]) * 24).decode()}" for number in (1, 2))
PLAIN, OLDER = "It's a Secret to Everybody", "whsec_test_secret_of_long_ago"
KEYS = {"standard": STANDARD, "github": PLAIN, "stripe": PLAIN}
BODY = json.dumps({"id": "evt_1", "object": "event", "name": "käfig"}).encode()
MINUTES = timedelta(minutes=1)
each_form = pytest.mark.parametrize("form", KEYS)


def signed(form: str, body: bytes = BODY, key: str = "", at: datetime = NOW, event: str = "evt_1") -> dict[str, str]:
    """The headers of a delivery, as its sender writes them."""
    key, seconds = key or KEYS[form], str(int(at.timestamp()))
    if form == "standard":
        signature = standardwebhooks.Webhook(key).sign(event, at, body.decode())
        return {"webhook-id": event, "webhook-timestamp": seconds, "webhook-signature": signature}
    text = f"{seconds}.".encode() + body if form == "stripe" else body
    digest = hmac.new(key.encode(), text, hashlib.sha256).hexdigest()
    if form == "stripe":
        return {"stripe-signature": f"t={seconds},v1={digest},v0={'0' * 64}"}
    return {"x-hub-signature-256": f"sha256={digest}"}


def refusal(form: str, headers: dict[str, str], body: bytes = BODY, keys: tuple[str, ...] = ()) -> Reason:
    with pytest.raises(RefusedError) as refused:
        verify(form, headers, body, keys or [KEYS[form]], NOW)
    assert str(refused.value).startswith(f"{refused.value.reason}: ")
    return refused.value.reason


def test_it_takes_the_examples_that_senders_publish():
    key, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    then = datetime.fromtimestamp(1_614_265_330, UTC)
    assert verify("standard", headers, body, [key], then) == "msg_p5jXN8AQM9LWM0D4loKWxJek"

    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    event = verify("github", {"x-hub-signature-256": f"sha256={digest}"}, b"Hello, World!", [PLAIN], NOW)
    assert event == hashlib.sha256(b"Hello, World!").hexdigest()


@each_form
def test_it_takes_what_a_sender_signs(form):
    event = hashlib.sha256(BODY).hexdigest() if form == "github" else "evt_1"
    assert verify(form, signed(form), BODY, [KEYS[form]], NOW) == event


def test_it_agrees_with_the_library_of_standard_webhooks(monkeypatch):
    monkeypatch.setattr(
        standardwebhooks.webhooks,
        "datetime",
        SimpleNamespace(now=NOW.astimezone, fromtimestamp=datetime.fromtimestamp),
    )
    hook = standardwebhooks.Webhook(STANDARD)
    right = signed("standard")
    signature = right["webhook-signature"]
    cases = [
        right,
        {**right, "webhook-signature": f"v1a,abc= {signature}"},
        {**right, "webhook-signature": f"v1,{'A' * 43}= {signature} v1,{'B' * 43}="},
        {**right, "webhook-signature": f"v1,{'A' * 43}="},
        {**right, "webhook-signature": "v1a,abc="},
        {**right, "webhook-id": "evt_2"},
        {**right, "webhook-timestamp": "soon"},
        {name: right[name] for name in right if name != "webhook-signature"},
        signed("standard", key=OTHER),
        *(signed("standard", at=NOW + number * timedelta(seconds=1)) for number in (-301, -300, 300, 301)),
    ]
    outcomes = []
    for headers in cases:
        try:
            hook.verify(BODY, headers)
        except standardwebhooks.WebhookVerificationError:
            refusal("standard", headers)
            outcomes.append(False)
        else:
            outcomes.append(bool(verify("standard", headers, BODY, [STANDARD], NOW)))
    assert outcomes == [True] * 3 + [False] * 6 + [False, True, True, False]


@each_form
def test_it_takes_any_of_several_keys(form):
    other = OTHER if form == "standard" else OLDER
    for keys in ([KEYS[form], other], [other, KEYS[form]]):
        for key in keys:
            assert verify(form, signed(form, key=key), BODY, keys, NOW)
    assert refusal(form, signed(form), keys=(other,)) == Reason.FORGED


def test_it_takes_any_of_several_signatures():
    digest = signed("stripe")["stripe-signature"].split(",")[1]
    several = {"stripe-signature": f"t={int(NOW.timestamp())}, v1={'0' * 64}, {digest}, v2=x"}
    assert verify("stripe", several, BODY, [PLAIN], NOW) == "evt_1"


@pytest.mark.parametrize("form", ["standard", "stripe"])
@pytest.mark.parametrize("minutes", [-6, 6])
def test_it_refuses_an_old_delivery_and_one_of_the_future(form, minutes):
    assert refusal(form, signed(form, at=NOW + minutes * MINUTES)) == Reason.OLD
    assert verify(form, signed(form, at=NOW + minutes / 2 * MINUTES), BODY, [KEYS[form]], NOW)


@pytest.mark.parametrize("seconds", ["", "soon", "1.5", "-1", "9" * 13, "1e9", "\u0661", "0x1", "1_0", " 1"])
def test_it_refuses_a_time_that_is_no_number_of_seconds(seconds):
    malformed = Reason.MISSING if not seconds else Reason.MALFORMED
    assert refusal("standard", {**signed("standard"), "webhook-timestamp": seconds}) == malformed
    digest = signed("stripe")["stripe-signature"].split(",")[1]
    assert refusal("stripe", {"stripe-signature": f"t={seconds},{digest}"}) == Reason.MALFORMED


def test_it_refuses_a_second_time_that_nothing_signed():
    now = int(NOW.timestamp())
    old = signed("stripe", at=NOW - 9 * MINUTES)["stripe-signature"]
    for headers in (f"t={now},{old}", f"{old},t={now}"):
        assert refusal("stripe", {"stripe-signature": headers}) == Reason.MALFORMED


@each_form
def test_it_says_what_is_missing(form):
    right = signed(form)
    for name in right:
        assert refusal(form, {other: value for other, value in right.items() if other != name}) == Reason.MISSING
    assert refusal(form, {}) == Reason.MISSING
    unchecked = {"standard": "v1a,x", "github": f"sha1={'0' * 40}", "stripe": f"t={int(NOW.timestamp())},v0=x"}
    assert refusal(form, {**right, [*right][-1]: unchecked[form]}) == Reason.MISSING


@each_form
def test_it_bounds_all_sizes_before_it_hashes(form, monkeypatch):
    monkeypatch.setattr(hmac, "digest", None)
    last = [*signed(form)][-1]
    many = {"standard": "v1,x " * 30, "github": "sha256=" + "0" * 5_000, "stripe": "t=1," + "v1=0," * 30}
    assert refusal(form, signed(form), b"x" * (LARGEST_BODY + 1)) == Reason.MALFORMED
    assert refusal(form, {**signed(form), last: many[form]}) == Reason.MALFORMED
    assert refusal(form, {**signed(form), last: "v1,x" + "x" * 5_000}) == Reason.MALFORMED
    long = {**signed("standard"), "webhook-id": "x" * (LONGEST_EVENT + 1)}
    assert refusal("standard", long) == Reason.MALFORMED


def test_it_takes_the_largest_body():
    body = b"x" * LARGEST_BODY
    assert verify("standard", signed("standard", body), body, [STANDARD], NOW)


@pytest.mark.parametrize("form", KEYS)
def test_it_hashes_once_for_each_key_and_compares_with_each_signature(form, monkeypatch):
    counts = {"hashed": 0, "compared": 0}
    digest, compare = hmac.digest, hmac.compare_digest

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(hmac, "digest", counted("hashed", digest))
    monkeypatch.setattr(hmac, "compare_digest", counted("compared", compare))
    keys = [STANDARD, OTHER, OTHER] if form == "standard" else [PLAIN, OLDER, OLDER]
    seen = []
    for key in (*keys, f"whsec_{'C' * 32}"):  # the first, the last, and none of them
        counts |= {"hashed": 0, "compared": 0}
        try:
            verify(form, signed(form, key=key), BODY, keys, NOW)
        except RefusedError as error:
            assert error.reason == Reason.FORGED  # noqa: PT017 - the others pass
        seen.append(dict(counts))
    assert seen == [{"hashed": 3, "compared": 3}] * 4


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b"\xff", b"nonsense", b"[" * 100_000, b"9" * 10_000),
        *(b'{"id": 7}', b'{"id": ""}', b'{"id": "\\ud800"}', b'{"id": "a b"}', b'{"id": "a\\u0000"}'),
        b'{"id": "%s"}' % (b"x" * 151),
    ],
)
def test_it_refuses_a_signed_body_of_stripe_without_an_id(body):
    assert refusal("stripe", signed("stripe", body), body) == Reason.MALFORMED


@pytest.mark.parametrize("event", ["a b", "é", "\ud800", "a\nb", "\0", "x" * 151])
def test_it_refuses_an_id_that_is_no_plain_text(event):
    assert refusal("standard", {**signed("standard"), "webhook-id": event}) == Reason.MALFORMED


@pytest.mark.parametrize(
    ("form", "key"),
    [
        ("standard", "whsec_äöü"),
        ("standard", "whsec_?"),
        ("standard", f"whsec_!{'A' * 32}"),
        ("standard", "whsec_AAAA"),
        ("standard", "x"),
        ("github", "short"),
        ("stripe", "whsec_short"),
        ("pigeon", "x" * 32),
    ],
)
def test_it_refuses_a_key_that_does_not_suit_the_form_without_showing_it(form, key):
    with pytest.raises(Invalid) as refused:
        verify(form, {}, BODY, [key], NOW)
    assert key.removeprefix("whsec_") not in str(refused.value) or len(key) == 1


def test_it_refuses_to_work_without_a_key():
    with pytest.raises(Invalid, match="no key"):
        verify("github", signed("github"), BODY, [], NOW)


def test_it_takes_a_key_without_the_prefix_and_without_padding():
    key = base64.b64encode(b"k" * 20).decode()
    for written in (key, key.rstrip("="), f"whsec_{key}"):
        assert signatures.signing_key("standard", written) == b"k" * 20


WORDS = ["webhook-id", "webhook-timestamp", "webhook-signature", "x-hub-signature-256", "stripe-signature"]
PARTS = ["v1", "v0", "t", "sha256", "=", ",", " ", ".", "1772366400", "-1", "9" * 400, "é", "\ud800", "\0", "evt_1"]
values = st.one_of(st.text(), st.lists(st.sampled_from(PARTS)).map("".join))


@given(st.sampled_from([*KEYS]), st.dictionaries(st.sampled_from(WORDS), values), st.binary(max_size=50))
def test_it_refuses_any_other_input_with_a_reason(form, headers, body):
    with pytest.raises(RefusedError):
        verify(form, headers, body, [KEYS[form]], NOW)


@given(st.sampled_from([*KEYS]), st.data())
def test_it_refuses_a_delivery_with_one_flipped_bit(form, data):
    headers = {name: value.encode() for name, value in signed(form).items()}
    if form == "stripe":
        headers["stripe-signature"] = headers["stripe-signature"].rpartition(b",")[0]  # v0 is not checked
    part = data.draw(st.sampled_from([*headers, ""]))
    changed = bytearray(headers.get(part, BODY))
    place = data.draw(st.integers(0, 8 * len(changed) - 1))
    changed[place // 8] ^= 1 << place % 8
    body = BODY if part else bytes(changed)
    seen = {**headers, **({part: bytes(changed)} if part else {})}
    refusal(form, {name: value.decode("latin-1") for name, value in seen.items()}, body)


def test_it_signs_as_the_library_of_standard_webhooks_verifies():
    now = datetime.now(UTC)  # the library compares with the clock of the machine
    headers = signatures.signed("msg_1", BODY, [STANDARD, OTHER], now)
    for key in (STANDARD, OTHER):
        assert standardwebhooks.Webhook(key).verify(BODY, headers) == json.loads(BODY)
        assert verify("standard", headers, BODY, [key], now) == "msg_1"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(OTHER).verify(BODY, signatures.signed("msg_1", BODY, [STANDARD], now))
    with pytest.raises(RefusedError):
        verify("standard", {**headers, "webhook-id": "msg_2"}, BODY, [STANDARD], now)
