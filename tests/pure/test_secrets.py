"""A masked text shows no secret in any form, and every sentence of Punctual unchanged."""

import ast
import base64
import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from django.views.debug import ExceptionReporter
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules.errors import Invalid
from jobs.secrets import MARGIN, _patterns, head, mask, masked, refuse_passwords, tail
from tests.app.slips import forms
from tests.servers import ROOT

MANY = 40_000
SECRET = "Canary-ß-1234\n\"quoted\" 'twice' <&>\\/+ end"
TOKEN = "eyJhbGciOiJIUzI1NiJ9." + "a1b2" * 370 + ".c3d4e5f6g7"


@pytest.mark.parametrize("secret", ["canary-1234", "Sesame#1", SECRET, TOKEN, "käfig\t😀😀😀\0"])
def test_it_masks_a_secret_in_every_form_that_a_program_writes(settings, secret):
    settings.JOB_SECRETS = {"KEY": secret}
    for form in forms(secret):
        for written in (form, repr(form), json.dumps(form), json.dumps({"k": [repr(form)]}), repr({form.encode()})):
            shown = mask(f"it is {written}.")
            assert "***" in shown
            assert len(shown) < len(written) / 2 + 30, (written, shown)


@given(st.binary(max_size=20), st.binary(max_size=20), st.text(st.characters(codec="utf-8"), min_size=8, max_size=40))
def test_it_masks_a_secret_in_base64_at_any_place(before, after, secret):
    from django.conf import settings

    given, settings.JOB_SECRETS = settings.JOB_SECRETS, {"KEY": secret}
    try:
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert "***" in mask(encode(before + secret.encode() + after).decode())
    finally:
        settings.JOB_SECRETS = given


@pytest.mark.parametrize("secret", ["Sesame open! it", "(ä@ö)=key", "a/b?c=d&e#f g"])
def test_it_masks_a_secret_that_a_url_holds(settings, secret):
    settings.JOB_SECRETS = {"KEY": secret}
    in_url = httpx.URL("https://h/", params={"k": secret})
    for text in (str(in_url), quote(secret, safe="!()@"), urlencode({"k": secret}), quote(secret).lower()):
        assert "***" in mask(text)
        assert secret[-3:] not in mask(text)


# Each needs a part that the text has, so that the pattern is tried; backslashes stand for quotes in quotes.
@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("#1!a@b$c%d", "\\" * MANY + "1"),
        ("$2b$12$abcdefghij", "\\" * MANY + "abcdefghij"),
        ("\\\\server\\share1", "\\" * MANY + "server"),
        ("abc" + "\\" * 4 + "defg12", "C:" + "\\" * MANY + "abc" + "\\" * MANY + "defg12"),
        ("a'b\"c'd\"e", "a" + "\\'" * MANY),
    ],
)
def test_it_is_not_kept_busy_by_backslashes(settings, secret, text):
    settings.JOB_SECRETS = {"KEY": secret}
    _, pattern, _ = _patterns((secret,))
    assert max(map(int, re.findall(r"\{\d+,(\d+)\}", pattern.pattern))) <= 16 * 4  # bounded: else this test would hang
    assert mask(text)


def test_it_masks_before_it_cuts(settings):
    settings.JOB_SECRETS = {"KEY": TOKEN}
    for before in (0, 50, 99, 150, 199, MARGIN, MARGIN + 150):
        text = "x" * before + TOKEN + "y" * before
        for shown in (head(text, 200), tail(text, 200)):
            assert "a1b2" not in shown, before
            assert len(shown) <= 200
    many = f"{TOKEN} " * 500
    assert set(head(many, 400).split()) == {"***"}
    assert set(tail(many, 400).split()) == {"***"}


def test_it_masks_the_keys_of_this_installation(settings):
    settings.SECRET_KEY, settings.MESSAGE_KEYS = "s" * 50, ["k" * 32, "n" * 32]
    settings.WEBHOOK_KEYS = {"SHOP": ["whsec_" + "w" * 32, "g" * 16], "OTHER": ["o" * 16]}
    assert mask(f"{'s' * 50}, {'k' * 32}, {'n' * 32}") == "***, ***, ***"
    assert mask(f"whsec_{'w' * 32}, {'w' * 32}, {'g' * 16}, {'o' * 16}") == "whsec_***, ***, ***, ***"


