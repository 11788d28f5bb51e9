"""A clock that was wrong, and new rules of a zone: stored due moments follow the timing again, and none runs twice."""

import shutil
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, reset_tzpath

import pytest
from celery import current_app
from django.db import connection
from django_celery_beat.models import ClockedSchedule, IntervalSchedule

from jobs.beat import claim, rescue
from jobs.beat.scheduler import Scheduler
from jobs.models import Policy, Run, State, Step, database_now
from jobs.models.clock import lease
from jobs.rules import crontab, occurrences
from jobs.rules.policies import SKIPPED_BY_HAND, Overlap
from jobs.schedules import calendar, recheck
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))

ZONE = "Europe/Vaduz"  # the clocks of Paris; no other test uses it
WHEEL = [files("tzdata") / "zoneinfo"]


def claim_at(now: datetime) -> list[datetime]:
    """Claim as if the database's clock showed `now`; returns the due moments of the runs to send."""
    moments: list[datetime] = []
    while Policy.objects.due(now).exists():  # one pass has a limited time
        moments += [run.due_at for runs in claim.claim_due(now) for run in runs]
    return moments


def next_due() -> datetime:
    return Policy.objects.get().next_due_at


def accounted(first: datetime, every: timedelta, until: datetime) -> None:
    """Each moment of the grid has exactly one outcome."""
    covered = []
    for run in Run.objects.filter(trigger="schedule").order_by("due_at"):
        covered += [run.due_at + n * every for n in range(run.count)]
        assert covered[-1] == run.last_due_at
    assert covered == [first + n * every for n in range(int((until - first) / every) + 1)]


@pytest.mark.parametrize("every", [2 * SECOND, MINUTE], ids=str)
def test_it_goes_on_after_a_clock_that_was_a_day_ahead(every, caplog):
    schedule = make_schedule(every=every, policy={"overlap": Overlap.ALLOW})
    first = make_due(schedule, ago=2 * every)
    claim_at(database_now())
    ahead = database_now() + DAY
    claim_at(ahead)
    claim_at(ahead + 3 * SECOND)
    assert next_due() > database_now() + 23 * HOUR
    assert recheck.recheck(0) is None
    assert next_due() < database_now() + every
    assert caplog.text.count("computed again: the clock of the database was wrong") == 1
    ran = set(Run.objects.exclude(state=State.SKIPPED).values_list("due_at", flat=True))
    now = first
    while now < ahead + 10 * MINUTE:  # through the day that was decided already
        now += 37 * MINUTE
        again = claim_at(now)
        assert not ran & set(again)
        ran.update(again)
    accounted(first, every, now)
    assert Policy.objects.get().decided_until is None
    assert recheck.recheck(0) is None


def test_it_cuts_a_stretch_of_skipped_moments_at_the_time_of_the_right_clock():
    schedule = make_schedule(every=MINUTE)
    make_run(schedule, State.RUNNING, trigger="manual")
    first = make_due(schedule, ago=2 * MINUTE)
    claim_at(database_now())
    claim_at(database_now() + DAY)
    assert Run.objects.latest("last_due_at").last_due_at > database_now() + 23 * HOUR
    assert recheck.recheck(0) is None
    accounted(first, MINUTE, first + 2 * MINUTE)
    claim_at(first + 7 * MINUTE)
    accounted(first, MINUTE, first + 7 * MINUTE)


def test_it_does_not_wait_for_a_clock_that_has_gone_back_by_an_hour():
    make_schedule(every=2 * SECOND, policy={"remaining_runs": 1000, "overlap": Overlap.ALLOW})
    future = database_now() + HOUR  # what the clock showed when the schedule was made
    timing = Policy.objects.get().timing
    grid = occurrences.from_text(timing).timing.grid_from + HOUR
    text = occurrences.as_text(occurrences.Spec(occurrences.Interval(2 * SECOND, grid)))
    Policy.objects.update(timing=text, timing_since=grid, next_due_at=grid + 2 * SECOND)
    ran = claim_at(future + 10 * SECOND)
    assert ran
    recheck.recheck(0)
    assert database_now() < next_due() <= database_now() + 2 * SECOND
    assert (next_due() - grid) % (2 * SECOND) == timedelta(0)
    left = Policy.objects.get().remaining_runs
    assert left == 1000 - len(ran)
    now = database_now()
    new = [moment for seconds in range(0, 3700, 50) for moment in claim_at(now + seconds * SECOND)]
    assert not set(new) & set(ran)
    assert Policy.objects.get().remaining_runs == left - len(new)


