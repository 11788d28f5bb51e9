"""The decisions, as tables: which due moments run, which are skipped with which reason, when to try again."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise, product

import pytest

from jobs.rules.policies import (
    FIRST_PATIENCE,
    LONGEST_PATIENCE,
    LONGEST_RETRY_DELAY,
    SKIPPED_BY_HAND,
    Busy,
    CatchUp,
    Later,
    Overlap,
    Pause,
    Rule,
    decide,
    foresee,
    is_past_hope,
    jittered,
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
    return [
        f"{'skip' if d.reason else 'wait' if d.waiting_turn else 'run'}{'' if d.count == 1 else f' x{d.count}'}"
        for d in decisions
    ]


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
def test_it_catches_up_as_the_policy_says(catch_up, hours_ago, expected):
    rule = Rule(Overlap.ALLOW, catch_up, window=timedelta(days=1))
    assert outcome(decide(rule, moments(*hours_ago), NOW)) == expected


def test_it_catches_up_the_latest_moment_only_in_the_last_pass():
    assert outcome(decide(Rule(), moments(3, 2, 1), NOW, later=Later(1, 0, any=True))) == ["skip x3"]


def test_it_runs_a_moment_that_is_up_to_a_minute_late_without_catch_up():
    rule = Rule(catch_up=CatchUp.NONE)
    assert outcome(decide(rule, [NOW - timedelta(seconds=60)], NOW)) == ["run"]
    assert outcome(decide(rule, [NOW - timedelta(seconds=61)], NOW)) == ["skip"]


@pytest.mark.parametrize(
    ("catch_up", "window", "limits"),
    [
        (CatchUp.NONE, timedelta(days=1), "none"),
        (CatchUp.LATEST, timedelta(days=1), "latest, up to 1 day old"),
        (CatchUp.LATEST, timedelta(minutes=90), "latest, up to 1:30:00 old"),
        (CatchUp.ALL, timedelta(days=2), "all, up to 2 days old, at most 100"),
    ],
)
def test_it_skips_a_missed_moment_with_a_reason_that_names_the_catch_up(catch_up, window, limits):
    (decision,) = decide(Rule(catch_up=catch_up, window=window), moments(50), NOW)
    assert decision.reason == f"missed: no beat claimed this within 60 seconds; catch-up: {limits}"


def test_it_skips_with_a_reason_that_names_the_unfinished_run():
    busy = Busy(NOW - HOUR, "running", "celery@a (7)")
    (decision,) = decide(Rule(), moments(0), NOW, busy=[busy])
    assert decision.reason == (
        "overlap: the run due 2026-03-01 03:00:00 UTC was still running on celery@a (7); policy: skip"
    )


def test_it_lets_runs_overlap_when_the_policy_allows_it():
    busy = Busy(NOW - HOUR, "running")
    assert outcome(decide(Rule(Overlap.ALLOW), moments(0.01, 0), NOW, busy=[busy])) == ["run", "run"]


def test_it_runs_the_latest_moment_when_several_are_claimed_together():
    decisions = decide(Rule(), moments(0.01, 0), NOW)
    assert outcome(decisions) == ["skip", "run"]
    assert decisions[0].reason == (
        "overlap: the run due 2026-03-01 04:00:00 UTC came due before this one started; policy: skip"
    )


RUNNING, WAITING = Busy(NOW - HOUR, "running"), Busy(NOW - HOUR / 2, "waiting", waiting_turn=True)


@pytest.mark.parametrize(
    ("overlap", "busy", "expected"),
    [
        (Overlap.SKIP, [], ["skip", "run"]),
        (Overlap.SKIP, [RUNNING], ["skip x2"]),
        (Overlap.SKIP, [WAITING], ["skip x2"]),
        (Overlap.ALLOW, [], ["run", "run"]),
        (Overlap.ALLOW, [RUNNING], ["run", "run"]),
        (Overlap.QUEUE_ONE, [], ["run", "wait"]),
        (Overlap.QUEUE_ONE, [RUNNING], ["skip", "wait"]),
        (Overlap.QUEUE_ONE, [RUNNING, WAITING], ["skip x2"]),
        (Overlap.CANCEL_PREVIOUS, [], ["skip", "run"]),
        (Overlap.CANCEL_PREVIOUS, [RUNNING], ["skip", "wait"]),
        (Overlap.CANCEL_PREVIOUS, [RUNNING, WAITING], ["skip", "wait"]),
    ],
)
def test_it_follows_the_overlap_policy(overlap, busy, expected):
    assert outcome(decide(Rule(overlap), moments(0.01, 0), NOW, busy=busy)) == expected


@pytest.mark.parametrize(("overlap", "expected"), [(Overlap.SKIP, "wait"), (Overlap.ALLOW, "run")])
def test_it_catches_up_one_run_after_another_unless_runs_may_overlap(overlap, expected):
    rule = Rule(overlap, CatchUp.ALL)
    assert outcome(decide(rule, moments(3, 2, 1, 0), NOW)) == ["run", *[expected] * 3]


@pytest.mark.parametrize(
    ("following", "expected"), [(0, ["skip x3", "run", "run"]), (1, ["skip x4", "run"]), (2, ["skip x5"])]
)
def test_it_catches_up_the_latest_moments_up_to_the_cap(following, expected):
    rule = Rule(Overlap.ALLOW, CatchUp.ALL, cap=2)
    assert outcome(decide(rule, moments(5, 4, 3, 2, 1), NOW, later=Later(following))) == expected


def paused(catch_up: CatchUp, until: datetime | None = NOW) -> Pause:
    return Pause(NOW - 4 * HOUR, until, "ada", "maintenance", catch_up)


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        (CatchUp.NONE, ["skip", "skip x3"]),  # the first was due before the pause, and missed
        (CatchUp.LATEST, ["skip", "skip x2", "run"]),
        (CatchUp.ALL, ["skip", "run", "run", "run"]),
    ],
)
def test_it_runs_after_a_pause_as_the_pause_says(catch_up, expected):
    rule = Rule(Overlap.ALLOW, CatchUp.NONE, pause=paused(catch_up))
    assert outcome(decide(rule, moments(5, 3, 2, 1), NOW)) == expected


@pytest.mark.parametrize(
    ("catch_up", "after_pause", "hours_ago", "expected"),
    [
        (CatchUp.LATEST, CatchUp.NONE, (6, 5, 3, 2), ["skip", "run", "skip x2"]),
        (CatchUp.LATEST, CatchUp.LATEST, (6, 5, 3, 2), ["skip x2", "skip", "run"]),
        (CatchUp.NONE, CatchUp.LATEST, (3, 2, 0.5), ["skip", "run", "skip"]),
        (CatchUp.LATEST, CatchUp.LATEST, (3, 2, 0.5), ["skip x2", "run"]),
        (CatchUp.LATEST, CatchUp.NONE, (6, 5, 3, 2, 0), ["skip x2", "skip x2", "run"]),
        (CatchUp.ALL, CatchUp.LATEST, (5, 3, 2, 0.5), ["run", "skip x2", "run"]),
    ],
)
def test_it_runs_the_latest_of_an_outage_and_a_pause_together(catch_up, after_pause, hours_ago, expected):
    pause = paused(after_pause, NOW - HOUR)
    rule = Rule(Overlap.ALLOW, catch_up, pause=pause)
    assert outcome(decide(rule, moments(*hours_ago), NOW)) == expected


def test_it_runs_only_the_latest_of_all_missed_moments_if_each_cancels_the_one_before():
    rule = Rule(Overlap.CANCEL_PREVIOUS, CatchUp.ALL)
    assert outcome(decide(rule, moments(3, 2, 1), NOW)) == ["skip x2", "run"]


def test_it_says_who_paused_a_schedule_until_when_and_why():
    rule = Rule(pause=paused(CatchUp.NONE, NOW + HOUR))
    (decision,) = decide(rule, moments(0), NOW)
    assert decision.reason == "paused by ada until 2026-03-01 05:00:00 UTC: maintenance"
    assert paused(CatchUp.NONE, None).sentence == "paused by ada: maintenance"


def test_it_runs_a_moment_that_is_due_at_the_end_of_a_pause():
    assert outcome(decide(Rule(pause=paused(CatchUp.NONE)), moments(0), NOW)) == ["run"]


@pytest.mark.parametrize(
    ("catch_up", "until", "expected"),
    [
        (CatchUp.NONE, None, False),
        (CatchUp.ALL, None, True),
        (CatchUp.LATEST, NOW + HOUR, True),
        (CatchUp.ALL, NOW, False),
    ],
)
def test_it_holds_moments_back_during_a_pause_with_catch_up(catch_up, until, expected):
    assert paused(catch_up, until).holds_back(NOW - HOUR, NOW) is expected


def test_it_skips_as_many_moments_as_an_operator_chose():
    decisions = decide(Rule(Overlap.ALLOW, skip_next=2), moments(0.003, 0.002, 0.001), NOW)
    assert outcome(decisions) == ["skip x2", "run"]
    assert decisions[0].reason == SKIPPED_BY_HAND


def test_it_skips_no_moment_that_was_due_before_the_operator_chose():
    rule = Rule(Overlap.ALLOW, CatchUp.ALL, skip_next=1, skip_from=NOW - 1.5 * HOUR)
    decisions = decide(rule, moments(2, 1, 0), NOW)
    assert [decision.reason for decision in decisions] == ["", SKIPPED_BY_HAND, ""]
    assert list(rule.by_hand(moments(2))) == []
    foreseen = list(foresee(rule, moments(2, 1, 0)))
    assert [reason for _, reason in foreseen] == ["", SKIPPED_BY_HAND, ""]


def test_it_runs_the_latest_missed_moment_that_the_operator_did_not_skip():
    rule = Rule(Overlap.ALLOW, CatchUp.LATEST, skip_next=1, skip_from=NOW - 1.5 * HOUR)
    assert [decision.reason == "" for decision in decide(rule, moments(2, 1), NOW)] == [True, False]


@pytest.mark.parametrize(
    ("overlap", "limit", "expected"),
    [
        (Overlap.ALLOW, 2, ["run", "run"]),
        (Overlap.ALLOW, 4, ["run", "run", "run"]),
        (Overlap.SKIP, 1, ["skip x2", "run"]),
        (Overlap.QUEUE_ONE, 1, ["skip", "run"]),
        (Overlap.ALLOW, 0, ["skip x3"]),
    ],
)
def test_it_ends_a_limited_schedule_with_its_last_run(overlap, limit, expected):
    assert outcome(decide(Rule(overlap, limit=limit), moments(0.003, 0.002, 0.001), NOW)) == expected


def test_it_does_not_count_a_skipped_moment_as_a_run_of_a_limited_schedule():
    assert outcome(decide(Rule(limit=1, skip_next=1), moments(0), NOW)) == ["skip"]


def test_it_accounts_for_every_moment_exactly_once():
    due = moments(*(n / 100 for n in range(300, -1, -1)))
    pauses = [None, *(paused(catch_up, NOW - HOUR) for catch_up in CatchUp)]
    for overlap, catch_up, pause, busy in product(Overlap, CatchUp, pauses, ([], [RUNNING], [RUNNING, WAITING])):
        rule = Rule(overlap, catch_up, 2 * HOUR, pause=pause)
        decisions = decide(rule, due, NOW, busy=busy)
        assert sum(decision.count for decision in decisions) == len(due)
        assert decisions[0].due_at == due[0]
        assert decisions[-1].last_due_at == due[-1]
        assert all(earlier.last_due_at < later.due_at for earlier, later in pairwise(decisions))


def test_it_spreads_starts_at_random_before_the_next_due_moment():
    starts = [jittered(NOW, NOW + timedelta(seconds=2), HOUR) for _ in range(1000)]
    assert all(NOW <= start < NOW + timedelta(seconds=2) for start in starts)
    assert len(set(starts)) > 900
    assert NOW <= jittered(NOW, None, HOUR) <= NOW + HOUR


def test_it_makes_one_decision_for_a_skipped_stretch():
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
def test_it_starts_a_lost_run_again_when_the_policy_wants_it(attempt, most, wanted, again):
    assert runs_again_after_loss(attempt, most, wanted=wanted) is again


def test_it_waits_longer_for_each_further_message():
    waits = [patience(sends) for sends in range(1, 20)]
    assert waits[0] == FIRST_PATIENCE
    assert waits == sorted(waits)
    assert waits[1] == 2 * FIRST_PATIENCE
    assert waits[-1] == patience(32_000) == LONGEST_PATIENCE


@pytest.mark.parametrize(
    ("sends", "hours", "past"), [(0, 1, False), (1, 1, False), (8, 1, True), (9, 3, False), (32_000, 24, True)]
)
def test_it_gives_up_after_as_many_messages_as_fill_the_time(sends, hours, past):
    assert is_past_hope(sends, hours * HOUR) is past
    assert past is (sum((patience(sent) for sent in range(1, sends + 1)), timedelta(0)) >= hours * HOUR)
