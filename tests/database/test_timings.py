"""A written timing means one row of django-celery-beat, and the row is written as the same timing again."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.models import KINDS
from jobs.rules import durations
from jobs.rules.errors import Invalid
from jobs.rules.solar import SOLAR_EVENTS
from jobs.schedules import timings
from jobs.schedules.calendar import timing_of
from tests.making import make_schedule
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db
anything = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
WRITTEN = [  # as a user writes it, the columns of its row, and as it is written back
    ({"crontab": "30 7 * * 1-5", "zone": "Europe/Berlin"}, "30 7 * * 1-5 Europe/Berlin", None),
    ({"crontab": " 0 9 * * MON-FRI"}, "0 9 * * mon-fri UTC", {"crontab": "0 9 * * mon-fri", "zone": "UTC"}),
    ({"crontab": "@daily", "zone": None}, "0 0 * * * UTC", {"crontab": "0 0 * * *", "zone": "UTC"}),
    ({"crontab": "0 0 1, 15 * ?"}, "0 0 1,15 * * UTC", {"crontab": "0 0 1,15 * *", "zone": "UTC"}),
    ({"crontab": "0 0 * * 5-7"}, "0 0 * * 5,6,0 UTC", {"crontab": "0 0 * * 5,6,0", "zone": "UTC"}),
    ({"every": "15 minutes"}, "15 minutes", None),
    ({"every": 900}, "15 minutes", {"every": "15 minutes"}),
    ({"every": "1 day"}, "1 days", None),
    ({"every": "90 s"}, "90 seconds", {"every": "90 seconds"}),
    ({"every": "1 h 30 min"}, "90 minutes", {"every": "90 minutes"}),
    ({"every": 1.5}, "1500000 microseconds", {"every": "1.5 seconds"}),
    ({"every": "2 weeks"}, "14 days", {"every": "14 days"}),
    ({"once": "2026-12-24T18:00:00+01:00"}, "2026-12-24 17:00:00+00:00", {"once": "2026-12-24T17:00:00+00:00"}),
    ({"once": "2026-12-24T17:00:00Z"}, "2026-12-24 17:00:00+00:00", {"once": "2026-12-24T17:00:00+00:00"}),
    ({"once": datetime(9999, 12, 31, tzinfo=UTC)}, "9999-12-31 00:00:00+00:00", {"once": "9999-12-31T00:00:00+00:00"}),
    ({"once": "0001-01-01T00:00:00Z"}, "0001-01-01 00:00:00+00:00", {"once": "0001-01-01T00:00:00+00:00"}),
    ({"solar": "sunset", "latitude": 52.5, "longitude": 13.4}, "sunset 52.5 13.4", None),
    (
        {"solar": "solar_noon", "latitude": -90, "longitude": Decimal("0.00000049")},
        "solar_noon -90.0 0.0",
        {"solar": "solar_noon", "latitude": -90.0, "longitude": 0.0},
    ),
]
HUGE = 10**4000
REFUSED = [
    (None, "A timing is an object, not NoneType"),
    ("@daily", "A timing is an object, not str"),
    ({}, "exactly one of crontab, every, once, solar"),
    ({"every": 5, "once": "2026-12-24T17:00:00Z"}, "exactly one of"),
    ({"every": 5, "zone": "UTC"}, "'every' has no 'zone': choose from every."),
    ({"crontab": "0 0 * * *", "\udc80" * 300: 1}, "has no"),
    ({"crontab": "0 0 * *"}, "has five fields"),
    ({"crontab": "0 0 30 2 *"}, "Day 30 never occurs in month 2"),
    ({"crontab": "@reboot"}, "use its init system"),
    ({"crontab": "0 0 * * *\0"}, "cannot read"),
    ({"crontab": "\udc80 0 * * *"}, "cannot read"),
    ({"crontab": 5}, "A crontab is one line of text"),
    ({"crontab": "0 0 * * *", "zone": 5}, "its zone a name"),
    ({"crontab": "0 0 * * *", "zone": "Europe/Nowhere"}, "There is no time zone 'Europe/Nowhere'"),
    ({"crontab": "0 0 * * *", "zone": ""}, "There is no time zone ''"),
    ({"crontab": "0 0 * * *", "zone": "x" * 100_000}, "There is no time zone"),
    ({"crontab": "0 " * 1000}, "longer than 1000 characters"),
    ({"crontab": f"0 {','.join(['1'] * 60)} * * *"}, "longer than 96 characters"),
    ({"every": 0}, "too short; choose one second or more"),
    ({"every": "0.5 s"}, "too short"),
    ({"every": -5}, "too short"),
    ({"every": "-5 s"}, "cannot be read"),
    ({"every": "soon"}, "write a duration such as"),
    ({"every": ""}, "cannot be read"),
    ({"every": "9" * 99 + "!"}, "cannot be read"),
    ({"every": True}, "not bool"),
    ({"every": None}, "not NoneType"),
    ({"every": HUGE}, "too long"),
    ({"every": float("nan")}, "no number"),
    ({"every": float("inf")}, "too long"),
    ({"every": 3000.000_001}, "too long for its precision"),
    ({"every": "999999999 days"}, "too long; choose"),
    ({"once": "tomorrow"}, "with its date, its time and its offset"),
    ({"once": "2026-12-24T18:00:00"}, "offset from UTC"),
    ({"once": "2026-12-24"}, "offset from UTC"),
    ({"once": 5}, "Write the moment"),
    ({"once": "9999-12-31T23:00:00-05:00"}, "outside the years 1 to 9999"),
    ({"solar": "sunset"}, "its latitude and longitude as numbers"),
    ({"solar": "sunset", "latitude": "52", "longitude": 1}, "as numbers of degrees"),
    ({"solar": "sunset", "latitude": True, "longitude": 1}, "as numbers of degrees"),
    ({"solar": "sunset", "latitude": float("nan"), "longitude": 1}, "latitude of nan degrees does not exist"),
    ({"solar": "sunset", "latitude": HUGE, "longitude": 1}, "from -90 to 90"),
    ({"solar": "sunset", "latitude": 0, "longitude": 181}, "longitude of 181 degrees does not exist"),
    ({"solar": "sunset", "latitude": 90, "longitude": 0}, "may not occur in every year"),
    ({"solar": "moonrise" * 1000, "latitude": 0, "longitude": 0}, "There is no solar event"),
]


def columns(row: Any) -> str:
    values = [getattr(row, field.name) for field in row._meta.concrete_fields[1:]]
    return " ".join(map(str, values))


@pytest.mark.parametrize(("value", "expected", "back"), WRITTEN, ids=lambda value: str(value)[:40])
def test_it_reads_a_written_timing_and_writes_it_back(value, expected, back):
    row = timings.parse(value)
    assert (columns(row), row.pk) == (expected, None)
    assert timings.written(row) == (back or value)
    stored = type(row).objects.get(pk=timings.saved(row).pk)
    assert timings.written(stored) == (back or value)
    assert json.loads(json.dumps(timings.written(stored))) == (back or value)


@pytest.mark.parametrize(("value", "sentence"), REFUSED, ids=lambda value: repr(value)[:40])
def test_it_refuses_a_timing_with_a_short_sentence_that_says_what_to_write(value, sentence):
    with pytest.raises(Invalid) as refused:
        timings.parse(value)
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.datetimes(), st.lists(st.integers())
)
nearly = st.one_of(
    junk,
    st.from_regex(r"[0-9*/,a-z -]{1,20}( [0-9*/,-]{1,5}){0,5}", fullmatch=True),
    st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})? ?(s|min|hours|days|weeks|us)?", fullmatch=True),
    st.sampled_from(["Europe/Berlin", "sunset", "@daily", "2026-12-24T18:00+01:00"]),
)


@anything
@given(st.dictionaries(st.sampled_from(["crontab", "zone", "every", "once", "solar", "latitude", "longitude"]), nearly))
def test_it_reads_any_value_or_refuses_it(value):
    try:
        row = timings.parse(value)
    except Invalid:
        return
    again = timings.parse(timings.written(row))
    now = timezone.now()
    assert timing_of(again, now) == timing_of(row, now)
    assert timings.written(again) == timings.written(row)


@anything
@given(
    st.one_of(
        st.builds(
            lambda n, unit: IntervalSchedule(every=n, period=unit), st.integers(1), st.sampled_from([*durations.UNITS])
        ),
        st.builds(lambda at: ClockedSchedule(clocked_time=at), st.datetimes(timezones=st.just(UTC))),
        st.builds(
            SolarSchedule,
            event=st.sampled_from(sorted(SOLAR_EVENTS)),
            latitude=st.decimals(-89, 89, places=6),
            longitude=st.decimals(-180, 180, places=6),
        ),
    )
)
def test_it_writes_each_row_that_can_be_computed_so_that_it_is_read_again(row):
    now = timezone.now()
    try:
        timing = timing_of(row, now)
    except Invalid:
        timings.written(row)
        return
    assert timing_of(timings.parse(timings.written(row)), now) == timing


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"minute": "61", "hour": "L"}, "61 l * * *"),
        ({"minute": "0", "hour": "1, 2", "day_of_week": "MON"}, "0 1,2 * * mon"),
        ({"day_of_month": "30", "month_of_year": "2"}, "* * 30 2 *"),
    ],
)
def test_it_writes_a_crontab_that_sql_or_the_admin_made(columns, expected):
    row = CrontabSchedule.objects.create(**columns)
    assert timings.written(row)["crontab"] == expected


def test_it_writes_an_interval_that_cannot_be_computed():
    assert timings.written(IntervalSchedule(every=5, period="fortnights")) == {"every": "5 fortnights"}
    assert timings.written(IntervalSchedule(every=1, period="microseconds")) == {"every": "1 microseconds"}


def test_it_saves_nothing_when_it_parses():
    for value, *_ in WRITTEN:
        timings.parse(value)
    assert not any(model.objects.exists() for model in (IntervalSchedule, ClockedSchedule, SolarSchedule))


@pytest.mark.parametrize("value", [value for value, *_ in WRITTEN], ids=str)
def test_it_finds_the_row_of_a_timing_that_was_saved_before(value):
    first = timings.saved(timings.parse(value))
    again = timings.saved(timings.parse(value))
    assert first.pk == again.pk
    assert timings.saved(first) is first


def test_it_finds_the_oldest_of_several_equal_rows():
    oldest, _ = (IntervalSchedule.objects.create(every=15, period="minutes") for _ in range(2))
    assert timings.saved(timings.parse({"every": 900})) == oldest


@pytest.mark.parametrize(
    ("current", "value"),
    [
        (lambda: IntervalSchedule.objects.create(every=60, period="minutes"), {"every": "1 hour"}),
        (lambda: CrontabSchedule.objects.create(minute="0", day_of_week="MON"), {"crontab": "0 * * * mon"}),
    ],
)
def test_it_keeps_the_row_of_a_schedule_that_means_the_same(current, value):
    current = current()
    timing = timings.parse(value)
    assert timings.saved(timing, current) is current
    assert timings.saved(timing) != current
    assert timings.saved(timings.parse({"every": 7}), current) != current


def test_it_gives_a_schedule_one_timing_and_no_other():
    schedule = make_schedule()
    crontab = timings.saved(timings.parse({"crontab": "@daily"}))
    for name, row in timings.columns(crontab).items():
        setattr(schedule, name, row)
    schedule.save()
    schedule = PeriodicTask.objects.get()
    assert (timings.of(schedule), schedule.interval) == (crontab, None)
    assert timings.of(PeriodicTask()) is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("value", [value for value, *_ in WRITTEN[::4]], ids=str)
def test_it_makes_one_row_for_many_requests_at_once(value):
    start = threading.Barrier(8, timeout=DEADLINE)

    def save(_: int) -> int:
        try:
            row = timings.parse(value)
            start.wait()
            return timings.saved(row).pk
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(save, range(8)))
    model = KINDS[timings.kind_of(timings.parse(value))]
    assert keys == set(model.objects.values_list("pk", flat=True))
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90 s", timedelta(seconds=90)),
        ("5", timedelta(seconds=5)),
        ("1h30m", timedelta(minutes=90)),
        ("2 h, and 5 min", timedelta(minutes=125)),
        ("Day", timedelta(days=1)),
        ("250 ms", timedelta(milliseconds=250)),
    ],
)
def test_it_reads_durations(text, length):
    assert durations.read(text) == length
    assert durations.read(durations.text(length)) == length
    assert durations.read(length) == length


@pytest.mark.parametrize("text", ["1 hand 5 s", "5 5", "1d and", "hour 5 minutes", "1 minute5", "¹ s", "١ day"])
def test_it_refuses_durations_that_it_does_not_understand(text):
    with pytest.raises(Invalid, match="write a duration such as"):
        durations.read(text)