def test_it_leaves_alone_what_follows_from_its_timing(django_assert_num_queries, caplog):
    make_schedule("hourly")
    make_schedule("daily", cron={"minute": "0", "hour": "9", "timezone": ZONE})
    make_schedule("off", enabled=False)
    make_schedule("later", start_time=database_now() + DAY)
    make_schedule("over", expires=database_now() - HOUR)
    make_due(make_schedule("owed"))
    held = make_schedule("held back", every=MINUTE)
    make_due(held, ago=HOUR)
    Policy.objects.filter(schedule=held).pause(by="ada", catch_up="all")
    Policy.objects.filter(schedule=held).update(paused_at=database_now() - 2 * HOUR)
    edited = make_schedule("edited", every=HOUR)
    make_due(edited, ago=SECOND)
    edited.expires = database_now() + DAY
    edited.save()
    claim_at(database_now() - SECOND)
    before = list(Policy.objects.order_by("pk").values())
    with django_assert_num_queries(2 + (connection.vendor != "sqlite")):
        assert recheck.recheck(0) is None
    assert list(Policy.objects.order_by("pk").values()) == before
    assert not caplog.records


def test_it_rechecks_schedules_slice_by_slice(monkeypatch):
    monkeypatch.setattr(recheck, "SLICE", 2)
    schedules = [make_schedule(f"{n}") for n in range(5)]
    Policy.objects.update(next_due_at=database_now() + DAY)
    after, turns = 0, 0
    while after is not None:
        after, turns = recheck.recheck(after), turns + 1
    assert turns == 3
    assert not Policy.objects.filter(next_due_at__gt=database_now() + HOUR).exists()
    assert len(schedules) == 5


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_with_all_schedules_if_this_machine_lacks_the_zone_of_one(redis):
    lacking = make_schedule("lacking", cron={"minute": "5", "timezone": ZONE})
    timing = Policy.objects.get(schedule=lacking).timing.replace(ZONE, "Europe/Nowhere")
    Policy.objects.filter(schedule=lacking).update(timing=timing)
    make_due(make_schedule("good"))
    Scheduler(app=current_app).tick()
    assert Run.objects.get().schedule_name == "good"


def test_it_cuts_a_stretch_that_spans_several_timings():
    schedule = make_schedule(every=MINUTE, headers="[]")
    first = make_due(schedule, ago=20 * MINUTE)
    claim_at(first + 10 * MINUTE + SECOND)
    schedule.interval = IntervalSchedule.objects.create(every=30, period="seconds")
    schedule.save()
    claim_at(database_now())
    before = sum(Run.objects.values_list("count", flat=True))
    claim_at(database_now() + DAY)
    assert Run.objects.get().count > 1000
    recheck.recheck(0)
    assert before <= Run.objects.get().count <= before + 1
    assert Run.objects.get().last_due_at <= database_now()


def test_it_corrects_flagged_schedules_and_moments_that_others_should_decide():
    flagged = make_schedule("flagged", headers="[]")
    make_due(flagged)
    unknown = make_schedule("unknown", task="tests.gone")
    make_due(unknown)
    claim_at(database_now() + DAY)
    ahead = database_now() + DAY
    Policy.objects.filter(schedule=unknown).update(owed_from=ahead, next_due_at=ahead)
    recheck.recheck(0)
    assert all(each <= database_now() + HOUR for each in Policy.objects.values_list("next_due_at", flat=True))
    assert not Policy.objects.exclude(owed_from=None).exists()


def test_it_gives_a_choice_to_skip_back_if_only_a_wrong_clock_used_it():
    schedule = make_schedule(every=HOUR, policy={"overlap": Overlap.ALLOW})
    Policy.objects.update(skip_next=3, skip_from=database_now())
    claim_at(database_now() + 10 * HOUR)
    assert Policy.objects.get().skip_next == 0
    recheck.recheck(0)
    assert Policy.objects.get().skip_next == 3
    first = next_due()
    assert claim_at(first + 3 * HOUR) == [first + 3 * HOUR]
    assert schedule.runs.filter(reason=SKIPPED_BY_HAND).get().count == 3


def test_it_decides_the_moments_before_an_edit_that_was_made_while_the_clock_was_ahead(monkeypatch):
    schedule = make_schedule(every=MINUTE, policy={"overlap": Overlap.ALLOW})
    first = make_due(schedule, ago=2 * HOUR)
    now = database_now()
    claim_at(now - HOUR)
    claim_at(now + DAY)
    monkeypatch.setattr(calendar, "database_now", lambda: now + DAY + SECOND)
    schedule.refresh_from_db()
    schedule.expires = now + 300 * DAY
    schedule.save()
    monkeypatch.undo()
    claim_at(now + DAY + 2 * SECOND)
    recheck.recheck(0)
    until = database_now() + 5 * MINUTE
    claim_at(until)
    moments = [run.due_at + n * MINUTE for run in Run.objects.filter(due_at__lte=until) for n in range(run.count)]
    assert min(moments) == first
    assert all(after - before == MINUTE for before, after in pairwise(sorted(moments)))


