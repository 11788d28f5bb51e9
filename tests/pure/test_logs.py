"""What a run logs is kept without the secrets in it."""

import json
import logging
import subprocess
import sys
from datetime import datetime, timedelta
from urllib.parse import quote
from uuid import UUID

import pytest

from jobs import logs, secrets
from jobs.logs import Formatter, Plain
from jobs.secrets import head, mask, tail
from jobs.worker.logs import RunHandler
from project.logs import without_links
from tests.servers import ROOT
from tests.waiting import DEADLINE


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password=hunter2 and more", "password=*** and more"),
        ("{'password': 'hunter2', 'user': 'ada'}", "{'password': ***, 'user': 'ada'}"),
        ('{"api_key": "a b c", "n": 1}', '{"api_key": ***, "n": 1}'),
        ("X-Auth-Token: abc123", "X-Auth-Token: ***"),
        ("db_password: s3cr3t,", "db_password: ***,"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("'Authorization': 'Basic YWRhOmFkYQ=='", "'Authorization': 'Basic ***'"),
        ("sent with bearer abcdefghijkl", "sent with bearer ***"),
        ("postgres://ada:hunter2@db:5432/x", "postgres://ada:***@db:5432/x"),
        ("redis://:hunter2@cache/0", "redis://:***@cache/0"),
        ("postgres://u:p@ss@h/x", "postgres://u:***@h/x"),
        ("sessionid=abc", "sessionid=***"),
        ("https://example.com/path?token=abc&x=1", "https://example.com/path?token=***&x=1"),
        ("12:30 backed up 7 tables for token bearers", "12:30 backed up 7 tables for token bearers"),
        ("https://example.com:8000/@me", "https://example.com:8000/@me"),
        ("", ""),
    ],
)
def test_it_masks_what_stands_beside_a_word_for_a_secret(text, masked):
    assert mask(text) == masked


def test_it_masks_long_texts_in_no_time():
    for text in ("password" * 9_000 + "=" * 9_000 + "x://" * 9_000, "a" * 90_000, "a-" * 90_000, "://:" * 9_000):
        assert len(mask(text)) <= len(text)


@pytest.mark.parametrize("path", ["/files/", "/%66iles/", "%2ffiles%2F", "/%46iles/../%66%69%6C%65%73/"])
def test_it_masks_the_token_of_a_link_however_its_path_is_written(path):
    assert without_links(f"GET {path}Ab1:cD2?x=1 HTTP/1.1") == f"GET {path}***?x=1 HTTP/1.1"


def test_it_keeps_nothing_of_what_is_logged_outside_of_runs():
    handler = RunHandler()
    handler.handle(logging.LogRecord("shop", logging.INFO, "", 0, "hello", (), None))
    handler.handle(logging.LogRecord("celery.worker", logging.INFO, "", 0, "hello", (), None))


@pytest.mark.parametrize("secret", ["canary-1234", "canary\n'\"\\quoted", "cänäry-1234"])
def test_it_masks_a_secret_however_it_is_quoted(settings, secret):
    settings.JOB_SECRETS = {"KEY": secret}
    for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")):
        assert mask(f"it is {form}.") == "it is ***."


def test_it_masks_each_long_line_of_a_secret(settings):
    settings.JOB_SECRETS = {"KEY": "-----BEGIN-----\nMIIEvQIBADAN\nab"}
    assert mask("line 2: MIIEvQIBADAN, ab") == "line 2: ***, ab"


def test_it_masks_the_longer_of_two_secrets_that_begin_alike(settings):
    settings.JOB_SECRETS = {"A": "hunter22", "B": "hunter22-production"}
    assert mask("key hunter22-production, hunter22") == "key ***, ***"


def test_it_leaves_no_half_of_a_secret_where_a_text_is_cut(settings):
    settings.JOB_SECRETS = {"KEY": "canary-s3cr3t-s3cr3t"}
    for cut in range(1, 40):
        text = "x" * (100 - cut) + "canary-s3cr3t-s3cr3t" + "y" * 100
        assert "s3cr" not in head(text, 100)
        assert "cana" not in head(text, 100)
        assert "s3cr" not in tail(text, 100 + cut)


def test_it_masks_what_every_handler_shows_with_its_traceback(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    try:
        int("canary-1234")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "with %s", ("canary-1234",), sys.exc_info())
    shown = Plain("%(message)s").format(record)
    assert "canary" not in shown
    assert "with ***\nTraceback" in shown


def test_it_takes_the_name_of_a_module_for_no_name_of_a_secret():
    record = logging.LogRecord("app.tokens", logging.INFO, "x", 1, "Refreshed with token: abc", (), None)
    assert Plain("%(name)s: %(message)s").format(record) == "app.tokens: Refreshed with token: ***"
    assert Plain("%(message)s").format(record) == "Refreshed with token: ***"


