"""The settings turn an environment into typed values, or into one sentence that names the variable but not the value.

One process reads all cases one after another, with only their variables. Tests of manage.py start real processes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from subprocess import PIPE
from typing import Any

import pytest

from jobs.worker.app import Application
from tests.servers import ROOT
from tests.waiting import DEADLINE

SECRET = "hunter2"
COMPLETE = {
    "SECRET_KEY": "x" * 50,
    "ALLOWED_HOSTS": "punctual.example",
    "DATABASE_URL": f"postgres://user:{SECRET}@db.example:5432/punctual",
    "REDIS_URL": f"redis://:{SECRET}@redis.example:6379/0",
}
# Reads lines, each a list of environments. Answers with the settings of each environment, or with its error.
READER = """
import json, os, runpy, sys, traceback, warnings
import environ, jobs.local.embedded
from django.core.exceptions import ImproperlyConfigured

warnings.simplefilter("error")

def outcome(variables):
    os.environ.clear()
    os.environ.update(variables)
    environ.FileAwareEnv.ENVIRON.files_cache.clear()
    try:
        seen = runpy.run_path("project/settings.py")
    except ImproperlyConfigured as error:
        return {"refused": str(error), "traceback": traceback.format_exc()}
    return {name: value for name, value in seen.items() if name.isupper()}

for line in sys.stdin:
    print(json.dumps([outcome(variables) for variables in json.loads(line)], default=str), flush=True)
"""
ENVIRONMENT = {"PATH": os.defpath, "ENV_FILE": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}

BAD_DATABASE_URLS = [
    "nonsense",
    f"mysql://user:{SECRET}@db/punctual",
    f"postgres//user:{SECRET}@db/punctual",
    f"postgres://user:{SECRET}@db:port/punctual",
    f"postgres://user:{SECRET}@db:70000/punctual",
    f"postgres://user:{SECRET}/2@db/punctual",
    f"postgres://user:{SECRET}@db:5432",
    f"postgres://user:{SECRET}@db/",
    f"postgres://user:{SECRET}@[::1/punctual",
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///relative.sqlite3",
    "sqlite://host/absolute.sqlite3",
]
BAD_REDIS_URLS = [
    "nonsense",
    f"http://:{SECRET}@redis:6379/0",
    f"redis://:{SECRET}@redis:port/0",
    f"redis://:{SECRET}@redis:70000/0",
    f"redis://:{SECRET}/2@redis:6379/0",
    f"redis://:{SECRET}@redis/first",
    "redis://",
    "unix://",
    "unix://folder/redis.sock",
    "unix:///redis.sock?db=first",
]
BAD_VALUES = {
    "DEBUG": ["maybe", "2", f"{SECRET}"],
    "HTTPS": ["ja"],
    "EMBEDDED": ["perhaps"],
    "QUEUES": ["slow,unacked", "celery.pidbox", "a b", "punctual:1:x", "_kombu.binding.celery", "x" * 201],
    "RESULT_BACKEND": ["foo", "django_db", "pigeon://host", "no.such.module:Backend", "celery.backends.redis"],
    "RESULT_EXPIRES": ["soon", "1.5", "0", "-5", "always"],
    "LEASE_SECONDS": ["soon", "nan", "0", "-1"],
    "ADMIN_PATH": [
        "/",
        "a b",
        "../x",
        "static/",
        "files/x",
        "livez",
        "readyz/x",
        "metrics",
        "hooks/x",
        "api",
        "é",
        "a//b",
    ],
    "SESSION_IDLE_MINUTES": ["0", "soon"],
    "SESSION_DAYS": ["-1", "1.5"],
    "SSO_HEADER": ["X Remote", "X_User", "1"],
    "TIME_ZONE": ["Mars/Olympus", "Europe", "../../etc/passwd", "+02:00"],
    "LOG_LEVEL": ["loud"],
    "LOG_FORMAT": ["xml", "JSON!"],
    "MESSAGE_KEYS": [SECRET, f"{'k' * 32},{SECRET}"],
    "WEBHOOK_KEYS_SHOP": [SECRET, f"{'k' * 32},{SECRET}", ",", "k" * 15],
    "WEBHOOK_KEYS_SHOP_FILE": ["/does/not/exist"],
    "WEBHOOK_KEYS_7": ["k" * 32],
    "CHANNEL_URL_CHAT": [SECRET, f"slack:{SECRET}", f"slack://{SECRET} b", f"https:///{SECRET}", "a://b"],
    "CHANNEL_URL_CHAT_FILE": ["/does/not/exist"],
    "CHANNEL_KEY_HOOK": [SECRET, f"whsec_{'!' * 32}", ",", f"whsec_{'k' * 32},{SECRET}", "whsec_" + "k" * 20],
    "BEAT_PING_URL": [SECRET, f"ftp://host/{SECRET}", f"https:///{SECRET}"],
    "REMOTE_CONTROL": ["everything"],
    "METRICS_TOKEN": ["short"],
    "METRICS_NETWORKS": ["10.0.0.0/33", "10.0.0.1/8", "localhost", "2001:db8::/200", "10.0.0.0/8,x"],
    "EMAIL_URL": [f"pigeon://user:{SECRET}@host", f"smtp://user:{SECRET}@host:port", f"smtp://{SECRET}@host?tls=True"],
    "RESTRICTED_JOBS": ["*.report", "a,b*c", "x" * 201],
    "MAIL_DOMAINS": ["a b.org", "name@example.org", "*", "a.*.org", ".org"],
    "SECRET_HOSTS_BILLING": ["https://", "api.example.org/path", "a b", "*.*.org", "user@host"],
    "SECRET_HOSTS_BILLING_FILE": ["/does/not/exist"],
    "SECRET_JOBS_BILLING": ["*.report"],
    "SECRET_JOBS_7": ["jobs.report"],
    "SECRET_KEY_FILE": ["/does/not/exist"],
    "DATABASE_URL_FILE": ["/"],
}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Returns for each environment its settings by name, or `refused` (the sentence) and `traceback`."""
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as reader:

        def ask(*environments: dict[str, str]) -> list[dict[str, Any]]:
            cases = [{"ENV_FILE": os.devnull, **environment} for environment in environments]
            reader.stdin.write(json.dumps(cases) + "\n")
            reader.stdin.flush()
            return json.loads(reader.stdout.readline())

        yield ask


