"""A timing in plain words: tables, and properties over many timings."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.rules.clock_changes import sentences
from jobs.rules.crontab import Crontab, calendar_of
from jobs.rules.errors import Invalid
from jobs.rules.moments import LAST
from jobs.rules.occurrences import LONGEST, Clocked, Interval, Spec, occurrences
from jobs.rules.solar import SOLAR_EVENTS, Solar
from jobs.rules.words import day_and_time, in_words, length, listed

BERLIN = "Europe/Berlin"
NOW, DAY = datetime(2026, 12, 24, 17, tzinfo=UTC), timedelta(days=1)
examples = settings(max_examples=400, derandomize=True, database=None)

CRONTABS = {
    "* * * * *": "every minute",
    "*/15 * * * *": "every 15 minutes",
    "0,30 * * * *": "every 30 minutes (Europe/Berlin)",  # in India and Nepal, these are other moments
    "0 * * * *": "every hour (Europe/Berlin)",
    "5 * * * *": "at minute 5 of every hour (Europe/Berlin)",
    "5-59/15 * * * *": "at minutes 5, 20, 35 and 50 of every hour (Europe/Berlin)",
    "5-10 * * * *": "at minutes 5 to 10 of every hour (Europe/Berlin)",
    "*/7 * * * *": "at minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56 of every hour (Europe/Berlin)",
    "58-1 * * * *": "at minutes 0, 1, 58 and 59 of every hour (Europe/Berlin)",
    "0 4 * * *": "every day at 04:00 (Europe/Berlin)",
    "0,30 9 * * mon": "every Monday at 09:00 and 09:30 (Europe/Berlin)",
    "30 7 * * 1-5": "every weekday at 07:30 (Europe/Berlin)",
    "30 7 * * monday,tue-fri": "every weekday at 07:30 (Europe/Berlin)",
    "0 0 * * 0": "every Sunday at 00:00 (Europe/Berlin)",
    "0 0 * * 6,7": "every Saturday and Sunday at 00:00 (Europe/Berlin)",
    "0 0 * * 2-6": "every day from Tuesday to Saturday at 00:00 (Europe/Berlin)",
    "0 0 * * fri-mon": "every Monday, Friday, Saturday and Sunday at 00:00 (Europe/Berlin)",
    "0 0 * * 0-6": "every day at 00:00 (Europe/Berlin)",
    "0 6 1 * *": "on the 1st of each month at 06:00 (Europe/Berlin)",
    "0 6 2,3,11,12,13,22 * *": "on the 2nd, 3rd, 11th to 13th and 22nd of each month at 06:00 (Europe/Berlin)",
    "0 8,12 1,15 1,7 *": "on the 1st and 15th of January and July at 08:00 and 12:00 (Europe/Berlin)",
    "0 5 1 6-8 *": "on the 1st of each month from June to August at 05:00 (Europe/Berlin)",
    "0 0 31 * *": "on the 31st of each month at 00:00, if the month has it (Europe/Berlin)",
    "0 0 31 1,3 *": "on the 31st of January and March at 00:00 (Europe/Berlin)",
    "0 0 29 2 *": "on the 29th of February at 00:00, if the month has it (Europe/Berlin)",
    "0 0 28-31 2 *": "on the 28th to 31st of February at 00:00 (Europe/Berlin)",
    "0 0 13 * fri": "on the 13th of each month at 00:00, if it is a Friday (Europe/Berlin)",
    "0 9 1-7 * mon,thu": "on the 1st to 7th of each month at 09:00, if it is a Monday or a Thursday (Europe/Berlin)",
    "0 9 31 * 0,6": (
        "on the 31st of each month at 09:00, if the month has it and it is a Saturday or a Sunday (Europe/Berlin)"
    ),
    "0 0 * dec *": "every day in December at 00:00 (Europe/Berlin)",
    "0 0 * 6-8 1-5": "every weekday from June to August at 00:00 (Europe/Berlin)",
    "0 0 * 6-8 2-6": "every day from Tuesday to Saturday, from June to August at 00:00 (Europe/Berlin)",
    "0 9-17 * 6-8 2-6": (
        "every hour from 09:00 to 17:00, from Tuesday to Saturday, from June to August (Europe/Berlin)"
    ),
    "0 */2 * * *": "every 2 hours (Europe/Berlin)",
    "0 */5 * * *": "every 5 hours from 00:00 to 20:00 (Europe/Berlin)",
    "30 */2 * * *": "every 2 hours from 00:30 to 22:30 (Europe/Berlin)",
    "0 */2 * * 1-5": "every 2 hours, on weekdays (Europe/Berlin)",
    "*/15 8-18 * * 1-5": "every 15 minutes from 08:00 to 18:45, on weekdays (Europe/Berlin)",
    "*/15 * * * mon,wed": "every 15 minutes, on Mondays and Wednesdays (Europe/Berlin)",
    "*/15 * 1 * mon": "every 15 minutes, on the 1st of each month, if it is a Monday (Europe/Berlin)",
    "*/15 * * feb *": "every 15 minutes, in February (Europe/Berlin)",
    "* 9 * * *": "every minute from 09:00 to 09:59 (Europe/Berlin)",
    "* 3,5 * * *": "every minute of hours 3 and 5 (Europe/Berlin)",
    "5-59/15 3,5,7 * * *": "at minutes 5, 20, 35 and 50 of hours 3, 5 and 7 (Europe/Berlin)",
    "0 22-2 * * *": "every hour from 22:00 to 02:00 (Europe/Berlin)",
    "0,20,40 22-1 * * *": "every 20 minutes from 22:00 to 01:40 (Europe/Berlin)",
    "0 22-2 * * 1": "every Monday at 00:00, 01:00, 02:00, 22:00 and 23:00 (Europe/Berlin)",
    "0 0,23 * * *": "every day at 00:00 and 23:00 (Europe/Berlin)",
    "1,2 1,2,3,4 * * *": "every day at 01:01, 01:02, 02:01, 02:02, 03:01, 03:02, 04:01 and 04:02 (Europe/Berlin)",
}


@pytest.mark.parametrize(("line", "words"), CRONTABS.items())
def test_it_says_when_a_crontab_is_due(line, words):
    assert in_words(Spec(Crontab(*line.split(), BERLIN)), "Asia/Tokyo") == words


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        (Interval(timedelta(minutes=15), NOW), "every 15 minutes"),
        (Interval(timedelta(seconds=90), NOW), "every 90 seconds"),
        (Interval(timedelta(seconds=1), NOW), "every second"),
        (Interval(timedelta(hours=1), NOW), "every hour"),
        (Interval(timedelta(seconds=1.5), NOW), "every 1.5 seconds"),
        (Interval(timedelta(days=1), NOW), "every day"),
        (Interval(timedelta(days=11), NOW), "every 11 days"),
        (Interval(timedelta(days=2), NOW, BERLIN), "every 2 days at 18:00 (Europe/Berlin)"),
        (Clocked(NOW), "once, on 2026-12-25 at 02:00 (Asia/Tokyo)"),
        (Clocked(NOW.replace(second=5, microsecond=250_000)), "once, on 2026-12-25 at 02:00:05.25 (Asia/Tokyo)"),
        (Clocked(datetime.max.replace(tzinfo=UTC)), "once, on 9999-12-31 at 23:59:59.999999 (Asia/Tokyo)"),
        (Clocked(datetime(2, 1, 1, tzinfo=UTC)), "once, on 0002-01-01 at 09:18:59 (Asia/Tokyo)"),
        (Solar("sunset", 52.5, 13.4), "at every sunset at 52.5° N, 13.4° E"),
        (Solar("dawn_civil", -0.000001, -180), "at every civil dawn at 0.000001° S, 180° W"),
        (Solar("solar_noon", 0, 0), "at every solar noon at 0° N, 0° E"),
    ],
)
def test_it_says_when_other_timings_are_due(timing, words):
    assert in_words(Spec(timing), "Asia/Tokyo") == words


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        (
            Crontab("0", "4", "*", "*", "*", BERLIN),
            "every day at 04:00, from 2026-12-24 18:00, before 2026-12-25 18:00",
        ),
        (Interval(timedelta(hours=1), NOW), "every hour, from 2026-12-24 18:00, before 2026-12-25 18:00"),
    ],
)
def test_it_names_the_start_and_the_end(timing, words):
    assert in_words(Spec(timing, NOW, NOW + timedelta(days=1)), BERLIN) == f"{words} (Europe/Berlin)"
    assert in_words(Spec(timing), "UTC") == words.partition(",")[0] + (" (Europe/Berlin)" if " at " in words else "")


def test_it_shows_the_last_day_of_the_calendar_in_utc_where_the_zone_has_none():
    assert day_and_time(datetime(9999, 12, 31, 20, tzinfo=UTC), "Asia/Tokyo") == "9999-12-31 20:00"
    assert day_and_time(datetime(1, 1, 1, 2, tzinfo=UTC), "America/New_York") == "0001-01-01 02:00"


@pytest.mark.parametrize(("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), ("abc", "a, b and c")])
def test_it_lists_words(words, text):
    assert listed(words) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (0.0123, "0.012 s"),
        (1.5, "1.5 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (3605, "1 h"),
        (360_000, "4 d 4 h"),
        (10**10, "115740 d 17 h"),
    ],
)
def test_it_rounds_a_measured_duration(seconds, text):
    assert length(timedelta(seconds=seconds)) == text


def field(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    part = st.one_of(
        st.just("*"),
        value.map(str),
        st.tuples(value, value).map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
        st.tuples(value, value, st.integers(1, high)).map(lambda three: "{}-{}/{}".format(*three)),
    )
    return st.lists(part, min_size=1, max_size=3).map(",".join)


crontabs = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6))
_said: dict[str, tuple[object, ...]] = {}


@examples
@given(crontabs)
def test_it_finds_different_words_for_crontabs_that_differ(fields):
    try:
        calendar = calendar_of(Crontab(*fields, BERLIN))
    except Invalid:
        return
    words = in_words(Spec(Crontab(*fields, BERLIN)), "UTC")
    assert words == words.strip()
    assert "  " not in words
    meaning = (calendar.months, calendar.days, calendar.weekdays, calendar.times)
    assert _said.setdefault(words, meaning) == meaning


@pytest.mark.parametrize("low", [0, 1])
def test_it_finds_different_words_for_all_simple_times(low):
    """Every range and every step of minutes and hours, beside the other field's three kinds."""
    said: dict[str, object] = {}
    texts = [f"{first}-{last}/{step}" for first in range(low, 24, 3) for last in range(24) for step in (1, 2, 3, 6)]
    for text in [*texts, "*", "*/2", "*/3", "*/5", "*/12"]:
        for other in ("0", "*", "*/15"):
            for minute, hour in ((text, other), (other, text)):
                crontab = Crontab(minute, hour, "*", "*", "*", BERLIN)
                words = in_words(Spec(crontab), "UTC")
                assert said.setdefault(words, calendar_of(crontab).times) == calendar_of(crontab).times, words


