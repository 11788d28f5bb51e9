"""Does `manage.py check --deploy` name every door that the settings leave open, and only those?"""

import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from jobs import deployment

HOST = "db.example.org"
CLOSED: dict[str, Any] = {
    "HTTP_ALLOW_PRIVATE": False,
    "RUN_COMMANDS": ["check", "clearsessions"],
    "RESTRICTED_JOBS": ["jobs.*", "celery.backend_cleanup"],
    "SECRET_HOSTS": {"A": ["api.example.org", "*.example.org"]},
    "REMOTE_CONTROL": "inspect",
    "MESSAGE_KEYS": ["x" * 32],
    "JOB_SECRETS": {},
    "SSO_HEADER": "",
    "BEHIND_PROXY": True,
    "EMBEDDED": False,
    "DEBUG": False,
    "SECURE_SSL_REDIRECT": True,
    "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
    "INSTALLED_APPS": ["axes", "jobs"],
    "AUTHENTICATION_BACKENDS": ["axes.backends.AxesStandaloneBackend"],
    "SESSION_COOKIE_AGE": 7 * 86_400,
    "CONTENT_SECURITY_POLICY": {"DIRECTIVES": {}},
    "ALLOWED_HOSTS": [".example.org"],
    "DATABASE_DIRECT": None,
}
OPEN: list[tuple[dict[str, Any], str]] = [
    ({"REMOTE_CONTROL": "full"}, "W101"),
    ({"HTTP_ALLOW_PRIVATE": True}, "W102"),
    ({"RUN_COMMANDS": ["check", "flush"]}, "W103"),
    ({"RESTRICTED_JOBS": []}, "W104"),
    ({"RESTRICTED_JOBS": ["billing.*"]}, "W104"),
    ({"SECRET_HOSTS": {"A": ["*"]}}, "W113"),
    ({"SECRET_HOSTS": {"A": ["api.example.org", "http://b.example.org"]}}, "W113"),
    *(
        ({"CACHES": {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}}, "W107")
        for backend in ("redis.RedisCache", "db.DatabaseCache", "filebased.FileBasedCache", "memcached.PyMemcacheCache")
    ),
    ({"SSO_HEADER": "X-User", "BEHIND_PROXY": False}, "W108"),
    ({"INSTALLED_APPS": ["jobs"]}, "W109"),
    ({"AXES_ENABLED": False}, "W109"),
    ({"AUTHENTICATION_BACKENDS": ["django.contrib.auth.backends.ModelBackend"]}, "W109"),
    ({"SESSION_COOKIE_AGE": 365 * 86_400}, "W110"),
    ({"CONTENT_SECURITY_POLICY": None}, "W111"),
    ({"MESSAGE_KEYS": []}, "I101"),
    ({"JOB_SECRETS": {"a": "b"}}, "I102"),
    ({"SECURE_PROXY_SSL_HEADER": None}, "I103"),
    ({"EMBEDDED": True}, "I104"),
    ({"SSO_HEADER": "X-User"}, "I105"),
    ({"ALLOWED_HOSTS": ["a.example.org", "*"]}, "W114"),
]
OURS = re.compile(r"jobs\.[WI]1")
CACHE = "jobs.cache.backend.Cache"
BROKERS = [
    ("redis://redis.example.org", {"password", "encrypted"}),
    ("redis://:word@redis.example.org", {"encrypted"}),
    ("rediss://:word@redis.example.org", set()),
    ("rediss://redis.example.org", {"password"}),
    ("redis://redis:6379/0", {"password"}),
    ("redis://:word@redis:6379/0", set()),
    ("redis://:word@10.0.0.7", set()),
    ("redis://:word@[fd00::7]", set()),
    ("redis://:word@8.8.8.8", {"encrypted"}),
    ("redis://:word@cache.internal", set()),
    ("redis://localhost", set()),
    ("redis://127.0.0.1:6379", set()),
    ("redis+socket:///run/redis.sock", set()),
    ("amqp://user:word@mq.example.org//", {"encrypted"}),
    ("amqps://user:word@mq.example.org//", set()),
    ("amqp://mq.example.org//", {"password", "encrypted"}),
    ("sentinel://:word@a;sentinel://b", {"password"}),
    ("redis://:word@a.example.org;rediss://:word@b", {"encrypted"}),
    ("rediss://a;rediss://:word@b", {"password"}),
    ("rediss://:word@a?ssl_cert_reqs=none", {"certificate"}),
    ("rediss://:word@a?ssl_cert_reqs=CERT_NONE", {"certificate"}),
    ("rediss://:word@a?ssl_cert_reqs=required", set()),
    ("amqps://guest:guest@mq.example.org//", {"password"}),
    ("amqp://guest:guest@localhost//", set()),
    ("sqs://", set()),
]


