"""The past of a schedule is judged by the timings in force then: which moments were due, and which window has a run?

Each test sets the database's clock and lets days pass in it.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs.beat import claim
from jobs.ledger import backfills, requests, retention
from jobs.models import TERMINAL, Backfill, PastTiming, Policy, Run, State, Trigger, database_now
from jobs.schedules import acts, calendar
from jobs.toolkit.current import current_run
from tests.making import inside, make_run, make_schedule, run_now

pytestmark = pytest.mark.django_db
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
MONDAY = datetime(2025, 3, 3, tzinfo=UTC)
NIGHTLY = {"minute": "0", "hour": "2"}


def edit(schedule: PeriodicTask, **columns: Any) -> None:
    """Save these columns; `cron` holds fields of its crontab."""
    schedule.refresh_from_db()
    if "cron" in columns:
        columns["crontab"], _ = CrontabSchedule.objects.get_or_create(**columns.pop("cron"))
    for name, value in columns.items():
        setattr(schedule, name, value)
    schedule.save()


def claim_all() -> None:
    """Decide all that is due; each new run succeeds at once."""
    for _ in claim.claim_due():
        pass
    Run.objects.exclude(state__in=TERMINAL).update(state=State.SUCCEEDED, finished_at=database_now())


def backfill(schedule: PeriodicTask, start: datetime, end: datetime, which: str = "all") -> list[Run]:
    """The runs of a backfill, all of them over, after beat has decided all that is due."""
    claim_all()
    request = Backfill(schedule=schedule, start=start, end=end, which=which, actor="ada")
    backfills.backfill(request, "ada")
    runs = Run.objects.filter(backfill=request)
    runs.update(state=State.SUCCEEDED, finished_at=database_now())
    return list(runs.order_by("due_at"))


def due(schedule: PeriodicTask, start: datetime, end: datetime, which: str = "all") -> list[datetime]:
    return [run.due_at for run in backfill(schedule, start, end, which)]


def window_of(run: Run) -> datetime | None:
    with inside(run):
        return current_run().window_start


def retried(run: Run) -> Run:
    (again,) = requests.retry([run], "ada").runs
    Run.objects.filter(pk=again.pk).update(state=State.FAILED, finished_at=database_now())
    again.refresh_from_db()
    return again


def nights(first: int, last: int, hour: int = 2) -> list[datetime]:
    return [MONDAY + day * DAY + hour * HOUR for day in range(first, last + 1)]


# --- which moments were due? -----------------------------------------------------------------------------------------


@pytest.fixture
def nightly(at) -> PeriodicTask:
    """Made on Monday at noon, due at two each night."""
    at(MONDAY + 12 * HOUR)
    return make_schedule(cron=NIGHTLY)


def test_it_backfills_the_moments_of_a_former_crontab(nightly, at):
    at(MONDAY + 5.5 * DAY)
    edit(nightly, cron={"minute": "0", "hour": "3"})
    at(MONDAY + 9.5 * DAY)
    assert due(nightly, MONDAY + DAY, MONDAY + 5 * DAY + HOUR * 12) == nights(1, 5)
    assert due(nightly, MONDAY + 5 * DAY, MONDAY + 8 * DAY) == [*nights(5, 5), *nights(6, 7, hour=3)]


def test_it_backfills_the_moments_of_a_crontab_that_was_changed_itself(nightly, at):
    at(MONDAY + 5.5 * DAY)
    CrontabSchedule.objects.update(hour="3", timezone="Asia/Kathmandu")
    calendar.sweep()
    at(MONDAY + 9.5 * DAY)
    local = [moment - timedelta(hours=5, minutes=45) for moment in nights(6, 8, hour=3)]
    assert due(nightly, MONDAY + 4 * DAY, MONDAY + 8.5 * DAY) == [*nights(4, 5), *local]


@pytest.mark.parametrize("column", ["expires", "start_time"])
def test_it_backfills_what_was_due_before_a_bound_was_changed(nightly, at, column):
    at(MONDAY + 5.5 * DAY)
    edit(nightly, **{column: MONDAY + 5.5 * DAY if column == "expires" else MONDAY + 8 * DAY})
    at(MONDAY + 6.5 * DAY)
    edit(nightly, **{column: MONDAY + 2 * DAY if column == "expires" else None})
    at(MONDAY + 9.5 * DAY)
    after = [] if column == "expires" else nights(7, 8)
    assert due(nightly, MONDAY + DAY, MONDAY + 9 * DAY) == [*nights(1, 5), *after]


@pytest.mark.parametrize("off", [acts.disable, lambda schedules, _: schedules.update(enabled=False)])
def test_it_backfills_nothing_of_the_days_on_which_a_schedule_was_disabled(nightly, at, off):
    at(MONDAY + 3.5 * DAY)
    off(PeriodicTask.objects.all(), "ada")
    calendar.sweep()
    at(MONDAY + 4.5 * DAY)
    edit(nightly, cron={"minute": "0", "hour": "4"})
    at(MONDAY + 6.5 * DAY)
    edit(nightly, enabled=True)
    at(MONDAY + 9.5 * DAY)
    assert due(nightly, MONDAY + DAY, MONDAY + 9 * DAY) == [*nights(1, 3), *nights(7, 8, hour=4)]


def test_it_backfills_nothing_of_the_days_on_which_a_row_could_not_be_read(nightly, at):
    at(MONDAY + 3.5 * DAY)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_crontabschedule SET timezone = 'Mars/Phobos'")
    calendar.sweep()
    at(MONDAY + 6.5 * DAY)
    CrontabSchedule.objects.update(timezone="UTC")
    calendar.sweep()
    at(MONDAY + 9.5 * DAY)
    assert due(nightly, MONDAY + DAY, MONDAY + 9 * DAY) == [*nights(1, 3), *nights(7, 8)]


def test_it_backfills_nothing_after_the_last_run_of_a_limited_schedule(at):
    at(MONDAY + MINUTE / 2)
    schedule = make_schedule(cron={"minute": "*"}, policy={"remaining_runs": 2})
    for minute in (1, 2):
        at(MONDAY + minute * MINUTE)
        claim_all()
    at(MONDAY + 10 * MINUTE)  # no beat was there to notice that the schedule is off
    edit(schedule, enabled=True)
    at(MONDAY + 12 * MINUTE)
    moments = due(schedule, MONDAY + MINUTE, MONDAY + 12 * MINUTE)
    assert moments == [MONDAY + minute * MINUTE for minute in (1, 2, 11)]


def test_it_backfills_nothing_after_a_claim_has_found_that_a_schedule_is_disabled(at):
    at(MONDAY + MINUTE / 2)
    schedule = make_schedule(cron={"minute": "*"})
    for minute in (1, 2):
        at(MONDAY + minute * MINUTE)
        claim_all()
        PeriodicTask.objects.update(enabled=False)
    at(MONDAY + 10 * MINUTE)
    edit(schedule, enabled=True)
    at(MONDAY + 12 * MINUTE)
    assert due(schedule, MONDAY, MONDAY + 12 * MINUTE)[1:] == [MONDAY + minute * MINUTE for minute in (1, 2, 11)]


def test_it_judges_times_before_a_schedule_existed_by_its_first_timing_and_says_so(nightly, at):
    at(MONDAY + 5.5 * DAY)
    edit(nightly, cron={"minute": "0", "hour": "3"})
    at(MONDAY + 6.5 * DAY)
    claim_all()
    request = Backfill(schedule=nightly, which="all", start=MONDAY - 2 * DAY, end=MONDAY + 2 * DAY, actor="ada")
    seen = backfills.preview(request)
    assert (seen.moments, seen.assumed) == (nights(-2, 1), 3)


def test_it_forgets_a_timing_that_was_corrected_before_a_moment_was_due(nightly, at):
    at(MONDAY + 12 * HOUR + MINUTE)
    edit(nightly, cron={"minute": "0", "hour": "3"})
    assert not PastTiming.objects.exists()
    at(MONDAY + 2 * DAY)
    assert due(nightly, MONDAY - DAY, MONDAY + 2 * DAY) == nights(-1, 1, hour=3)


def test_it_backfills_times_before_a_schedule_that_was_never_enabled(at):
    at(MONDAY)
    schedule = make_schedule(cron=NIGHTLY, enabled=False)
    at(MONDAY + 4.5 * DAY)
    assert due(schedule, MONDAY - 2 * DAY, MONDAY + 3 * DAY) == nights(-2, -1)


def test_it_judges_the_past_of_a_former_version_by_the_timing_that_it_finds(nightly, at):
    Policy.objects.update(known_since=None)
    at(MONDAY + 5.5 * DAY)
    assert due(nightly, MONDAY - 2 * DAY, MONDAY + 2 * DAY) == nights(-2, 1)
    edit(nightly, enabled=False)
    at(MONDAY + 9.5 * DAY)
    assert due(nightly, MONDAY - 2 * DAY, MONDAY + 9 * DAY) == nights(-2, 5)


def test_it_counts_a_moment_in_the_ledger_as_due_even_if_no_timing_gives_it(nightly, at):
    at(MONDAY + 3.5 * DAY)
    claimed = MONDAY + DAY + HOUR  # under the rules for its zone that were known then
    make_run(nightly, State.FAILED, due_at=claimed, last_due_at=claimed)
    claim_all()
    runs = backfill(nightly, MONDAY, MONDAY + 3 * DAY)
    assert [run.due_at for run in runs] == [*nights(0, 0), claimed, *nights(1, 2)]
    assert [window_of(run) for run in runs[1:]] == [run.due_at for run in runs[:-1]]


def test_it_keeps_no_timing_and_no_gap_for_an_edit_that_leaves_the_timing_as_it_is(nightly, at):
    claim_all()
    at(MONDAY + 5.5 * DAY)
    edit(nightly, one_off=True)
    edit(nightly, one_off=False)
    assert calendar.sweep() == 0
    assert not PastTiming.objects.exists()
    assert Policy.objects.get().timing_since == MONDAY + 12 * HOUR
    assert due(nightly, MONDAY + DAY, MONDAY + 2 * DAY) == nights(1, 1)


def test_it_keeps_at_most_one_timing_for_each_due_moment(nightly, at):
    for minute in range(0, 60 * 24, 7):
        at(MONDAY + 12 * HOUR + minute * MINUTE)
        edit(nightly, cron={"minute": "0", "hour": "2,14" if minute % 2 else "2"})
    assert 1 <= PastTiming.objects.count() <= 2


def test_it_keeps_the_timings_of_many_schedules_in_one_statement(at):
    at(MONDAY + 12 * HOUR)
    crontab = CrontabSchedule.objects.create(**NIGHTLY)
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"{n}", task="tests.nothing", crontab=crontab) for n in range(50)
    )
    calendar.sweep()
    at(MONDAY + 2.5 * DAY)
    CrontabSchedule.objects.update(hour="3")
    statements = []

    def count(execute, sql, params, many, context):
        statements.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count):
        calendar.sweep()
    assert PastTiming.objects.count() == 50
    assert sum('INTO "jobs_pasttiming"' in sql for sql in statements) == 1


def test_it_lets_the_later_timing_count_where_the_clock_was_set_back(nightly, at):
    at(MONDAY + 9.5 * DAY)  # a wrong clock
    edit(nightly, cron={"minute": "0", "hour": "3"})
    at(MONDAY + 2.5 * DAY)
    edit(nightly, cron={"minute": "0", "hour": "4"})
    at(MONDAY + 10.5 * DAY)
    assert due(nightly, MONDAY + DAY, MONDAY + 5 * DAY) == [*nights(1, 2), *nights(3, 4, hour=4)]


@pytest.mark.parametrize("how", ["django", "sql"])
def test_it_removes_past_timings_with_their_schedule(nightly, at, how):
    at(MONDAY + 5.5 * DAY)
    edit(nightly, enabled=False)
    assert PastTiming.objects.count() == 1
    if how == "django":
        nightly.delete()
    elif connection.vendor == "sqlite":
        pytest.skip("SQLite cannot change a constraint of a table, so it refuses to delete the row.")
    else:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_celery_beat_periodictask")
    assert not PastTiming.objects.exists()


def test_it_deletes_timings_that_ended_long_ago_and_lets_the_first_one_left_count_before(nightly, at):
    for day, hour in ((10, 3), (20, 4), (30, 5)):
        at(MONDAY + (day + 0.5) * DAY)
        edit(nightly, cron={"minute": "0", "hour": str(hour)})
    at(MONDAY + 40 * DAY)
    retention.delete_timings(MONDAY + 15 * DAY)
    retention.delete_timings(MONDAY + 15 * DAY)
    assert PastTiming.objects.count() == 2
    claim_all()
    Run.objects.all().delete()
    request = Backfill(schedule=nightly, which="all", start=MONDAY + 9 * DAY, end=MONDAY + 22 * DAY, actor="ada")
    seen = backfills.preview(request)
    assert (seen.moments, seen.assumed) == ([*nights(9, 20, hour=3), *nights(21, 21, hour=4)], 2)


# --- which window has a run? -----------------------------------------------------------------------------------------


def test_it_gives_backfilled_runs_the_windows_that_their_moments_had(nightly, at):
    at(MONDAY + 5.5 * DAY)
    edit(nightly, enabled=False)
    at(MONDAY + 7.5 * DAY)
    edit(nightly, enabled=True, cron={"minute": "0", "hour": "3"})
    at(MONDAY + 9.5 * DAY)
    runs = backfill(nightly, MONDAY + 4 * DAY, MONDAY + 9 * DAY)
    assert [run.due_at for run in runs] == [*nights(4, 5), *nights(8, 8, hour=3)]
    edit(nightly, cron={"minute": "0", "hour": "22"})  # the runs wait, and the timing changes again
    assert [window_of(run) for run in runs] == [*nights(3, 5)]


def test_it_gives_a_manual_run_the_window_since_the_moment_that_was_due_before(nightly, at):
    at(MONDAY + 5.5 * DAY)
    edit(nightly, enabled=False, cron={"minute": "0", "hour": "3"})
    at(MONDAY + 7.5 * DAY)
    assert window_of(run_now(nightly)) == nights(5, 5)[0]


def test_it_starts_the_window_of_a_manual_run_within_a_stretch_at_the_moment_before_it(at):
    at(MONDAY + MINUTE / 2)
    schedule = make_schedule(cron={"minute": "*"}, task="tests.gone")
    for minute in range(1, 7):  # the last waits for a beat that knows the job
        at(MONDAY + minute * MINUTE)
        claim_all()
    assert Run.objects.get().count == 5
    manual = make_run(schedule, due_at=MONDAY + 3.5 * MINUTE, trigger=Trigger.MANUAL)
    assert window_of(manual) == MONDAY + 3 * MINUTE


@pytest.fixture
def failed(nightly, at) -> Run:
    """The failed run of Friday, whose window starts on Thursday; then the schedule was off, and got another timing."""
    for day in range(1, 6):
        at(MONDAY + day * DAY + 2 * HOUR)
        claim_all()
    at(MONDAY + 5.5 * DAY)
    edit(nightly, enabled=False)
    at(MONDAY + 6.5 * DAY)
    edit(nightly, enabled=True, cron={"minute": "0", "hour": "*"})
    run = Run.objects.get(due_at=nights(4, 4)[0])
    Run.objects.filter(pk=run.pk).update(state=State.FAILED)
    run.refresh_from_db()
    return run


def delete_neighbours(run: Run) -> None:
    for _ in retention.delete_ended(database_now() + HOUR, {State.SUCCEEDED}):
        pass
    assert Run.objects.exclude(due_at__gte=run.due_at).count() == 0


def delete_schedule(_: Run) -> None:
    PeriodicTask.objects.all().delete()


def delete_schedule_in_sql(_: Run) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite cannot change a constraint of a table, so it refuses to delete the row.")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_celery_beat_periodictask")
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.parametrize(
    "harm",
    [lambda run: None, delete_neighbours, delete_schedule, delete_schedule_in_sql],
    ids=["", "no neighbours", "no schedule", "sql"],
)
def test_it_gives_a_retry_the_window_of_the_run_that_it_repeats(failed, harm):
    harm(failed)
    again = retried(Run.objects.get(pk=failed.pk))
    assert window_of(again) == nights(3, 3)[0]
    Run.objects.exclude(pk=again.pk).delete()
    twice = retried(again)
    assert (twice.due_at, window_of(twice)) == (failed.due_at, nights(3, 3)[0])


@pytest.mark.parametrize("kind", ["backfilled", "manual"])
def test_it_gives_a_retry_of_a_requested_run_its_window(nightly, at, kind):
    at(MONDAY + 5.5 * DAY)
    run = backfill(nightly, MONDAY + 5 * DAY, MONDAY + 5.5 * DAY)[0] if kind == "backfilled" else run_now(nightly)
    Run.objects.filter(pk=run.pk).update(state=State.FAILED, finished_at=database_now())
    expected = window_of(run)
    assert expected == nights(4 if kind == "backfilled" else 5, 9)[0]
    edit(nightly, cron={"minute": "*"}, start_time=MONDAY)
    run.refresh_from_db()
    again = retried(run)
    PeriodicTask.objects.all().delete()
    assert window_of(again) == expected
    run.refresh_from_db()
    assert window_of(retried(run)) == expected


def test_it_gives_a_retry_no_start_of_a_window_if_its_run_had_none(at):
    at(MONDAY)
    schedule = make_schedule(cron=NIGHTLY, start_time=MONDAY)
    at(MONDAY + 2 * HOUR)
    claim_all()
    edit(schedule, start_time=None, interval=None, cron={"minute": "*/5"})
    first = Run.objects.get()
    assert window_of(first) is None
    again = retried(first)
    Policy.objects.update(known_since=None)
    PastTiming.objects.all().delete()
    assert window_of(again) is None


# --- any history -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """The columns of a schedule from a moment on; the oracle, minute by minute."""

    since: datetime
    enabled: bool = True
    minute: int | None = 0  # of every `hours`-th hour in `zone`; None: an interval from `MONDAY` on
    hours: int = 1
    zone: str = "UTC"
    every: int = 90  # minutes
    expires: datetime | None = None

    def gives(self, moment: datetime) -> bool:
        if not self.enabled or (self.expires and moment >= self.expires):
            return False
        if self.minute is None:
            return moment >= START and (moment - START) % (self.every * MINUTE) == timedelta(0)
        local = moment.astimezone(ZoneInfo(self.zone))
        return local.minute == self.minute and local.hour % self.hours == 0

    def columns(self) -> dict[str, Any]:
        interval, _ = IntervalSchedule.objects.get_or_create(every=self.every, period="minutes")
        cron = {"minute": str(self.minute), "hour": f"*/{self.hours}", "timezone": self.zone}
        crontab = None if self.minute is None else CrontabSchedule.objects.get_or_create(**cron)[0]
        interval = interval if crontab is None else None
        return {"enabled": self.enabled, "crontab": crontab, "interval": interval, "expires": self.expires}


START = MONDAY - 40 * DAY
BEGIN, END = MONDAY - DAY, MONDAY + 4 * DAY
MINUTES = [BEGIN + minute * MINUTE for minute in range(5 * 24 * 60)]


def change(life: Life, since: datetime, chance: random.Random) -> dict[str, Any]:
    return chance.choice(
        [
            {"enabled": not life.enabled},
            {"minute": chance.randrange(60), "hours": chance.choice([1, 2, 5, 8])},
            {"minute": chance.randrange(60), "zone": chance.choice(["Asia/Kathmandu", "Europe/Berlin"])},
            {"minute": None, "every": chance.choice([7, 90, 360])},
            {"expires": chance.choice([None, since + 5 * HOUR, since - HOUR])},
            {},
        ]
    )


def history(chance: random.Random) -> list[Life]:
    lives = [Life(MONDAY + chance.randrange(60) * MINUTE, minute=chance.randrange(60))]
    while lives[-1].since < END - DAY:
        since = (
            lives[-1].since + chance.choice([MINUTE, 59 * MINUTE, 3 * HOUR, 11 * HOUR]) + chance.randrange(90) * MINUTE
        )
        last = lives[-1].__dict__ | {"since": since + chance.choice([timedelta(0), MINUTE / 2])}
        lives.append(Life(**{**last, **change(lives[-1], since, chance)}))
    return lives


def due_in(lives: list[Life]) -> list[datetime]:
    """All due moments from BEGIN to END; those before the schedule existed by its first timing."""
    found: dict[int, list[datetime]] = {}
    for number, life in enumerate(lives):
        until = lives[number + 1].since if number + 1 < len(lives) else END
        found[number] = [moment for moment in MINUTES if life.since < moment <= until and life.gives(moment)]
    first = next((lives[number] for number in found if found[number]), lives[-1])
    return [moment for moment in MINUTES if moment <= lives[0].since and first.gives(moment)] + [
        *chain(*found.values())
    ]


@pytest.mark.parametrize("seed", range(10))
def test_it_judges_any_history_like_the_oracle(at, seed):
    chance = random.Random(seed)
    lives = history(chance)
    at(lives[0].since)
    schedule = make_schedule(start_time=START, policy={"catch_up": "all", "overlap": "allow"}, **lives[0].columns())
    for life in lives[1:]:
        if chance.random() < 0.7:
            at(life.since - MINUTE / 4)
            claim_all()
        at(life.since)
        if chance.random() < 0.5:
            edit(schedule, **life.columns())
        else:
            PeriodicTask.objects.update(**life.columns())
            calendar.sweep()
    at(END - MINUTE / 2)
    calendar.sweep()
    claim_all()
    expected = due_in(lives)
    scheduled = Run.objects.filter(trigger=Trigger.SCHEDULE).order_by("due_at")
    assert {run.due_at for run in scheduled} <= set(expected)
    assert sum(run.count for run in scheduled) == len([moment for moment in expected if moment > lives[0].since])
    before = dict(zip(expected[1:], expected, strict=False))
    for run in [run for run in scheduled if run.count == 1 and run.due_at > expected[0]][::5]:
        assert (window_of(run), window_of(retried(run))) == (before[run.due_at], before[run.due_at])
        Run.objects.filter(pk=run.pk).update(state=State.FAILED)
    for _ in retention.delete_ended(END, {State.SUCCEEDED, State.SKIPPED}):
        pass
    assert all(window_of(run) == before[run.due_at] for run in scheduled.filter(count=1, due_at__gt=expected[0]))
    for _ in ("with the ledger", "by the timings alone"):
        runs = backfill(schedule, expected[1], END - MINUTE / 2)
        assert [run.due_at for run in runs] == expected[1:]
        assert [window_of(run) for run in runs[::3]] == expected[:-1:3]
        Run.objects.all().delete()