@pytest.fixture
def assert_refused(outcomes: Callable[..., list[dict[str, Any]]]) -> Callable[..., None]:
    """Asserts that each value alone is refused, in one line that names its variable and hides its secret."""

    def check(*cases: tuple[str, str]) -> None:
        seen = outcomes(*({**COMPLETE, name: value} for name, value in cases))
        for (name, value), outcome in zip(cases, seen, strict=True):
            assert name in outcome.get("refused", ""), (name, value, outcome)
            assert "\n" not in outcome["refused"]
            assert SECRET not in outcome["traceback"], (name, value)

    return check


def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", *arguments]
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def test_it_names_the_variable_when_one_is_missing(outcomes):
    cases = [{name: COMPLETE[name] for name in COMPLETE if name != missing} for missing in COMPLETE]
    for missing, outcome in zip(COMPLETE, outcomes(*cases), strict=True):
        assert f"{missing} is not set" in outcome["refused"]


def test_it_uses_embedded_servers_without_debug_only_if_embedded_is_on(outcomes, tmp_path):
    alone = {"SECRET_KEY": "x" * 50, "ALLOWED_HOSTS": "a.example", "VAR_DIR": str(tmp_path)}
    refused, seen = outcomes(alone, {**alone, "EMBEDDED": "true"})
    assert "DATABASE_URL is not set" in refused["refused"]
    assert seen["DATABASES"]["default"]["NAME"] == f"{tmp_path}/punctual.sqlite3"
    assert seen["REDIS_URL"].startswith("unix://")
    assert seen["DEBUG"] is False


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_DIRECT_URL"])
def test_it_refuses_an_invalid_database_url(assert_refused, name):
    assert_refused(*((name, url) for url in BAD_DATABASE_URLS))


def test_it_uses_server_side_cursors_unless_a_pooler_stands_before_the_database(outcomes):
    direct = f"postgres://user:{SECRET}@db.example:5432/punctual"
    usual, pooled, odd = outcomes(
        COMPLETE,
        {**COMPLETE, "DATABASE_URL": "postgres://user@pooler:6432/pool", "DATABASE_DIRECT_URL": direct},
        {**COMPLETE, "DATABASE_DIRECT_URL": "sqlite:////srv/punctual.sqlite3"},
    )
    assert usual["DATABASE_DIRECT"] is None
    assert not usual["DATABASES"]["default"]["DISABLE_SERVER_SIDE_CURSORS"]
    assert pooled["DATABASE_DIRECT"]["HOST"] == "db.example"
    assert pooled["DATABASES"]["default"]["DISABLE_SERVER_SIDE_CURSORS"]
    assert odd["refused"] == "DATABASE_DIRECT_URL is invalid: it must lead to the database of DATABASE_URL."


