"""Texts of alerts: what they say, in whose time, and what hostile names cannot do to them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from jobs.alerts import message as words
from jobs.alerts.message import Item, Message
from jobs.alerts.services import shielded
from jobs.rules.health import Health

NOW = datetime(2026, 12, 1, 2, 30, 15, 999, tzinfo=UTC)
KEY = UUID(int=7)
HOSTILE = [
    "a\r\nBcc: victim@example.org",
    "<b>bold</b><script>alert(1)</script>",
    "@everyone <!channel> <@U123> <at>ada</at> [free](https://evil.example)",
    "x" * 10_000,
    "😀👩\u200d💻 नमस्ते",
    "\u202egnp.exe שלום",
    "tab\tbell\x07\x1b[2J\x00\u2028line",
    "\ud800",
    "",
]


def item(name: str = "Nightly", health: Health = Health.FAILING, **options: Any) -> Item:
    given: dict[str, Any] = {
        "subject": f"schedule:{name}",
        "before": Health.OK,
        "sentence": "The server answered 500.",
        "expected": "It succeeds.",
        "at": NOW,
        "since": NOW - timedelta(hours=2),
    }
    return Item(name=name, health=health, **{**given, **options})


def message(*items: Item, zone: str = "Europe/Berlin") -> Message:
    return Message(KEY, NOW, zone, items)


def test_it_says_all_about_a_single_alert():
    one = item(due_at=NOW, count=3, link="https://p.example/run", log=["first", "  second"])
    assert words.subject(message(one)) == "[Punctual] Nightly: failing"
    assert words.text(message(one)).splitlines() == [
        "Nightly: failing",
        "The server answered 500.",
        "",
        "Expected: It succeeds.",
        "Since: 2026-12-01 01:30:15 (Europe/Berlin), 3 times in a row",
        "Due: 2026-12-01 03:30:15 (Europe/Berlin)",
        "https://p.example/run",
        "",
        "The last lines of its log:",
        "  first",
        "    second",
    ]
    assert words.severity(message(one)) == "failure"


def test_it_names_the_installation_in_the_subject(settings):
    settings.INSTALLATION = "staging"
    assert words.subject(message(item())) == "[staging] Nightly: failing"


def test_it_says_how_long_it_was_ill_when_it_is_well_again():
    well = item(health=Health.OK, before=Health.LATE, sentence="Its last run succeeded.", log=["old"])
    text = words.text(message(well))
    assert text.startswith("Nightly: ok again\nIts last run succeeded.\n")
    assert "Since: 2026-12-01 03:30:15 (Europe/Berlin); it was late for 2 h" in text
    assert "old" not in text
    assert words.severity(message(well)) == "success"
    assert words.as_json(message(well))["data"]["alerts"][0]["lasted_seconds"] == 7200
    unknown = item(health=Health.OK, before=Health.LATE, since=NOW)
    assert "it was late" not in words.text(message(unknown))


def test_it_says_what_it_was_before_when_it_was_ill_in_another_way():
    assert "Before: late" in words.text(message(item(before=Health.LATE)))


def test_it_makes_one_message_of_a_burst_with_the_worst_first():
    late = [item(f"L{number}", Health.LATE) for number in range(60)]
    failing = [item(f"F{number}", link="https://p.example/run") for number in range(15)]
    well = [item("W", Health.OK)]
    burst = message(*late, *well, *failing)
    assert words.subject(burst) == "[Punctual] 76 alerts: 15 failing, 60 late, 1 ok again"
    lines = words.text(burst).splitlines()
    assert lines[:4] == [
        "76 alerts: 15 failing, 60 late, 1 ok again",
        "",
        "15 failing:",
        "- F0: The server answered 500.",
    ]
    assert lines[4:6] == ["  since 2026-12-01 01:30:15 (Europe/Berlin)", "  https://p.example/run"]
    assert [line for line in lines if "more" in line or line == "- 1"] == ["- and 55 more", "- 1"]
    assert sum(line.startswith("- F") for line in lines) == 15
    assert sum(line.startswith("- L") for line in lines) == 5
    assert len(words.as_json(burst)["data"]["alerts"]) == 76


def test_it_says_that_it_is_a_test_and_who_asked():
    test = Message.test("ada", NOW, "UTC")
    assert words.subject(test) == "[Punctual] Test message"
    assert words.text(test).splitlines()[:2] == [
        "Test message",
        "This is a test message. Nothing is wrong. ada asked for it.",
    ]
    assert (words.severity(test), words.as_json(test)["type"]) == ("info", "punctual.test")


def test_it_uses_utc_when_the_zone_of_its_readers_is_unknown():
    assert "01:30:15 (Europe/Berlin)" in words.text(message(item()))
    assert "00:30:15 (UTC)" in words.text(message(item(), zone="Mars/Olympus"))


@pytest.mark.parametrize("longest", [1, 50, 160, 300, 1024, 2000])
def test_it_fits_and_keeps_the_last_lines_of_the_log(longest):
    one = message(item(log=[f"line {number} {'x' * 100}" for number in range(1, 21)]))
    text = words.text(one, longest)
    assert len(text) <= longest
    if longest >= 300:
        assert "line 20" in text
    if longest == 1024:
        assert "line 1 " not in text
    assert len(words.text(message(*[item(f"S{number}") for number in range(100)]), longest)) <= longest


def test_it_shows_the_last_lines_of_a_log_cut_and_masked(settings):
    settings.JOB_SECRETS = {"KEY": "canary-1234"}
    log = [f"line {number}" for number in range(100)] + ["x" * 500, "token canary-1234"]
    one = message(item("canary-1234", sentence="it said canary-1234", log=log))
    for text in (words.text(one), json.dumps(words.as_json(one))):
        assert "canary" not in text
        assert "line 81" not in text
        assert "line 82" in text
        assert "x" * 199 in text
        assert "x" * 201 not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_it_keeps_a_hostile_name_in_one_short_line(name):
    one = message(item(name, sentence=name, log=[name]))
    subject = words.subject(one)
    assert len(subject) < 200
    assert len(subject.splitlines()) == 1
    text = words.text(one)
    assert all(each.isprintable() or each in "\n\u200d" for each in text)
    json.dumps(words.as_json(one), ensure_ascii=False).encode()


def test_it_shields_mentions_so_that_they_look_the_same():
    for mention in (
        "@everyone",
        "<!channel>",
        "<!here>",
        "<@U123>",
        "<@&42>",
        "<#C1>",
        "<at>ada</at>",
        "[a](b)",
        "@all",
    ):
        assert mention not in shielded(f"x {mention} y")
        assert shielded(f"x {mention} y").replace("\u200b", "") == f"x {mention} y"
    assert shielded("1 < 2, a @ b") == "1 < 2, a @ b"