@pytest.fixture(autouse=True)
def closed(monkeypatch, tmp_path):
    """Settings that leave no door open."""
    tmp_path.chmod(0o700)
    for name, value in {**CLOSED, "MEDIA_ROOT": tmp_path, "VAR_DIR": tmp_path / "var"}.items():
        monkeypatch.setattr(settings, name, value, raising=False)
    monkeypatch.setitem(current_app.conf, "broker_url", "redis://localhost")
    monkeypatch.setitem(connections["default"].settings_dict, "HOST", "")


def found() -> list[str]:
    """The numbers of our own messages. Each has a hint."""
    messages = [each for each in run_checks(tags=["security"], include_deployment_checks=True) if OURS.match(each.id)]
    assert all(each.hint.endswith(".") for each in messages)
    return [each.id.removeprefix("jobs.") for each in messages]


def kinds() -> set[str]:
    words = {"password": "without a password", "encrypted": "unencrypted", "certificate": "certificate"}
    sentences = " ".join(sentence for sentence, _ in deployment.servers())
    return {word for word, part in words.items() if part in sentences}


def test_it_finds_nothing_where_all_doors_are_closed():
    assert found() == []


@pytest.mark.parametrize(("wrong", "number"), OPEN)
def test_it_names_the_open_door(monkeypatch, wrong, number):
    for name, value in wrong.items():
        monkeypatch.setattr(settings, name, value, raising=False)
    assert found() == [number]


def test_it_names_no_setting_that_a_project_does_not_have(monkeypatch):
    for name in ("REMOTE_CONTROL", "RESTRICTED_JOBS", "MESSAGE_KEYS", "JOB_SECRETS", "SSO_HEADER", "RUN_COMMANDS"):
        monkeypatch.delattr(settings, name, raising=False)
    assert found() == []


@pytest.mark.parametrize(("url", "missing"), BROKERS)
def test_it_asks_for_passwords_and_encryption_on_the_way_to_the_broker(monkeypatch, url, missing):
    monkeypatch.setitem(current_app.conf, "broker_url", url)
    assert kinds() == missing


@pytest.mark.parametrize(("url", "missing"), [each for each in BROKERS if each[0].startswith("redis")][:11])
def test_it_asks_for_passwords_and_encryption_on_the_way_to_the_cache(monkeypatch, url, missing):
    monkeypatch.setattr(settings, "CACHES", {"default": {"BACKEND": CACHE, "LOCATION": [url]}})
    assert kinds() == missing


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        ({"HOST": HOST, "PASSWORD": ""}, {"password", "encrypted"}),
        ({"HOST": HOST, "PASSWORD": "word"}, {"encrypted"}),
        ({"HOST": HOST, "PASSWORD": "word", "OPTIONS": {"sslmode": "require"}}, set()),
        ({"HOST": HOST, "PASSWORD": "", "OPTIONS": {"sslmode": "verify-full", "passfile": "/x"}}, set()),
        ({"HOST": "postgres", "PASSWORD": "word"}, set()),
        ({"HOST": "/run/postgresql", "PASSWORD": ""}, set()),
    ],
)
def test_it_asks_for_passwords_and_encryption_on_the_way_to_the_database(monkeypatch, place, missing):
    if connections["default"].vendor != "postgresql":
        pytest.skip("SQLite is a file.")
    for name, value in place.items():
        monkeypatch.setitem(connections["default"].settings_dict, name, value)
    assert kinds() == missing


@pytest.mark.parametrize("accepted", ["pickle", "yaml", "application/x-python-serialize"])
def test_it_warns_of_messages_that_can_run_code(monkeypatch, accepted):
    monkeypatch.setitem(current_app.conf, "accept_content", ["json", accepted])
    assert found() == ["W106"]


@pytest.mark.parametrize("urls", [["redis://:word@a.example.org", "rediss://:word@b"], "redis://:word@a.example.org"])
def test_it_examines_every_address_of_a_cache(monkeypatch, urls):
    monkeypatch.setattr(settings, "CACHES", {"default": {"BACKEND": CACHE, "LOCATION": urls}})
    assert kinds() == {"encrypted"}