@pytest.mark.parametrize("name", ["REDIS_URL", "CACHE_URL"])
def test_it_refuses_an_invalid_redis_url(assert_refused, name):
    assert_refused(*((name, url) for url in [*BAD_REDIS_URLS, f"sentinel://:{SECRET}@redis:26379/0"]))


def test_it_caches_beside_the_broker_unless_cache_url_is_set(outcomes):
    near, far = outcomes(COMPLETE, {**COMPLETE, "CACHE_URL": "unix:///run/cache.sock?db=1"})
    assert near["CACHES"]["default"]["LOCATION"] == [COMPLETE["REDIS_URL"]]
    assert far["CACHES"]["default"]["LOCATION"] == ["unix:///run/cache.sock?db=1"]
    assert far["REDIS_URL"] == COMPLETE["REDIS_URL"]


def test_it_refuses_values_of_a_wrong_kind(assert_refused):
    assert_refused(*((name, value) for name, values in BAD_VALUES.items() for value in values))


@pytest.mark.parametrize("url", [BAD_DATABASE_URLS[3], BAD_DATABASE_URLS[-1]])
def test_it_ends_a_command_with_one_sentence_after_an_error(url):
    answer = manage("check", **{**COMPLETE, "DATABASE_URL": url})
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("Configuration: DATABASE_URL ")
    assert answer.stderr.count("\n") == 1
    assert SECRET not in answer.stderr


def test_it_passes_the_system_checks_when_only_debug_is_set(tmp_path):
    answer = manage("check", DEBUG="true", VAR_DIR=str(tmp_path / "var"))
    assert answer.returncode == 0, answer.stderr


def test_it_lets_no_other_user_read_a_database_that_it_creates(tmp_path):
    code = f"""
import os, pathlib
from django.db import connection
connection.cursor().execute("CREATE TABLE it (a int)")
for path in pathlib.Path({str(tmp_path)!r}).rglob("*"): print(path.name, oct(path.stat().st_mode & 0o777))
"""
    variables = {"SECRET_KEY": "x" * 50, "ALLOWED_HOSTS": "a", "EMBEDDED": "true", "VAR_DIR": str(tmp_path / "var")}
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-c", code]
    options = {"env": {**ENVIRONMENT, **variables}, "cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run(command, **options, timeout=DEADLINE, check=False, umask=0o022)
    modes = dict(line.split() for line in done.stdout.splitlines())
    files = {"punctual.sqlite3": "0o600", "punctual.sqlite3-wal": "0o600", "punctual.sqlite3-shm": "0o600"}
    assert modes == {"var": "0o700", **files}, done.stderr


def test_it_names_a_folder_that_it_cannot_create(tmp_path):
    (tmp_path / "var").touch()
    variables = {"SECRET_KEY": "x" * 50, "ALLOWED_HOSTS": "a", "EMBEDDED": "true", "VAR_DIR": str(tmp_path / "var")}
    answer = manage("migrate", **variables)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1), answer.stderr
    assert "set VAR_DIR to a writable folder" in answer.stderr


def test_it_reads_secrets_from_files(outcomes, tmp_path):
    variables = {}
    for name, value in {**COMPLETE, "SECRET_KEY": "$from/a file"}.items():
        (tmp_path / name).write_text(f"{value}\n")
        variables[f"{name}_FILE"] = str(tmp_path / name)
    (seen,) = outcomes(variables)
    assert seen["SECRET_KEY"] == "$from/a file"
    assert seen["ALLOWED_HOSTS"] == ["punctual.example"]
    assert seen["DATABASES"]["default"]["PASSWORD"] == SECRET
    assert seen["REDIS_URL"] == COMPLETE["REDIS_URL"]


def test_it_needs_only_debug_for_development(outcomes, tmp_path):
    variables = {"DEBUG": "true", "VAR_DIR": str(tmp_path / "a+b c?")}
    first, second = outcomes(variables, variables)
    assert len(first["SECRET_KEY"]) >= 50
    assert first["SECRET_KEY"] == second["SECRET_KEY"]
    assert first["DATABASES"]["default"]["NAME"] == f"{tmp_path}/a+b c?/punctual.sqlite3"
    assert "localhost" in first["ALLOWED_HOSTS"]
    assert (first["EMBEDDED"], first["HTTPS"]) == (True, False)


def test_it_treats_empty_variables_as_unset_and_ignores_spaces_in_lists(outcomes):
    (seen,) = outcomes({**COMPLETE, "EMAIL_URL": "", "DEBUG": "", "ALLOWED_HOSTS": "a.example, b.example,"})
    assert (seen["DEBUG"], seen["ALLOWED_HOSTS"]) == (False, ["a.example", "b.example"])


