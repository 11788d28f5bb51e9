"""The decisions, as tables: which due moments run, which are skipped and with what sentence, when to try again."""

from datetime import UTC, datetime, timedelta

import pytest

from jobs.policies import (
    FIRST_PATIENCE,
    LONGEST_PATIENCE,
    LONGEST_RETRY_DELAY,
    Busy,
    CatchUp,
    Overlap,
    Rule,
    decide,
    patience,
    retry_delay,
    runs_again_after_loss,
    skip,
)

NOW = datetime(2026, 3, 1, 4, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def moments(*hours_ago: float) -> list[datetime]:
    return [NOW - timedelta(hours=hours) for hours in hours_ago]


def outcome(decisions) -> list[str]:
    return [f"{'skip' if d.reason else 'run'}{'' if d.count == 1 else f' x{d.count}'}" for d in decisions]


@pytest.mark.parametrize(
    ("catch_up", "hours_ago", "expected"),
    [
        (CatchUp.LATEST, (0,), ["run"]),
        (CatchUp.LATEST, (3, 2, 1, 0), ["skip x3", "run"]),
        (CatchUp.LATEST, (3, 2, 1), ["skip x2", "run"]),
        (CatchUp.LATEST, (50,), ["skip"]),
        (CatchUp.NONE, (3, 2, 1), ["skip x3"]),
        (CatchUp.NONE, (1, 0), ["skip", "run"]),
        (CatchUp.ALL, (3, 2, 1, 0), ["run", "run", "run", "run"]),
        (CatchUp.ALL, (50, 2, 1), ["skip", "run", "run"]),
    ],
)
def test_it_catches_up_what_the_policy_asks_for(catch_up, hours_ago, expected):
    rule = Rule(Overlap.ALLOW, catch_up, window=timedelta(days=1))
    assert outcome(decide(rule, moments(*hours_ago), NOW, busy=None, more=False)) == expected


def test_it_catches_up_nothing_of_a_pass_that_younger_moments_follow():
    assert outcome(decide(Rule(), moments(3, 2, 1), NOW, busy=None, more=True)) == ["skip x3"]


def test_it_runs_a_moment_that_is_late_by_less_than_a_minute_whatever_the_catch_up():
    rule = Rule(catch_up=CatchUp.NONE)
    assert outcome(decide(rule, [NOW - timedelta(seconds=60)], NOW, busy=None, more=False)) == ["run"]
    assert outcome(decide(rule, [NOW - timedelta(seconds=61)], NOW, busy=None, more=False)) == ["skip"]


def test_it_skips_with_a_sentence_that_names_the_run_in_the_way():
    busy = Busy(NOW - HOUR, "running", "celery@a (7)")
    (decision,) = decide(Rule(), moments(0), NOW, busy=busy, more=False)
    assert decision.reason == (
        "overlap: the run due 2026-03-01 03:00:00 UTC was still running on celery@a (7); policy: skip"
    )


def test_it_lets_runs_overlap_where_the_policy_allows_it():
    busy = Busy(NOW - HOUR, "running")
    assert outcome(decide(Rule(Overlap.ALLOW), moments(0.01, 0), NOW, busy=busy, more=False)) == ["run", "run"]


def test_it_skips_the_second_of_two_moments_that_are_claimed_together():
    assert outcome(decide(Rule(), moments(0.01, 0), NOW, busy=None, more=False)) == ["run", "skip"]


def test_it_accounts_for_every_moment_exactly_once():
    due = moments(*(n / 100 for n in range(300, -1, -1)))
    for catch_up in CatchUp:
        for overlap in Overlap:
            decisions = decide(Rule(overlap, catch_up, 2 * HOUR), due, NOW, busy=None, more=False)
            assert sum(decision.count for decision in decisions) == len(due)
            assert decisions[0].due_at == due[0]
            assert decisions[-1].last_due_at == due[-1]


def test_it_makes_one_row_of_a_skipped_stretch():
    (decision,) = skip(moments(3, 2, 1), "paused")
    assert (decision.due_at, decision.last_due_at, decision.count) == (NOW - 3 * HOUR, NOW - HOUR, 3)


def test_it_doubles_the_delay_between_attempts_up_to_a_cap():
    base = timedelta(seconds=30)
    for attempt, expected in [(1, 30), (2, 60), (3, 120)]:
        delay = retry_delay(attempt, 9, base)
        assert expected * 0.9 <= delay.total_seconds() <= expected * 1.1
    assert retry_delay(30_000, 32_000, base) <= LONGEST_RETRY_DELAY * 1.1
    assert retry_delay(99, 100, timedelta.max) <= LONGEST_RETRY_DELAY * 1.1


@pytest.mark.parametrize(("attempt", "most", "again"), [(1, 1, False), (1, 2, True), (2, 2, False), (3, 2, False)])
def test_it_tries_again_until_the_attempts_are_used_up(attempt, most, again):
    assert (retry_delay(attempt, most, HOUR) is not None) is again


@pytest.mark.parametrize(
    ("attempt", "most", "wanted", "again"),
    [(1, 1, True, True), (2, 1, True, True), (3, 1, True, False), (3, 5, True, True), (1, 5, False, False)],
)
def test_it_starts_a_lost_run_again_where_that_is_wanted(attempt, most, wanted, again):
    assert runs_again_after_loss(attempt, most, wanted=wanted) is again


def test_it_waits_longer_each_time_a_message_led_nowhere():
    waits = [patience(sends) for sends in range(1, 20)]
    assert waits[0] == FIRST_PATIENCE
    assert waits == sorted(waits)
    assert waits[1] == 2 * FIRST_PATIENCE
    assert waits[-1] == patience(32_000) == LONGEST_PATIENCE