@pytest.mark.parametrize(
    ("url", "missing"),
    [
        ("db+postgresql://user:word@db.example.org/name", {"encrypted"}),
        ("db+postgresql+psycopg://user@db.example.org/name?sslmode=verify-full", {"password"}),
        ("db+postgresql://user:word@db/name", set()),
        ("db+sqlite:////srv/results.sqlite3", set()),
        ("redis://:word@redis.example.org", {"encrypted"}),
    ],
)
def test_it_asks_for_passwords_and_encryption_on_the_way_to_the_results(monkeypatch, url, missing):
    monkeypatch.setitem(current_app.conf, "result_backend", url)
    assert kinds() == missing


def test_it_examines_the_database_without_the_pooler_too(monkeypatch):
    place = {"ENGINE": "django.db.backends.postgresql", "HOST": HOST, "PASSWORD": "", "OPTIONS": {}}
    monkeypatch.setattr(settings, "DATABASE_DIRECT", place)
    assert kinds() == {"password", "encrypted"}
    assert all("DATABASE_DIRECT_URL" in sentence for sentence, _ in deployment.servers())
    monkeypatch.setattr(settings, "DATABASE_DIRECT", {"ENGINE": "django.db.backends.sqlite3", "NAME": "/x"})
    assert kinds() == set()


@pytest.mark.parametrize(
    ("mail", "missing"),
    [
        ({"EMAIL_HOST": "mail.example.org", "EMAIL_HOST_PASSWORD": "word"}, {"encrypted"}),
        ({"EMAIL_HOST": "mail.example.org", "EMAIL_HOST_PASSWORD": "word", "EMAIL_USE_TLS": True}, set()),
        ({"EMAIL_HOST": "mail.example.org", "EMAIL_HOST_PASSWORD": "word", "EMAIL_USE_SSL": True}, set()),
        ({"EMAIL_HOST": "mail.example.org"}, set()),
        ({"EMAIL_HOST": "relay", "EMAIL_HOST_PASSWORD": "word"}, set()),
        ({"EMAIL_HOST": "localhost", "EMAIL_HOST_PASSWORD": "word"}, set()),
    ],
)
def test_it_asks_for_encryption_on_the_way_to_the_mail_server(monkeypatch, mail, missing):
    monkeypatch.setattr(settings, "EMAIL_BACKEND", "django.core.mail.backends.smtp.EmailBackend")
    for name, value in mail.items():
        monkeypatch.setattr(settings, name, value)
    assert kinds() == missing


def test_it_names_the_scheme_that_encrypts(monkeypatch):
    for url, scheme in {"sentinel://:word@a.example.org": "sentinel", "amqp://u:word@a.example.org": "amqps"}.items():
        monkeypatch.setitem(current_app.conf, "broker_url", url)
        ((_, hint),) = deployment.servers()
        assert hint.startswith("Write amqps:// in" if scheme == "amqps" else "Set CELERY_BROKER_USE_SSL")


@pytest.fixture
def folder():
    """A folder that every user of the machine can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("name", ["media", "secret_key"])
def test_it_warns_of_files_that_every_user_can_read(monkeypatch, folder, name):
    path = folder / name
    path.touch()
    monkeypatch.setattr(settings, "MEDIA_ROOT", folder / "media")
    monkeypatch.setattr(settings, "VAR_DIR", folder)
    path.chmod(0o640)
    assert found() == []
    path.chmod(0o644)
    assert found() == ["W112"]
    folder.chmod(0o700)  # no other user reaches the file
    assert found() == []


def test_it_proposes_no_change_of_a_folder_that_all_users_share(monkeypatch, folder):
    monkeypatch.setattr(settings, "MEDIA_ROOT", folder)
    for mode, hint in ((0o755, f"Run: chmod 700 {folder}."), (0o1777, "Choose a folder of its own.")):
        folder.chmod(mode)
        assert [each for _, each in deployment.open_files()] == [hint]


def test_it_counts_secrets_in_good_english(monkeypatch):
    for number, words in ((1, "1 secret of"), (2, "2 secrets of")):
        monkeypatch.setattr(settings, "JOB_SECRETS", dict.fromkeys("ab"[:number], "x"))
        ((sentence, _),) = deployment.secrets_here()
        assert words in sentence


def test_it_fails_a_deployment_with_an_open_door(monkeypatch):
    monkeypatch.setattr(settings, "HTTP_ALLOW_PRIVATE", True)
    with pytest.raises(SystemCheckError, match=r"jobs\.W102.*\n.*HINT: Remove HTTP_ALLOW_PRIVATE"):
        call_command("check", "--deploy", "--tag", "security", "--fail-level", "WARNING", stderr=io.StringIO())
