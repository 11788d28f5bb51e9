"""Which facts make a schedule late, failing, slow, short, blocked or paused for long? And who is quiet when?"""

import re
from datetime import UTC, datetime, time, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules.health import (
    LEAST_RUNS,
    Active,
    Facts,
    Health,
    Limits,
    Outcome,
    in_quiet_hours,
    judge,
    matches,
    usual_range,
)

NOW = datetime(2026, 3, 4, 4, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=seconds) for seconds in (1, 60, 3600, 86_400))
RUN = UUID(int=7)


def outcome(state: str, ago: timedelta = HOUR, reason: str = "", duration: timedelta | None = MINUTE) -> Outcome:
    return Outcome(RUN, NOW - ago, state, reason, duration)


FAILED, SUCCEEDED = outcome("failed", reason="failed: ValueError: no"), outcome("succeeded")
MISSED = outcome("skipped", reason="missed: no beat claimed this within 60 seconds", duration=None)


def health(limits: Limits = Limits(), **facts: object) -> Health:  # noqa: B008 - it is frozen
    return judge(Facts(**facts), limits, NOW).health  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (Health.OK, {}),
        (Health.OK, {"outcomes": [SUCCEEDED]}),
        (Health.BLOCKED, {"invalid_reason": "no such job"}),
        (Health.FAILING, {"outcomes": [FAILED]}),
        (Health.FAILING, {"outcomes": [outcome("lost"), SUCCEEDED]}),
        (Health.OK, {"outcomes": [SUCCEEDED, FAILED]}),
        (Health.LATE, {"unstarted": Active(NOW - 5 * MINUTE - SECOND, NOW - HOUR)}),
        (Health.OK, {"unstarted": Active(NOW - 5 * MINUTE, NOW - HOUR)}),
        (Health.LATE, {"outcomes": [MISSED]}),
        (Health.LATE, {"outcomes": [outcome("expired", duration=None)]}),
        (Health.OK, {"outcomes": [MISSED], "running": Active(NOW, NOW)}),
        (Health.OK, {"outcomes": [SUCCEEDED, MISSED]}),
        (Health.OK, {"outcomes": [outcome("skipped", reason="paused by ada", duration=None)]}),
        (Health.PAUSED, {"paused_since": NOW - 7 * DAY - SECOND, "pause": "paused by ada"}),
        (Health.OK, {"paused_since": NOW - 7 * DAY, "pause": "paused by ada"}),
        (Health.OK, {"is_watched": False, "outcomes": [FAILED], "invalid_reason": "no such job"}),
    ],
)
def test_it_judges_the_facts(expected, facts):
    assert health(**facts) is expected


def test_it_judges_runtimes_only_by_a_limit():
    running = {"running": Active(NOW - HOUR, NOW - HOUR, RUN, "worker1")}
    assert health(**running) is Health.OK
    assert health(Limits(longest=HOUR), **running) is Health.OK
    found = judge(Facts(running=Active(NOW - HOUR, NOW - HOUR, RUN, "worker1")), Limits(longest=MINUTE), NOW)
    assert (found.health, found.sentence, found.expected, found.run) == (
        Health.SLOW,
        "It has been running for 1 h on worker1.",
        "It ends within 1 min.",
        RUN,
    )
    assert health(Limits(shortest=MINUTE), outcomes=[SUCCEEDED]) is Health.OK
    assert health(Limits(shortest=2 * MINUTE), outcomes=[SUCCEEDED]) is Health.SHORT
    assert health(Limits(shortest=2 * MINUTE), outcomes=[outcome("succeeded", duration=None)]) is Health.OK


def test_it_counts_failures_in_a_row():
    limits = Limits(failures=3)
    assert health(limits, outcomes=[FAILED, FAILED, SUCCEEDED, FAILED]) is Health.OK
    assert health(limits, outcomes=[FAILED, MISSED, FAILED, FAILED]) is Health.FAILING  # a missed one breaks no row
    found = judge(Facts(outcomes=[FAILED, outcome("lost", DAY), outcome("failed", 2 * DAY)]), limits, NOW)
    assert (found.count, found.since, found.due_at) == (3, NOW - 2 * DAY, NOW - HOUR)
    assert found.sentence == "failed: ValueError: no"


def test_the_worst_finding_counts():
    every = {
        "invalid_reason": "no such job",
        "outcomes": [FAILED],
        "unstarted": Active(NOW - HOUR, NOW - HOUR),
        "running": Active(NOW - HOUR, NOW - HOUR),
        "paused_since": NOW - 30 * DAY,
    }
    limits = Limits(longest=MINUTE, shortest=HOUR)
    order = []
    for name, without in [
        ("invalid_reason", ""),
        ("outcomes", [SUCCEEDED]),
        ("unstarted", None),
        ("running", None),
        ("outcomes", []),
        ("paused_since", None),
    ]:
        order.append(health(limits, **every))
        every[name] = without
    assert order == [Health.BLOCKED, Health.FAILING, Health.LATE, Health.SLOW, Health.SHORT, Health.PAUSED]
    assert health(limits, **every) is Health.OK


@given(st.lists(st.timedeltas(timedelta(0), DAY), min_size=LEAST_RUNS, max_size=300))
def test_no_usual_runtime_is_suspicious(durations):
    shortest, longest = usual_range(durations)
    assert longest is not None
    beyond = [each for each in durations if each > longest or (shortest is not None and each < shortest)]
    assert len(beyond) <= len(durations) // 50


def test_it_needs_twenty_runs_and_runtimes_that_can_be_too_short():
    assert usual_range([MINUTE] * 19) == (None, None)
    assert usual_range([MINUTE] * 20) == (20 * SECOND, 3 * MINUTE)
    assert usual_range([SECOND] * 20) == (None, MINUTE)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], True),
        (["Invoices"], True),
        (["billing.send"], True),
        (["Invoice"], False),
        (["Inv*"], True),
        (["*ing.*"], True),
        (["*"], True),
        (["Invoice?"], False),
        (["[I]nvoices"], False),
        (["other", "*s"], True),
    ],
)
def test_only_a_star_stands_for_other_text(patterns, expected):
    assert matches(patterns, "Invoices", "billing.send") is expected


def test_a_pattern_with_many_stars_is_matched_at_once():
    assert matches(["*a" * 99 + "*"], "a" * 200)
    assert not matches(["*a" * 99 + "*b"], "a" * 200)  # with backtracking, this would take for ever


@given(st.text("ab*", max_size=8), st.text("ab\n", max_size=12))
def test_a_star_stands_for_any_text(pattern, name):
    expected = bool(re.fullmatch(re.sub(r"\*+", r"[\\s\\S]*", pattern), name))
    assert matches([pattern], name) is (expected and bool(name))


@pytest.mark.parametrize(
    ("start", "end", "utc", "expected"),
    [
        (time(22), time(7), 21, True),  # 22:00 in Berlin
        (time(22), time(7), 20, False),
        (time(22), time(7), 5, True),
        (time(22), time(7), 6, False),
        (time(9), time(17), 8, True),
        (time(9), time(17), 16, False),
        (time(9), time(9), 8, False),
    ],
)
def test_quiet_hours_may_have_midnight_between_them(start, end, utc, expected):
    now = datetime(2026, 1, 5, utc, 0, tzinfo=UTC)
    assert in_quiet_hours(now, start, end, ZoneInfo("Europe/Berlin")) is expected