moments = st.datetimes(timezones=st.just(UTC))
timings = st.one_of(
    st.builds(Interval, st.timedeltas(timedelta(seconds=1), LONGEST), moments),
    st.builds(
        lambda days, at: Interval(timedelta(days=days), at, BERLIN),
        st.integers(1, 3000),
        st.datetimes(datetime(3, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - aware by hypothesis
    ),
    st.builds(Clocked, moments),
    st.builds(Solar, st.sampled_from(sorted(SOLAR_EVENTS)), st.floats(-89, 89), st.floats(-180, 180)),
)


@examples
@given(timings, st.lists(moments, max_size=2).map(sorted), st.sampled_from(["UTC", "Asia/Tokyo", "Pacific/Niue"]))
def test_it_finds_words_for_each_timing_that_can_be_computed(timing, bounds, zone):
    if any(earlier == later for earlier, later in pairwise(bounds)):
        return
    words = in_words(Spec(timing, *bounds), zone)
    assert words.isprintable()
    assert words.startswith(("every ", "once, on ", "at every "))


# --- what clock changes do ------------------------------------------------------------------------------------------

SPRING, AUTUMN = "On 2026-03-29 the clocks of Europe/Berlin skip ", "On 2026-10-25 the clocks of Europe/Berlin show "


def of_2026(line: str, zone: str = BERLIN, until: datetime = datetime(2027, 1, 1, tzinfo=UTC)) -> list[str]:
    return sentences(Crontab(*line.split(), zone), datetime(2026, 1, 1, tzinfo=UTC), until)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "30 2 * * *",
            [f"{SPRING}02:30: it is due at 03:00 instead.", f"{AUTUMN}02:30 twice: it is due the first time only."],
        ),
        (
            "0,30 1-3 * * sun",
            [
                f"{SPRING}02:00 and 02:30: it is due at 03:00 instead.",
                f"{AUTUMN}02:00 and 02:30 twice: it is due the first time only.",
            ],
        ),
        (
            "*/10 2 * * *",
            [
                f"{SPRING}02:00 to 02:50: it is not due then.",
                f"{AUTUMN}02:00 to 02:50 twice: it is due both times.",
            ],
        ),
        ("0 2 25 10 *", [f"{AUTUMN}02:00 twice: it is due the first time only."]),
        ("30 4 * * *", []),
        ("30 2 * * mon", []),
        ("0 * * * *", []),
        ("*/15 * * * *", []),
        ("* * 29 3 *", []),
    ],
)
def test_it_says_what_clock_changes_do_to_a_crontab(line, expected):
    assert of_2026(line) == expected
    assert of_2026(line, "UTC") == []


