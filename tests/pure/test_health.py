"""Probes are answered under every host name and scheme, in time whatever hangs, and change no other address."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.test import Client

from jobs.monitoring import probes
from jobs.rules.errors import Invalid
from tests.waiting import DEADLINE

FROZEN = 0.05  # seconds after which a check that hangs has failed


@pytest.fixture
def checks(monkeypatch) -> dict[str, probes.Check]:
    """The checks of the process, which a test may fill."""
    found: dict[str, probes.Check] = {}
    monkeypatch.setattr(probes, "CHECKS", found)
    monkeypatch.setattr(probes, "DEADLINE", DEADLINE)
    return found


def refuse() -> None:
    raise Invalid("some are not applied")


def break_down() -> None:
    raise OSError("connection to db.internal:5432 refused")


@pytest.mark.parametrize("host", ["testserver", "10.0.0.7:8000", "[::1]", "bad host"])
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_it_answers_for_any_host_name_and_without_https(settings, checks, host, path):
    checks["database"] = probes.Check("database", lambda: None)
    settings.SECURE_SSL_REDIRECT = True
    answer = Client(headers={"host": host}).get(path)
    assert (answer.status_code, answer.content) == (200, b"ok\n" if path == "/livez" else b"database ok\n")
    assert answer["Cache-Control"] == "no-store"


def test_it_keeps_django_s_checks_for_other_addresses(settings):
    assert Client(headers={"host": "elsewhere.example"}).get("/admin/").status_code == 400
    settings.SECURE_SSL_REDIRECT = True
    for path in ("/livez/", "/readyz/", "/healthz"):
        assert Client().get(path).status_code == 301


def test_it_says_what_fails_and_keeps_the_error_for_the_log(checks, caplog):
    checks |= {name: probes.Check(name, look) for name, look in {"database": break_down, "migrations": refuse}.items()}
    answer = Client().get("/readyz")
    assert answer.status_code == 503
    assert answer.content.decode() == (
        "database failed: it cannot be used, and the log says why\nmigrations failed: some are not applied\n"
    )
    assert "db.internal" in caplog.text


def test_it_leaves_out_excluded_checks_and_refuses_unknown_ones(checks):
    asked: list[str] = []
    for name in ("database", "beat", "worker"):
        checks[name] = probes.Check(name, lambda name=name: asked.append(name))
    assert Client().get("/readyz?exclude=worker&exclude=beat").content == b"database ok\n"
    assert asked == ["database"]
    refused = Client().get("/readyz?exclude=workers")
    assert (refused.status_code, refused.content) == (
        400,
        b"There is no check workers: exclude some of database, beat, worker.\n",
    )


def test_it_answers_in_time_while_a_check_hangs_and_starts_it_only_once(checks, monkeypatch):
    monkeypatch.setattr(probes, "DEADLINE", FROZEN)
    begun, thaw = [], threading.Event()

    def hang() -> None:
        begun.append(1)
        thaw.wait(DEADLINE)

    checks["broker"] = probes.Check("broker", hang)
    for _ in range(3):
        assert probes.not_ready() == {"broker": "no answer within 0.05 s"}
    assert begun == [1]
    thaw.set()
    assert checks["broker"]._over.wait(DEADLINE)
    assert probes.not_ready() == {"broker": ""}


def test_it_keeps_an_answer_for_a_moment(checks, monkeypatch):
    begun = []
    checks["worker"] = probes.Check("worker", lambda: begun.append(1))
    monkeypatch.setattr(probes, "FRESH", DEADLINE)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: probes.not_ready(), range(40)))
    assert answers == [{"worker": ""}] * 40
    assert begun == [1]
    monkeypatch.setattr(probes, "FRESH", 0)
    probes.not_ready()
    assert begun == [1, 1]


def test_it_logs_a_failure_once_until_it_changes(checks, caplog, monkeypatch):
    monkeypatch.setattr(probes, "FRESH", 0)
    check = checks["database"] = probes.Check("database", break_down)
    for look in (break_down, break_down, lambda: None, refuse):
        check._look = look
        probes.not_ready()
    assert [record.message for record in caplog.records] == [
        "The probe of the database failed: connection to db.internal:5432 refused",
        "The probe of the database failed: some are not applied",
    ]
