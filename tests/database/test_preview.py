"""A preview says what a timing would do, in words, moments and warnings, and saves nothing."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django_celery_beat.models import PeriodicTask

from jobs.beat import claim
from jobs.models import KINDS, Node, Policy, database_now
from jobs.rules.errors import Invalid
from jobs.rules.policies import MISSED_AFTER
from jobs.schedules import timings
from jobs.schedules.preview import Preview, preview
from tests.making import make_schedule

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 21, 12, 10, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
OVER = "It would never run: "


def seen(timing: dict[str, Any], number: int = 3, now: datetime = NOW, **columns: Any) -> Preview:
    if "kwargs" in columns:
        columns["kwargs"] = json.dumps(columns["kwargs"])
    return preview(timings.parse(timing), PeriodicTask(**columns), now=now, number=number)


@pytest.fixture
def worker() -> Node:
    return Node.objects.create(name="celery@here", kind="worker", queues="celery, slow", pid=1)


# --- words and moments ----------------------------------------------------------------------------------------------


def test_it_shows_a_timing_in_words_and_its_next_moments(settings):
    settings.TIME_ZONE = "Europe/Berlin"
    found = preview(timings.parse({"crontab": "30 7 * * 1-5"}), now=NOW)
    assert found.words == "every weekday at 07:30 (Europe/Berlin)"
    monday = datetime(2026, 11, 23, 6, 30, tzinfo=UTC)
    assert found.due == [monday + day * DAY for day in range(5)]
    assert found.warnings == []


@pytest.mark.parametrize(
    ("timing", "words", "first", "second"),
    [
        ({"every": "15 minutes"}, "every 15 minutes", NOW + 15 * MINUTE, NOW + 30 * MINUTE),
        ({"crontab": "0 * * * *"}, "every hour (UTC)", NOW + 50 * MINUTE, NOW + 110 * MINUTE),
        (
            {"once": "2026-12-24T18:00+01:00"},
            "once, on 2026-12-24 at 17:00 (UTC)",
            datetime(2026, 12, 24, 17, tzinfo=UTC),
            None,
        ),
        (
            {"solar": "solar_noon", "latitude": 0, "longitude": 0},
            "at every solar noon at 0° N, 0° E",
            datetime(2026, 11, 22, 11, 46, 18, tzinfo=UTC),
            datetime(2026, 11, 23, 11, 46, 34, tzinfo=UTC),
        ),
    ],
    ids=["interval", "crontab", "clocked", "solar"],
)
def test_it_previews_each_kind_of_timing(timing, words, first, second):
    found = seen(timing)
    assert (found.words, found.warnings) == (words, [])
    assert [abs(due - moment) < MINUTE for due, moment in zip(found.due, [first, second], strict=False)].count(
        True
    ) == (2 if second else 1)
    assert len(found.due) == (3 if second else 1)


def test_it_saves_nothing(worker):
    before = timings_and_schedules()
    seen({"crontab": "1 2 3 4 *"}, task="tests.nothing", start_time=NOW, expires=NOW + DAY)
    assert timings_and_schedules() == before


def timings_and_schedules() -> list[int]:
    return [model.objects.count() for model in (*KINDS.values(), PeriodicTask, Policy)]


@pytest.mark.parametrize("number", [0, -1, 1001])
def test_it_refuses_to_show_no_or_too_many_moments(number):
    with pytest.raises(Invalid, match="from 1 to 1,000"):
        seen({"every": 60}, number)


def test_it_shows_up_to_a_thousand_moments():
    assert len(seen({"crontab": "0 0 29 2 *"}, 1000).due) == 1000


def test_it_counts_a_schedules_start_and_end():
    found = seen({"every": "1 hour"}, 9, start_time=NOW + 30 * MINUTE, expires=NOW + 3 * HOUR)
    assert found.due == [NOW + 30 * MINUTE + hour * HOUR for hour in range(3)]
    assert found.words == "every hour, from 2026-11-21 12:40, before 2026-11-21 15:10 (UTC)"
    with pytest.raises(Invalid, match="ends before it starts"):
        seen({"every": 60}, start_time=NOW, expires=NOW)


def test_it_shows_one_moment_of_a_schedule_that_runs_once():
    assert seen({"every": "1 hour"}, one_off=True).due == [NOW + HOUR]


@pytest.mark.parametrize(("ago", "is_due"), [(timedelta(0), True), (MISSED_AFTER, True), (MISSED_AFTER * 1.01, False)])
def test_it_shows_what_a_schedule_would_do_that_is_saved_now(ago, is_due):
    """A start time of the last minute is due, as beat finds it after the save."""
    now = database_now()
    timing, start = timings.parse({"every": "1 hour"}), now - ago
    found = preview(timing, PeriodicTask(start_time=start), now=now, number=1)
    schedule = make_schedule(every=HOUR, start_time=start)
    policy = Policy.objects.get(schedule=schedule)
    assert found.due == [start if is_due else start + HOUR]
    if ago != MISSED_AFTER:  # by now, that start is over
        assert policy.next_due_at == found.due[0]


def test_it_keeps_the_grid_of_a_schedule_whose_interval_stays():
    schedule = make_schedule(every=HOUR)
    schedule.refresh_from_db()
    upcoming = Policy.objects.get().next_due_at
    now = upcoming - 10 * MINUTE
    assert preview(timings.parse({"every": 3600}), schedule, now=now, number=1).due == [upcoming]
    assert preview(timings.parse({"every": 7200}), schedule, now=now, number=1).due == [now + 2 * HOUR]
    assert preview(timings.of(schedule), schedule, now=now, number=1).due == [upcoming]
    assert list(claim.claim_due()) == []


# --- warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timing", "columns", "sentence"),
    [
        ({"once": "2020-01-01T00:00Z"}, {}, f"{OVER}its moment, 2020-01-01 00:00 (UTC), is over."),
        (
            {"once": "2027-01-01T00:00Z"},
            {"expires": NOW + DAY},
            f"{OVER}its moment, 2027-01-01 00:00 (UTC), lies before its start time, or at its expiry or later.",
        ),
        ({"every": 60}, {"expires": NOW - DAY}, f"{OVER}it expired on 2026-11-20 at 12:10 (UTC)."),
        ({"every": 60}, {"expires": NOW}, f"{OVER}it expired on 2026-11-21 at 12:10 (UTC)."),
        (
            {"crontab": "0 0 * * *"},
            {"expires": NOW + HOUR},
            f"{OVER}no moment is due before it expires, 2026-11-21 13:10 (UTC).",
        ),
        (
            {"crontab": "0 0 * * *"},
            {"start_time": datetime(9998, 12, 31, 12, tzinfo=UTC)},
            f"{OVER}no moment is due before the year 9999.",
        ),
    ],
)
def test_it_warns_of_a_timing_that_is_never_due_again(timing, columns, sentence):
    found = seen(timing, **columns)
    assert (found.due, found.warnings) == ([], [sentence])


def test_it_warns_where_cron_would_be_due_on_more_days():
    (sentence,) = seen({"crontab": "0 0 13 * fri"}).warnings
    assert sentence.startswith("It is due on days that match both day of month 13 and day of week fri, as in Celery.")


@pytest.mark.parametrize(("seconds", "times"), [(1, "86,400"), (8, "10,800"), (9, None)])
def test_it_warns_of_an_interval_that_fills_the_ledger(seconds, times):
    warnings = seen({"every": seconds}).warnings
    expected = f"It is due {times} times a day, and the ledger keeps a row for each: choose a longer interval."
    assert warnings == ([expected] if times else [])


def test_it_warns_of_the_clock_changes_among_the_next_moments():
    timing = {"crontab": "30 2 * * *", "zone": "Europe/Berlin"}
    skip = "On 2027-03-28 the clocks of Europe/Berlin skip 02:30: it is due at 03:00 instead."
    assert seen(timing, 126).warnings == []
    assert seen(timing, 127).warnings == [skip]
    assert seen(timing, 400).warnings == [
        skip,
        "On 2027-10-31 the clocks of Europe/Berlin show 02:30 twice: it is due the first time only.",
    ]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"task": "tests.nothin"}, "No job is named 'tests.nothin'. Did you mean 'tests.nothing'?"),
        ({"task": "tests.add_up", "kwargs": {"sum": 5}}, "The arguments do not fit 'tests.add_up': "),
        ({"task": "tests.nothing", "args": "{"}, "Positional arguments are not valid JSON"),
        ({"task": "tests.nothing", "kwargs": {"url": "https://ada:secret@example.com/"}}, "A URL contains a password"),
        ({"task": "tests.nothing", "queue": "unacked"}, "Choose another queue than 'unacked'"),
    ],
)
def test_it_warns_of_a_job_that_could_not_be_sent(columns, sentence):
    found = seen({"every": 60}, **columns)
    assert len(found.due) == 3
    assert [text.startswith(sentence) for text in found.warnings] == [True]


def test_it_warns_of_a_queue_that_no_live_worker_consumes(worker):
    waits = "No live worker consumes the queue {!r}: its runs would wait."
    assert seen({"every": 60}, task="tests.nothing", queue="slow").warnings == []
    assert seen({"every": 60}, task="tests.nothing").warnings == []
    assert seen({"every": 60}, task="tests.nothing", queue="fast").warnings == [waits.format("fast")]
    Node.objects.update(stopped_at=database_now())
    assert seen({"every": 60}, task="tests.nothing").warnings == [waits.format("celery")]
    assert seen({"every": 60}, task="tests.nothing", exchange="elsewhere").warnings == []


def test_it_names_all_warnings_together():
    found = seen({"crontab": "30 2 1 * 1", "zone": "Europe/Berlin"}, 3, task="tests.nothin")
    assert len(found.warnings) == 2