def test_it_looks_no_further_than_the_last_moment():
    before = datetime(2026, 3, 28, 1, 30, tzinfo=UTC)
    assert of_2026("30 2 * * *", until=before) == []
    assert of_2026("30 2 * * *", until=before + timedelta(days=1)) == [f"{SPRING}02:30: it is due at 03:00 instead."]


def test_it_names_the_day_after_a_day_that_the_clocks_skip():
    crontab = Crontab("0", "9", "*", "*", "*", "Pacific/Apia")
    (sentence,) = sentences(crontab, datetime(2011, 12, 1, tzinfo=UTC), datetime(2012, 1, 9, tzinfo=UTC))
    assert sentence.endswith("skip 09:00: it is due on 2011-12-31 at 00:00 instead.")


def test_it_says_what_clock_changes_do_to_an_interval_that_follows_the_clocks():
    daily = Interval(timedelta(days=1), datetime(2026, 1, 1, 1, 30, tzinfo=UTC), BERLIN)
    found = sentences(daily, datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
    assert found == [
        f"{SPRING}02:30: it is due at 03:00 instead.",
        f"{AUTUMN}02:30 twice: it is due the first time only.",
    ]
    for timing in (Interval(timedelta(days=1), NOW), Clocked(NOW), Solar("sunset", 0, 0)):
        assert sentences(timing, NOW, NOW + timedelta(days=400)) == []


@examples
@given(st.integers(0, 59), st.sampled_from(["1", "2", "1,3", "2-4", "*/2", "*"]), st.sampled_from(["{}", "*/{}"]))
def test_it_tells_what_occurrences_do_when_the_clocks_change(minute, hours, form):
    """Compared with the due moments of the two nights, in which Berlin skips and repeats the hour from 02:00."""
    try:
        crontab = Crontab(form.format(minute), hours, "*", "*", "*", BERLIN)
    except Invalid:
        return
    nights = [
        (datetime(2026, month, day, tzinfo=UTC) + span)
        for month, day in ((3, 28), (10, 24))
        for span in (DAY * 0, DAY * 3)
    ]
    said = " ".join([*sentences(crontab, *nights[:2]), *sentences(crontab, *nights[2:])])
    spring, autumn = (due_on(crontab, month, day) for month, day in ((3, 29), (10, 25)))
    concerned = [time for time in due_on(crontab, 6, 1) if time.startswith("02")]
    if (hours == "*" and calendar_of(crontab).elapsed) or not concerned:
        assert said == ""
        return
    assert f"skip {concerned[0]}" in said
    assert f"show {concerned[0]}" in said
    assert not [time for time in spring if time.startswith("02")]
    assert ("due at 03:00 instead" in said) == (not calendar_of(crontab).elapsed)
    assert "03:00" in spring or "not due then" in said
    assert [autumn.count(time) for time in concerned] == [2 if "due both times" in said else 1] * len(concerned)


def due_on(crontab: Crontab, month: int, day: int) -> list[str]:
    """The clock's readings at the moments of one day."""
    zone = ZoneInfo(BERLIN)
    start = datetime(2026, month, day, tzinfo=zone)
    found = occurrences(Spec(crontab), start - timedelta(microseconds=1), start + timedelta(days=1, hours=2))
    local = [moment.astimezone(zone) for moment in found]
    return [f"{moment:%H:%M}" for moment in local if moment.date() == start.date()]


def test_it_ends_a_long_interval_that_follows_the_clocks_with_the_calendar():
    spec = Spec(Interval(timedelta(days=3_000_000), NOW, BERLIN))
    assert list(occurrences(spec, NOW - timedelta(days=1), LAST)) == [NOW]