def test_it_reads_a_database_url(outcomes):
    expected = {
        "postgres://u:p%40ss@db/name": {"HOST": "db", "USER": "u", "PASSWORD": "p@ss", "NAME": "name"},
        "postgresql:////run/postgresql/name": {"HOST": "/run/postgresql", "NAME": "name"},
        "postgres://db/name?sslmode=require&conn_max_age=5": {"CONN_MAX_AGE": 5, "CONN_HEALTH_CHECKS": True},
        "sqlite:////srv/a%2Bb.sqlite3": {"NAME": "/srv/a+b.sqlite3", "CONN_MAX_AGE": 0},
        "sqlite://:memory:": {"NAME": ":memory:"},
    }
    seen = outcomes(*({**COMPLETE, "DATABASE_URL": url} for url in expected))
    for url, outcome in zip(expected, seen, strict=True):
        assert expected[url].items() <= outcome["DATABASES"]["default"].items(), url


def test_it_reads_an_email_url(outcomes):
    smtp, plain = "django.core.mail.backends.smtp.EmailBackend", {"EMAIL_USE_TLS": False, "EMAIL_USE_SSL": False}
    login = {"EMAIL_HOST": "h", "EMAIL_PORT": 587, "EMAIL_HOST_USER": "u", "EMAIL_HOST_PASSWORD": "p@ss"}
    expected = {
        "smtp+tls://u:p%40ss@h:587": {"EMAIL_BACKEND": smtp, **plain, "EMAIL_USE_TLS": True, **login},
        "smtp+ssl://u:p%40ss@h:587": {"EMAIL_BACKEND": smtp, **plain, "EMAIL_USE_SSL": True, **login},
        "smtp://u:p%40ss@h:587": {"EMAIL_BACKEND": smtp, **plain, **login},
        "filemail:///srv/mail": {"EMAIL_BACKEND": smtp.replace("smtp", "filebased"), "EMAIL_FILE_PATH": "srv/mail"},
        "": {"EMAIL_BACKEND": smtp, **plain, "EMAIL_HOST": "localhost", "EMAIL_PORT": 25, "EMAIL_HOST_USER": None},
    }
    seen = outcomes(*({**COMPLETE, "EMAIL_URL": url} for url in expected))
    for url, outcome in zip(expected, seen, strict=True):
        assert expected[url].items() <= outcome.items(), url


def test_it_keeps_results_for_an_hour_or_a_set_time_or_for_good(outcomes):
    seen = outcomes(*({**COMPLETE, "RESULT_EXPIRES": value} for value in ("", "60", "never", "Never")))
    assert [each["CELERY_RESULT_EXPIRES"] for each in seen] == [3600, 60, None, None]


def test_it_defines_queues_only_if_queues_is_set(outcomes):
    unset, some = outcomes(COMPLETE, {**COMPLETE, "QUEUES": "slow, mail,celery, slow"})
    assert (unset["QUEUES"], "CELERY_TASK_QUEUES" in unset) == ([], False)
    assert list(some["CELERY_TASK_QUEUES"]) == ["celery", "slow", "mail"]
    tables = []
    for conf in ({}, {"task_queues": some["CELERY_TASK_QUEUES"]}):
        app = Application("its", set_as_current=False)
        app.conf.update(conf)
        tables.append(app.amqp.queues)
    assert [list(queues.consume_from) for queues in tables] == [["celery"], ["celery", "slow", "mail"]]
    assert tables[0]["celery"].as_dict() == tables[1]["celery"].as_dict()
    assert tables[0]["slow"].as_dict() == tables[1]["slow"].as_dict()  # as Celery makes a queue that is not defined


def test_it_moves_the_admin_and_bounds_sessions(outcomes):
    usual, own = outcomes(
        COMPLETE, {**COMPLETE, "ADMIN_PATH": "/office/console", "SESSION_IDLE_MINUTES": "30", "SESSION_DAYS": "1"}
    )
    assert (usual["ADMIN_PATH"], usual["SESSION_IDLE_MINUTES"], usual["SESSION_COOKIE_AGE"]) == ("admin/", 720, 604_800)
    assert (own["ADMIN_PATH"], own["SESSION_IDLE_MINUTES"], own["SESSION_COOKIE_AGE"]) == (
        "office/console/",
        30,
        86_400,
    )