def test_it_masks_the_addresses_and_keys_of_channels_also_in_pieces(settings):
    settings.CHANNEL_KEYS = {"HOOK": ["whsec_" + "c" * 32]}
    settings.BEAT_PING_URL = "https://hc.example.org/ping/0b1c2d3e-aaaa-bbbb-cccc-0123456789ab"
    settings.CHANNEL_URLS = {
        "CHAT": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#alerts",
        "NTFY": "ntfys://ada:correct%20horse9@ntfy.example.org/alerts?auth=login7890",
    }
    assert mask(settings.CHANNEL_URLS["CHAT"]) == mask(settings.CHANNEL_URLS["NTFY"]) == "***"
    assert mask("POST hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ") == (
        "POST hooks.slack.com/services/***/***/***"
    )
    assert mask("correct horse9, login7890, c" + "c" * 31) == "***, ***, ***"
    assert mask("hc.example.org: /ping/0b1c2d3e-aaaa-bbbb-cccc-0123456789ab") == "hc.example.org: /ping/***"
    assert mask("alerts on ntfy.example.org, ping") == "alerts on ntfy.example.org, ping"


def test_it_shows_no_secret_of_the_settings_on_the_error_page_of_development(settings, rf):
    settings.DEBUG, settings.BEAT_PING_URL = True, "https://hc.example.org/ping/canary-1234"
    settings.CHANNEL_URLS = {"CHAT": "slack://T1JJ3T3L2/A1BRTD4JD/canary-5678"}
    settings.REDIS_URL = "redis://:canary-9012@host:6379/0"
    page = ExceptionReporter(rf.get("/"), ValueError, ValueError("x"), None).get_traceback_html()
    assert "CHANNEL_URLS" in page
    assert "canary" not in page


def test_it_cuts_no_text_that_fits():
    for size in (0, 1, 199, 200):
        assert head("x" * size, 200) == tail("x" * size, 200) == "x" * size
    assert head("x" * 500_000, 200) == tail("x" * 500_000, 200) == "x" * 200


def test_it_masks_structures_with_their_keys(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    assert masked({b"password": "x", "Authorization": "x", "tokens": ["x"], "token": {"value": "x"}}) == {
        b"password": "***",
        "Authorization": "***",
        "tokens": "***",
        "token": "***",
    }
    given = {"password": "hunter2", "n": {"canary-1234": [b"canary-1234", ("a canary-1234",), 7, None]}, "token": 5}
    assert masked(given) == {"password": "***", "n": {"***": [b"***", ["a ***"], 7, None]}, "token": 5}
    assert masked({"api_key": b"hunter2", "password": ""}) == {"api_key": "***", "password": ""}


def test_it_masks_a_text_of_many_structures_once(settings):
    settings.JOB_SECRETS = {"A": "canary-1234"}
    asked: list[str] = []

    def counting(text: str) -> str:
        asked.append(text)
        return mask(text)

    once = cache(counting)
    assert [masked({"a": ["canary-1234", {"b": "canary-1234"}]}, once) for _ in range(3)] == [
        {"a": ["***", {"b": "***"}]}
    ] * 3
    assert sorted(asked) == ["a", "b", "canary-1234"]


@pytest.mark.parametrize(
    "text",
    [
        '{"headers": {"Authorization": "Bearer secret:BILLING_TOKEN"}}',
        "{'X-Token': 'secret:BILLING'}",
        "secret:BILLING goes to api.example.org only",
        "like redis://:password@host:6379/0",
    ],
)
def test_it_shows_the_names_of_secrets(text):
    assert mask(text) == text


def test_it_leaves_every_sentence_of_punctual_as_it_is():
    changed = []
    for path in [*ROOT.glob("jobs/**/*.py"), *ROOT.glob("project/*.py")]:
        tree = ast.parse(path.read_text())
        owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        described = {id(node.body[0].value) for node in owners if ast.get_docstring(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
                changed += [(path.name, node.value)] if mask(node.value) != node.value else []
    assert {name for name, _ in changed} <= {Path("secrets.py").name}, changed


def test_it_masks_short_secrets_and_none_without_harm():
    needed, pattern, _ = _patterns(("", ""))
    assert (needed, pattern.sub("***", "any text")) == ((), "any text")


@pytest.mark.parametrize(
    "value",
    [{"k": ["https://ada:hunter2@example.org/"]}, "see postgres://:x@db/name", "a://b:c,d'e@f", {"a://b:c@d": 1}],
)
def test_it_refuses_a_url_with_a_password(value):
    with pytest.raises(Invalid, match="set JOB_SECRET_NAME for the workers"):
        refuse_passwords("plain", value)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org:8443?mail=ada@example.org",
        ["http://a:1", "ada@example.org"],
        "https://h:443#me@x",
        "a@b.example",
        "",
    ],
)
def test_it_accepts_a_url_without_a_password(text):
    refuse_passwords(text)