def line(as_json: bool, **columns: object) -> str:
    """What the formatter makes of a record with these attributes."""
    own = {"name": "shop", "levelname": "INFO", "levelno": logging.INFO, "msg": "hello"}
    return Formatter(as_json=as_json).format(logging.makeLogRecord({**own, **columns}))


def error() -> tuple:
    with pytest.raises(ValueError, match="hunter2") as caught:
        int("password=hunter2")
    return caught.type, caught.value, caught.tb


def test_it_writes_a_record_with_its_traceback_as_one_line_of_json(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    shown = line(True, msg="%s\ncanary-1234", args=("first",), exc_info=error(), stack_info="Stack\ncanary-1234")
    found = json.loads(shown)
    assert (found["level"], found["logger"], found["event"]) == ("info", "shop", "first\n***")
    assert found["exception"].endswith("int() with base 10: 'password=***")
    assert found["stack"] == "Stack\n***"
    assert datetime.fromisoformat(found["timestamp"]).utcoffset() == timedelta(0)
    assert len(shown.splitlines()) == 1


def test_it_writes_the_sentence_before_the_keys_and_the_traceback_below():
    first, *below = line(False, exc_info=error(), run="0193", words="two words", text='a"\n\x1b').splitlines()
    assert first.endswith(r''' INFO shop: hello run=0193 words="two words" text="a\"\n\u001b"''')
    assert (below[0], below[-1]) == (
        "Traceback (most recent call last):",
        "ValueError: invalid literal for int() with base 10: 'password=***",
    )


class Opaque:
    def __str__(self) -> str:
        return "canary-1234"


@pytest.mark.parametrize("as_json", [True, False])
def test_it_masks_the_values_of_keys(settings, as_json):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    values = {"api_key": "hunter2", "url": "redis://:hunter2@x", "deep": {"a": ["canary-1234", {"token": "hunter2"}]}}
    values |= {"opaque": Opaque(), "inside": [Opaque()], "canary-1234": 1, "text": "\nAuthorization: hunter2"}
    shown = line(as_json, **values)
    assert not any(word in shown for word in ("canary", "hunter2"))
    assert shown.count("***") == 8


def test_it_masks_a_value_inside_of_others():
    assert json.loads(line(True, deep=["\nAuthorization: hunter2"]))["deep"] == ["\nAuthorization: ***"]


def test_it_finds_the_sentence_of_a_line_of_any_form():
    assert (logs.sentence_of(line(True)), logs.sentence_of("plain"), logs.sentence_of("[1]")) == (
        "hello",
        "plain",
        "[1]",
    )


def test_it_writes_values_that_json_does_not_know():
    deep: list = []
    deep.append(deep)
    values = {"number": float("nan"), "deep": deep, "raw": b"x", "key": UUID(int=1), "names": {1: {"b"}}}
    found = json.loads(line(True, **values), parse_constant=pytest.fail)
    assert (found["number"], found["raw"], found["names"]) == ("nan", "b'x'", {"1": ["b"]})
    assert found["key"] == str(UUID(int=1))


def test_it_lets_no_key_replace_a_part_of_the_line():
    found = json.loads(line(True, event="x", level="y", exception="z", _hidden=1))
    assert (found["event"], found["level"]) == ("hello", "info")
    assert (found["event_"], found["level_"], found["exception_"]) == ("x", "y", "z")
    assert "_hidden" not in found


def test_it_adds_the_keys_of_registered_functions_and_of_celery(monkeypatch):
    monkeypatch.setattr(logs, "_knowing", [lambda: {"run": "0193", "task": "outer"}])
    found = json.loads(line(True, name="celery.app.trace", data={"id": "5", "name": "shop.sell", "args": "(1,)"}))
    assert (found["run"], found["task"], found["task_id"], "data" in found) == ("0193", "shop.sell", "5", False)
    assert json.loads(line(True, run="0194"))["run"] == "0194"


def test_it_leaves_the_sentence_about_an_unknown_secret_as_it_is():
    with pytest.raises(secrets.UnknownNameError) as caught:
        secrets.reveal("secret:NOPE")
    sentence = f"{type(caught.value).__module__}.{type(caught.value).__qualname__}: {caught.value}"
    assert mask(sentence) == sentence


def test_it_logs_a_line_that_comes_before_djangos_models_are_loaded():
    code = "import logging.config; from django.conf import settings; logging.config.dictConfig(settings.LOGGING)"
    command = [sys.executable, "-c", f"{code}; logging.getLogger('app').warning('early')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, "WARNING app: early" in done.stderr) == (0, True), done.stderr