def test_it_revives_a_one_off_that_a_clock_ahead_skipped():
    at = ClockedSchedule.objects.create(clocked_time=database_now() + DAY)
    schedule = make_schedule(clocked=at, one_off=True)
    assert claim_at(database_now() + 30 * DAY) == []
    assert Run.objects.get().reason.startswith("missed")
    recheck.recheck(0)
    schedule.refresh_from_db()
    assert (schedule.enabled, next_due(), Run.objects.count()) == (True, at.clocked_time, 0)
    assert claim_at(at.clocked_time + SECOND) == [at.clocked_time]


def test_it_shortens_leases_and_patience_that_began_under_a_clock_ahead():
    tomorrow = database_now() + DAY
    running = make_run(state=State.RUNNING, lease_until=tomorrow)
    step = Step.objects.create(
        id="a", run=running, attempt=1, task="tests.nothing", state=Step.State.RUNNING, lease_until=tomorrow
    )
    queued = make_run(state=State.QUEUED, queued_at=tomorrow, not_before=tomorrow)
    retried = make_run(not_before=tomorrow, attempt=2)
    rescue.shorten_waits()
    for row in (running, step, queued, retried):
        row.refresh_from_db()
    assert max(running.lease_until, step.lease_until) <= database_now() + lease()
    assert queued.not_before <= database_now()
    assert retried.not_before == tomorrow  # it may wait so long


@contextmanager
def rules(folder: Path, like: str):
    """Let a zone have the rules of another zone, as a new version of tzdata may say."""

    def forget() -> None:
        ZoneInfo.clear_cache(only_keys=[ZONE])  # other fields compare zones by identity
        for cached in (crontab.calendar_of, occurrences.from_text):
            cached.cache_clear()

    before = TZPATH
    source = next(path for path in (Path(str(each)) / like for each in (*before, *WHEEL)) if path.exists())
    (folder / "Europe").mkdir(exist_ok=True)
    shutil.copy(source, folder / ZONE)
    reset_tzpath([str(folder), *before])
    forget()
    try:
        yield
    finally:
        reset_tzpath(before)
        forget()


@pytest.mark.parametrize(("like", "hour"), [("Europe/London", 10), ("Europe/Helsinki", 8)])
def test_it_moves_a_due_moment_to_the_new_rules_of_its_zone(tmp_path, like, hour):
    make_schedule(cron={"minute": "0", "hour": "9", "timezone": ZONE})
    before = next_due()
    with rules(tmp_path, like):
        recheck.recheck(0)
        moved = next_due()
        assert moved.astimezone(ZoneInfo(ZONE)).hour == 9
    assert moved.astimezone(ZoneInfo(ZONE)).hour == hour
    assert abs(moved - before) in (HOUR, 23 * HOUR, 25 * HOUR)
    assert not Run.objects.exists()


def test_it_owes_a_moment_that_was_due_by_the_new_rules_before_beat_had_them(tmp_path):
    soon = database_now().astimezone(ZoneInfo(ZONE)) + 30 * MINUTE
    make_schedule(cron={"minute": str(soon.minute), "hour": str(soon.hour), "timezone": ZONE})
    Policy.objects.update(timing_since=database_now() - 2 * HOUR)
    owed = soon.replace(second=0, microsecond=0) - HOUR
    with rules(tmp_path, "Europe/Helsinki"):
        recheck.recheck(0)
        assert next_due() == owed
        assert claim_at(database_now()) == [owed]
        recheck.recheck(0)
        assert next_due() - owed in (23 * HOUR, DAY, 25 * HOUR)


def test_it_drops_an_owed_moment_that_is_none_by_the_new_rules(tmp_path):
    past = database_now().astimezone(ZoneInfo(ZONE)) - 10 * MINUTE
    make_schedule(cron={"minute": str(past.minute), "hour": str(past.hour), "timezone": ZONE})
    past = past.replace(second=0, microsecond=0)
    Policy.objects.update(next_due_at=past, timing_since=database_now() - HOUR)
    recheck.recheck(0)
    assert next_due() == past
    with rules(tmp_path, "Europe/London"):
        recheck.recheck(0)
        assert next_due() == past + HOUR