def test_it_lets_a_proxy_name_users_only_if_there_is_one(outcomes):
    unset, refused, named = outcomes(
        COMPLETE,
        {**COMPLETE, "SSO_HEADER": "X-Remote-User"},
        {**COMPLETE, "SSO_HEADER": "X-Remote-User", "BEHIND_PROXY": "true"},
    )
    assert "SSO_HEADER needs BEHIND_PROXY=true" in refused["refused"]
    for seen, is_there in ((unset, False), (named, True)):
        assert ("project.login.ProxyLogin" in seen["MIDDLEWARE"]) is is_there
        assert ("project.login.ProxyBackend" in seen["AUTHENTICATION_BACKENDS"]) is is_there


def test_it_prints_mail_with_debug_unless_email_url_is_set(outcomes):
    default, told = outcomes({**COMPLETE, "DEBUG": "true"}, {**COMPLETE, "DEBUG": "true", "EMAIL_URL": "smtp://h"})
    assert default["EMAIL_BACKEND"] == "django.core.mail.backends.console.EmailBackend"
    assert (told["EMAIL_BACKEND"], told["EMAIL_HOST"]) == ("django.core.mail.backends.smtp.EmailBackend", "h")


def test_it_refuses_an_sqlite_without_returning():
    code = "import sqlite3; sqlite3.sqlite_version_info = (3, 34, 1); import project.settings"
    environment = {**ENVIRONMENT, **COMPLETE, "DATABASE_URL": "sqlite:////srv/name.sqlite3"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert "use a Python with SQLite 3.35 or newer, or PostgreSQL" in done.stderr


def test_it_hides_a_secret_of_the_env_file_behind_an_empty_variable(outcomes, tmp_path):
    (tmp_path / "env").write_text("JOB_SECRET_KEY=canary-1234\n")
    file = {**COMPLETE, "ENV_FILE": str(tmp_path / "env")}
    shown, hidden = outcomes(file, {**file, "JOB_SECRET_KEY": "", "JOB_SECRET_KEY_FILE": ""})
    assert (shown["JOB_SECRETS"], hidden["JOB_SECRETS"]) == ({"KEY": "canary-1234"}, {})


def test_it_reads_the_keys_of_each_sender_of_webhooks(outcomes, tmp_path):
    (tmp_path / "keys").write_text(f"whsec_{'a' * 32} , {'b' * 16}\n")
    given = {"WEBHOOK_KEYS_SHOP_FILE": str(tmp_path / "keys"), "WEBHOOK_KEYS_Git_1": "c" * 16, "WEBHOOK_KEYS_NONE": ""}
    [seen] = outcomes({**COMPLETE, **given})
    assert seen["WEBHOOK_KEYS"] == {"SHOP": [f"whsec_{'a' * 32}", "b" * 16], "Git_1": ["c" * 16]}


def test_it_reads_the_addresses_and_keys_of_channels(outcomes, tmp_path):
    (tmp_path / "url").write_text("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ\n")
    key = "whsec_" + "k" * 32
    given = {"CHANNEL_URL_CHAT_FILE": str(tmp_path / "url"), "CHANNEL_URL_HOOK": "https://host.example/hook/"}
    given |= {"CHANNEL_KEY_HOOK": f"{key}, {key}", "BEAT_PING_URL": "https://hc.example/ping/1/"}
    [seen] = outcomes({**COMPLETE, **given})
    assert seen["CHANNEL_URLS"] == {
        "CHAT": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
        "HOOK": "https://host.example/hook/",
    }
    assert seen["CHANNEL_KEYS"] == {"HOOK": [key, key]}
    assert seen["BEAT_PING_URL"] == "https://hc.example/ping/1"


def test_it_reads_the_domains_of_mail_as_addresses_are_compared(outcomes):
    [seen] = outcomes({**COMPLETE, "MAIL_DOMAINS": "Example.org, *.bücher.example,localhost"})
    assert seen["MAIL_DOMAINS"] == ["example.org", "*.xn--bcher-kva.example", "localhost"]


def test_it_reads_the_hosts_and_jobs_of_each_secret(outcomes, tmp_path):
    (tmp_path / "hosts").write_text("api.example.org, *.example.com\n")
    given = {
        "SECRET_HOSTS_A_FILE": str(tmp_path / "hosts"),
        "SECRET_HOSTS_B": "http://host:8080",
        "SECRET_JOBS_A": "a.*,b",
        "SECRET_JOBS_NONE": ",",
        "SECRET_JOBS_UNSET": "",
    }
    [seen] = outcomes({**COMPLETE, **given})
    assert seen["SECRET_HOSTS"] == {"A": ["api.example.org", "*.example.com"], "B": ["http://host:8080"]}
    assert (seen["SECRET_JOBS"], seen["JOB_SECRETS"]) == ({"A": ["a.*", "b"], "NONE": []}, {})
