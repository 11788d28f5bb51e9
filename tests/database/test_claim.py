"""Due moments become runs: each exactly once with any number of beats, and no bad row stops another schedule."""

import json
import threading
from collections import Counter
from datetime import timedelta
from itertools import pairwise

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import ClockedSchedule, IntervalSchedule, PeriodicTask

from jobs.beat import claim
from jobs.ledger import outcomes
from jobs.messages.arguments import find_task
from jobs.models import Policy, Run, State, Trigger, database_now
from jobs.rules.errors import Invalid
from jobs.rules.policies import CatchUp, Overlap
from jobs.schedules import calendar
from tests.making import make_due, make_run, make_schedule, run_now
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


def claim_all() -> list[Run]:
    """Claim all due moments; returns the rows of the runs to send."""
    return [Run.objects.get(id=run.id) for runs in claim.claim_due() for run in runs]


def claim_to_the_end() -> list[Run]:
    """As ticks one after the other do, where one would take too long."""
    runs = []
    while Policy.objects.due(database_now()).exists():
        runs += claim_all()
    return runs


def test_it_records_a_due_moment_and_moves_on_along_the_grid():
    schedule = make_schedule(every=HOUR, task="tests.note", args=["/tmp/x"], queue="slow", priority=3)
    due_at = make_due(schedule)
    (run,) = claim_all()
    row = Run.objects.get()
    assert row == run
    assert (row.schedule, row.schedule_name, row.task, row.args, row.kwargs) == (
        *(schedule, "it", "tests.note", ["/tmp/x"]),
        {},
    )
    assert (row.queue, row.priority, row.trigger, row.state) == ("slow", 3, Trigger.SCHEDULE, State.WAITING)
    assert (row.due_at, row.last_due_at, row.count) == (due_at, due_at, 1)
    assert Policy.objects.get().next_due_at == due_at + HOUR


def test_it_gives_each_run_of_a_batch_its_own_arguments_even_if_python_finds_them_equal():
    for value in (True, 1, 1.0):
        make_due(make_schedule(json.dumps(value), kwargs={"value": value}))
    assert all(json.dumps(run.kwargs["value"]) == run.schedule_name for run in claim_all())


def test_it_claims_nothing_that_is_not_due():
    make_schedule()
    assert list(claim.claim_due()) == []


def test_it_claims_a_moment_once_however_often_it_is_called():
    schedule = make_schedule()
    due_at = make_due(schedule)
    assert len(claim_all()) == 1
    assert claim_all() == []
    Policy.objects.update(next_due_at=due_at)  # as if beat had died before it moved the schedule on
    Run.objects.update(state=State.SUCCEEDED, finished_at=database_now())
    claim_all()
    assert Run.objects.count() == 1
    assert Run.objects.get().state == State.SUCCEEDED


def test_it_updates_the_counters_of_django_celery_beat():
    schedule = make_schedule()
    make_due(schedule)
    claim_all()
    schedule.refresh_from_db()
    assert schedule.total_run_count == 1
    assert schedule.last_run_at is not None
    assert calendar.sweep() == 0


def test_it_accounts_for_every_moment_of_an_outage():
    schedule = make_schedule(every=MINUTE)
    first = make_due(schedule, ago=HOUR + 30 * SECOND)
    assert len(claim_all()) == 2 - 1  # the moment of this minute; policy: skip overlaps, run the latest
    rows = list(Run.objects.order_by("due_at"))
    assert sum(row.count for row in rows) == 61
    assert rows[0].due_at == first
    assert rows[-1].last_due_at == first + HOUR
    assert Policy.objects.get().next_due_at == first + HOUR + MINUTE
    assert {row.state for row in rows} == {State.SKIPPED, State.WAITING}
    assert rows[0].reason.startswith("missed: no beat claimed this within 60 seconds")


def test_it_accounts_for_an_outage_that_needs_several_passes(monkeypatch):
    monkeypatch.setattr(claim, "MOMENTS", 1000)
    schedule = make_schedule(every=SECOND, policy={"overlap": Overlap.ALLOW})
    first = make_due(schedule, ago=timedelta(seconds=3599.5))
    runs = claim_to_the_end()
    rows = list(Run.objects.order_by("due_at"))
    moments = sum(row.count for row in rows)
    assert 3600 <= moments <= (database_now() - first) // SECOND + 1
    assert rows[-1].last_due_at == first + (moments - 1) * SECOND
    assert len(runs) <= 61 + moments - 3600
    assert len(rows) <= len(runs) + 4


def test_it_runs_all_missed_moments_if_the_policy_says_so():
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW, "catch_up": CatchUp.ALL})
    first = make_due(schedule, ago=HOUR)
    assert [run.due_at for run in claim_all()] == [first + n * 10 * MINUTE for n in range(7)]


def test_it_skips_with_the_reason_while_an_earlier_run_is_unfinished():
    schedule = make_schedule()
    earlier = make_run(schedule, state=State.RUNNING, due_at=database_now() - HOUR)
    make_due(schedule)
    assert claim_all() == []
    row = Run.objects.exclude(id=earlier.id).get()
    assert row.state == State.SKIPPED
    assert row.reason.endswith("was still running on celery@here (1); policy: skip")
    assert row.finished_at is not None


def test_it_reads_no_earlier_runs_if_runs_may_overlap():
    schedule = make_schedule(policy={"overlap": Overlap.ALLOW})
    make_run(schedule, state=State.QUEUED)
    make_due(schedule)
    with CaptureQueriesContext(connection) as asked:
        list(claim.claim_due())
    assert not [query["sql"] for query in asked if 'FROM "jobs_run"' in query["sql"]]
    assert Run.objects.count() == 2


def test_it_keeps_moments_skipped_for_one_reason_in_one_row_over_many_passes():
    schedule = make_schedule(every=10 * SECOND)
    blocking = make_run(schedule, state=State.RUNNING, due_at=database_now() - HOUR)
    first = make_due(schedule, ago=35 * SECOND)
    claim_all()
    make_due(schedule)  # the next pass
    claim_all()
    stretch = Run.objects.exclude(id=blocking.id).get()
    assert (stretch.state, stretch.due_at, stretch.count) == (State.SKIPPED, first, 5)
    assert stretch.last_due_at == Policy.objects.get().next_due_at - 10 * SECOND
    outcomes.finish(blocking.id, 1, State.SUCCEEDED)
    make_due(schedule)
    assert len(claim_all()) == 1
    make_due(schedule)
    assert claim_all() == []
    assert Run.objects.filter(state=State.SKIPPED).count() == 2


def test_it_ignores_unfinished_runs_of_other_schedules():
    make_run(make_schedule("other"), state=State.RUNNING)
    make_due(make_schedule("this"))
    assert len(claim_all()) == 1


BAD_ROWS = {
    "headers that are a list": {"headers": "[]"},
    "headers that are null": {"headers": "null"},
    "headers that are a text": {"headers": '"x"'},
    "headers that are not JSON": {"headers": "{"},
    "headers that name another task": {"headers": '{"task": "tests.die"}'},
    "a header that replaces a method of Celery's": {"headers": '{"_get_custom_headers": 1}'},
    "a header that sends a copy elsewhere": {"headers": '{"CC": ["unacked"]}'},
    "a queue that is a key of kombu's": {"queue": "unacked_index"},
    "a queue that is an exchange's key": {"queue": "_kombu.binding.celery"},
    "a queue of remote control": {"queue": "celery@here.celery.pidbox"},
    "a queue with a priority": {"queue": "celery\x06\x163"},
    "a queue that is a key of the cache": {"queue": "punctual:1:value"},
    "an exchange of remote control": {"exchange": "celery.pidbox"},
    "arguments that are not JSON": {"args": "[1"},
    "arguments that are no list": {"args": "{}"},
    "keywords that are no object": {"kwargs": "[]"},
    "a NUL in the arguments": {"args": '["\\u0000"]'},
    "half a surrogate pair": {"args": '["\\ud800"]'},
    "not a number": {"args": "[NaN]"},
    "infinity in disguise": {"args": "[1e999]"},
    "a duplicate key": {"kwargs": '{"a": 1, "a": 2}'},
    "arguments without end": {"args": "[" * 100_000},
    "arguments nested too deeply": {"args": "[" * 30 + "]" * 30},
    "arguments that are too long": {"args": '["' + "x" * 20_000 + '"]'},
    "arguments that do not fit": {"task": "tests.note", "kwargs": '{"nonsense": 1}'},
    "a task that does not exist": {"task": "tests.nothin"},
    "a task of Celery's that runs others": {"task": "celery.starmap"},
    "an empty task": {"task": ""},
}


@pytest.mark.parametrize("columns", BAD_ROWS.values(), ids=BAD_ROWS)
def test_it_skips_and_flags_a_bad_row_and_runs_all_others(columns):
    bad, good = make_schedule("bad"), make_schedule("good")
    PeriodicTask.objects.filter(pk=bad.pk).update(**columns)
    make_due(bad, ago=61 * SECOND)  # until then, it leaves a job that it does not know to other beats
    make_due(good)
    assert [run.schedule for run in claim_all()] == [good]
    row, policy = Run.objects.get(schedule=bad), Policy.objects.get(schedule=bad)
    assert row.state == State.SKIPPED
    assert policy.invalid_reason
    assert row.reason == f"invalid: {policy.invalid_reason}"
    assert policy.next_due_at > database_now()
    bad.refresh_from_db()
    assert (bad.total_run_count, bad.last_run_at) == (0, None)


@pytest.mark.parametrize(
    "options", [["x"], "x", {"queue": "unacked"}, {"headers": {"task": "tests.die"}}, {"task_id": "1"}]
)
def test_it_skips_and_flags_a_schedule_whose_policy_stores_other_options(options):
    bad, good = make_schedule("bad", policy={"options": options}), make_schedule("good")
    make_due(bad)
    make_due(good)
    assert [run.schedule for run in claim_all()] == [good]
    assert "serializer" in Policy.objects.get(schedule=bad).invalid_reason


def test_it_flags_a_schedule_whose_job_names_a_queue_of_kombu_s(monkeypatch):
    schedule = make_schedule()
    monkeypatch.setattr(find_task("tests.nothing"), "queue", "unacked", raising=False)
    make_due(schedule)
    assert claim_all() == []
    assert "'unacked'" in Policy.objects.get().invalid_reason


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        (IntervalSchedule, {"every": 10**9, "period": "days"}),
        (IntervalSchedule, {"every": 1, "period": "microseconds"}),
    ],
)
def test_it_flags_a_timing_that_becomes_invalid_and_runs_all_others(model, columns):
    bad, good = make_schedule("bad"), make_schedule("good", every=MINUTE)
    make_due(bad, ago=SECOND)
    make_due(good)
    model.objects.filter(pk=bad.interval_id).update(**columns)
    calendar.sweep()
    assert [run.schedule for run in claim_all()] == [bad, good]  # a moment that was due before the change still is
    policy = Policy.objects.get(schedule=bad)
    assert policy.next_due_at is None
    assert policy.invalid_reason


def test_it_flags_a_schedule_without_any_timing_and_runs_all_others():
    bad, good = make_schedule("bad"), make_schedule("good")
    PeriodicTask.objects.filter(pk=bad.pk).update(interval=None)
    calendar.sweep()
    make_due(good)
    assert [run.schedule for run in claim_all()] == [good]
    assert "exactly one" in Policy.objects.get(schedule=bad).invalid_reason


def test_it_flags_an_expiry_after_the_year_9999_and_runs_all_others():
    bad, good = make_schedule("bad"), make_schedule("good")
    seconds = 10**15 if connection.vendor == "sqlite" else 2**31 - 1  # the maximum of the column
    PeriodicTask.objects.filter(pk=bad.pk).update(expire_seconds=seconds)
    make_due(bad, ago=SECOND)
    make_due(good)
    expected = {good} if connection.vendor == "sqlite" else {bad, good}
    assert {run.schedule for run in claim_all()} == expected
    assert Run.objects.count() == 2


def test_it_clears_the_flag_when_the_row_is_corrected():
    schedule = make_schedule(task="tests.nothin")
    make_due(schedule, ago=61 * SECOND)
    claim_all()
    assert "Did you mean 'tests.nothing'?" in Policy.objects.get().invalid_reason
    PeriodicTask.objects.update(task="tests.nothing")
    make_due(schedule)
    assert len(claim_all()) == 1
    assert Policy.objects.get().invalid_reason == ""


def test_it_leaves_a_moment_on_time_to_a_beat_that_knows_the_job():
    schedule = make_schedule(task="tests.from_a_newer_version")
    first = make_due(schedule, ago=2 * SECOND)
    assert claim_all() == []
    assert not Run.objects.exists()
    policy = Policy.objects.get()
    assert policy.invalid_reason.startswith("No job is named 'tests.from_a_newer_version'")
    assert (
        policy.next_due_at <= database_now() + claim.FIRST_LOOK + 2 * SECOND
    )  # this beat asks again, and the others do
    PeriodicTask.objects.update(task="tests.nothing")  # as the newer code sees it
    (runs,) = claim.claim_due(policy.next_due_at)
    assert [run.due_at for run in runs] == [first]
    policy.refresh_from_db()
    assert (policy.invalid_reason, policy.owed_from, policy.next_due_at) == ("", None, first + HOUR)


def test_it_skips_each_moment_of_a_job_that_no_beat_knows():
    schedule = make_schedule(task="tests.from_a_newer_version", every=MINUTE)
    first = make_due(schedule)
    for seconds in range(200):
        assert list(claim.claim_due(first + seconds * SECOND)) == []
    row = Run.objects.get()
    assert (row.due_at, row.count, row.state) == (first, 3, State.SKIPPED)
    assert row.reason.startswith("invalid: No job is named")


def test_it_decides_few_moments_in_one_transaction_and_all_in_the_end(monkeypatch):
    monkeypatch.setattr(claim, "MOMENTS", 100)
    monkeypatch.setattr(claim, "BATCH", 5)
    schedules = [make_schedule(f"{n}", every=MINUTE) for n in range(10)]
    for schedule in schedules:
        make_due(schedule, ago=HOUR)
    make_due(on_time := make_schedule("on time"))
    sizes = []
    batch = claim._claim_batch
    monkeypatch.setattr(claim, "_claim_batch", lambda *args: sizes.append(moments()) or batch(*args))

    def moments() -> int:
        return sum(Run.objects.values_list("count", flat=True))

    runs = claim_to_the_end()
    sizes.append(moments())
    assert max(after - before for before, after in pairwise(sizes)) <= 100
    assert runs[0].schedule_id == on_time.pk  # the long debts of others do not delay it
    assert moments() == 10 * 61 + 1
    assert Counter(run.schedule_id for run in runs) == dict.fromkeys([each.pk for each in [*schedules, on_time]], 1)


@pytest.mark.parametrize("overlap", [Overlap.ALLOW, Overlap.SKIP])
def test_it_records_all_moments_of_a_long_outage_though_the_schedule_was_disabled_then(monkeypatch, overlap):
    monkeypatch.setattr(claim, "MOMENTS", 1000)
    schedule = make_schedule(every=SECOND, policy={"overlap": overlap})
    first = make_due(schedule, ago=3599.5 * SECOND)
    schedule.enabled = False
    schedule.save()
    off = Policy.objects.get().timing_since
    assert claim_to_the_end() == []
    row = Run.objects.get()
    assert row.reason == "disabled before it could start"
    assert (row.due_at, row.last_due_at) == (first, first + (off - first) // SECOND * SECOND)
    assert row.count == (off - first) // SECOND + 1
    assert Policy.objects.get().next_due_at is None


def test_it_runs_the_latest_missed_moment_though_a_pause_without_runs_followed_in_later_passes(monkeypatch):
    monkeypatch.setattr(claim, "MOMENTS", 10)
    schedule = make_schedule(every=MINUTE)
    first = make_due(schedule, ago=2 * HOUR + 5 * SECOND)
    now = database_now()
    pause = {"paused_at": now - HOUR, "paused_until": now, "paused_by": "ada", "pause_catch_up": CatchUp.NONE}
    Policy.objects.update(**pause)
    assert [run.due_at for run in claim_to_the_end()] == [first + HOUR]
    rows = Run.objects.order_by("due_at").values_list("state", "count")
    assert list(rows) == [(State.SKIPPED, 60), (State.WAITING, 1), (State.SKIPPED, 60)]


def clocked(ago: timedelta, **options) -> PeriodicTask:
    """A one-off that was due a while ago, and saved only now."""
    at = ClockedSchedule.objects.create(clocked_time=database_now() - ago)
    return make_schedule(clocked=at, one_off=True, **options)


def is_off(schedule: PeriodicTask) -> bool:
    schedule.refresh_from_db()
    return not schedule.enabled and Policy.objects.get(schedule=schedule).next_due_at is None


@pytest.mark.parametrize("ago", [SECOND, 30 * MINUTE], ids=str)
def test_it_runs_a_one_off_that_was_saved_too_late(ago):
    schedule = clocked(ago)
    (run,) = claim_all()
    assert run.due_at == schedule.clocked.clocked_time
    assert is_off(schedule)
    calendar.sweep()
    assert claim_all() == []


def test_it_runs_one_offs_that_were_created_in_bulk_and_are_over_when_beat_finds_them():
    ats = [ClockedSchedule(clocked_time=database_now() + n * timedelta(milliseconds=1)) for n in range(40)]
    ats = ClockedSchedule.objects.bulk_create(ats)
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"{at.pk}", task="tests.nothing", clocked=at, one_off=True) for at in ats
    )
    calendar.find_changes()
    claimed = [run for runs in claim.claim_due(database_now() + SECOND) for run in runs]
    assert len(claimed) == 40
    assert not PeriodicTask.objects.filter(enabled=True).exists()


@pytest.mark.parametrize(
    ("ago", "policy", "why"),
    [
        (49 * HOUR, {}, "missed: no beat claimed this within 60 seconds; catch-up: latest, up to 1 day old"),
        (2 * MINUTE, {"catch_up": CatchUp.NONE}, "missed: no beat claimed this within 60 seconds; catch-up: none"),
    ],
)
def test_it_records_why_a_one_off_does_not_run_and_disables_it(ago, policy, why):
    schedule = clocked(ago, enabled=False)
    Policy.objects.all().delete()
    Policy.objects.create(schedule=schedule, **policy)
    PeriodicTask.objects.update(enabled=True)
    calendar.sweep()
    assert claim_all() == []
    run = Run.objects.get()
    assert (run.state, run.reason) == (State.SKIPPED, why)
    assert is_off(schedule)


def _by_enabling(schedule: PeriodicTask) -> None:
    PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=True)


def _by_a_new_time_long_over(schedule: PeriodicTask) -> None:
    ClockedSchedule.objects.update(clocked_time=database_now() - HOUR)
    _by_enabling(schedule)


@pytest.mark.parametrize("edit", [_by_enabling, _by_a_new_time_long_over])
def test_it_runs_no_one_off_whose_moment_was_over_when_it_was_edited_and_says_so(edit):
    schedule = clocked(30 * SECOND, enabled=False)
    edit(schedule)
    calendar.sweep()
    assert claim_all() == []
    assert Run.objects.get().reason == "late: this moment was over when the schedule was enabled or changed"
    assert is_off(schedule)


def test_it_runs_a_one_off_again_whose_moment_is_set_to_now():
    schedule = clocked(HOUR)
    Policy.objects.update(overlap=Overlap.ALLOW)
    assert len(claim_all()) == 1
    schedule.clocked = ClockedSchedule.objects.create(clocked_time=database_now())
    schedule.enabled = True
    schedule.save()
    assert [run.due_at for run in claim_all()] == [schedule.clocked.clocked_time]
    assert is_off(schedule)


@pytest.mark.parametrize("one_off", [True, False])
def test_it_enables_no_one_off_a_second_time_by_itself(one_off):
    schedule = clocked(SECOND)
    PeriodicTask.objects.update(one_off=one_off)
    assert len(claim_all()) == 1
    assert is_off(schedule)
    PeriodicTask.objects.update(enabled=True)
    calendar.sweep()
    assert claim_all() == []
    assert Run.objects.count() == 1
    assert is_off(schedule)


def test_it_runs_a_one_off_that_was_put_off_while_its_moment_was_owed_at_both_moments():
    schedule = clocked(2 * SECOND, policy={"overlap": Overlap.ALLOW})
    first, later = schedule.clocked.clocked_time, database_now() + HOUR
    schedule.clocked = ClockedSchedule.objects.create(clocked_time=later)
    schedule.save()
    assert [run.due_at for run in claim_all()] == [first]
    assert [run.due_at for runs in claim.claim_due(later) for run in runs] == [later]
    assert is_off(schedule)


@pytest.mark.parametrize("bound", ["expires", "start_time"])
def test_it_flags_a_one_off_whose_moment_is_out_of_its_bounds(bound):
    clocked(SECOND, **{bound: database_now() + HOUR * (1 if bound == "start_time" else -1)})
    assert "would never run" in Policy.objects.get().invalid_reason
    assert claim_all() == []


def test_it_runs_all_moments_of_a_pause_though_an_outage_of_many_passes_followed(monkeypatch):
    monkeypatch.setattr(claim, "MOMENTS", 20)
    schedule = make_schedule(every=MINUTE, policy={"overlap": Overlap.ALLOW, "catch_up_cap": 15})
    first = make_due(schedule, ago=3 * HOUR)
    pause = {"paused_at": first, "paused_until": first + 10 * MINUTE, "pause_catch_up": CatchUp.ALL}
    Policy.objects.update(**pause)
    runs = [run.due_at for run in claim_to_the_end()]
    assert runs[:10] == [first + n * MINUTE for n in range(10)]
    assert runs[10:] == [first + 180 * MINUTE]


def test_it_cancels_nothing_for_a_moment_that_has_its_run():
    schedule = clocked(SECOND)
    Policy.objects.update(overlap=Overlap.CANCEL_PREVIOUS)
    (run,) = claim_all()
    Run.objects.update(state=State.RUNNING, lease_until=database_now() + HOUR)
    PeriodicTask.objects.update(enabled=True)
    calendar.sweep()
    assert claim_all() == []
    run.refresh_from_db()
    assert (run.state, run.cancel_reason) == (State.RUNNING, "")
    assert is_off(schedule)


def test_it_decides_no_moment_again_that_was_claimed_before_a_long_transaction_with_a_change_was_committed():
    schedule = make_schedule(every=MINUTE, policy={"overlap": Overlap.SKIP})
    make_run(schedule, State.RUNNING, trigger=Trigger.MANUAL)
    first = make_due(schedule, ago=10 * MINUTE)
    claim_to_the_end()
    PeriodicTask.objects.update(expires=first + HOUR)  # as if saved long ago, in a transaction that ends now
    Policy.objects.update(stale_since=first + 30 * SECOND)
    calendar.compute_marked()
    claim_to_the_end()
    rows = Run.objects.filter(trigger=Trigger.SCHEDULE).order_by("due_at").values_list("due_at", "last_due_at", "count")
    assert sum(count for *_, count in rows) == 11
    assert all(end < due for (_, end, _), (due, *_) in pairwise(rows))


def test_it_runs_each_moment_of_a_one_off_that_is_set_to_now_again_and_again():
    schedule = clocked(timedelta(0), policy={"overlap": Overlap.ALLOW})
    first = schedule.clocked.clocked_time
    schedule.clocked = ClockedSchedule.objects.create(clocked_time=database_now())
    schedule.save()
    assert [run.due_at for run in claim_to_the_end()] == [first, schedule.clocked.clocked_time]
    assert list(Run.objects.order_by("due_at").values_list("due_at", flat=True)) == [
        first,
        schedule.clocked.clocked_time,
    ]
    assert is_off(schedule)


def test_it_looks_seldom_at_moments_that_it_leaves_to_others():
    make_schedule(task="tests.from_a_newer_version", every=MINUTE)
    first = Policy.objects.get().next_due_at
    looks, now = [], first
    while not Run.objects.exists():
        list(claim.claim_due(now))
        looks.append(now)
        now = Policy.objects.get().next_due_at
    assert len(looks) <= 12
    assert looks[-1] - first <= timedelta(seconds=75)


def test_it_leaves_moments_to_others_after_a_pause_without_turning_in_circles(monkeypatch):
    schedule = make_schedule(task="tests.from_a_newer_version", every=SECOND)
    make_due(schedule, ago=2 * MINUTE)
    now = database_now()
    pause = {"paused_at": now - HOUR, "paused_until": now - 30 * SECOND, "pause_catch_up": CatchUp.ALL}
    Policy.objects.update(**pause)
    batches = []
    batch = claim._claim_batch
    monkeypatch.setattr(claim, "_claim_batch", lambda *args: batches.append(1) or batch(*args))
    list(claim.claim_due(now))
    assert len(batches) <= 3


def test_it_claims_schedules_one_by_one_if_their_batch_cannot_be_stored():
    bad, good = make_schedule("bad"), make_schedule("good")
    make_due(bad, ago=SECOND)
    make_due(good)
    Policy.objects.filter(schedule=bad).update(timing_since=database_now())
    with connection.cursor() as cursor:  # one run violates a constraint, which no form checks
        cursor.execute("ALTER TABLE jobs_run ADD CONSTRAINT not_bad CHECK (schedule_name <> 'bad')") if (
            connection.vendor == "postgresql"
        ) else cursor.execute(
            "CREATE TRIGGER not_bad BEFORE INSERT ON jobs_run WHEN NEW.schedule_name = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    assert [run.schedule for run in claim_all()] == [good]
    assert Policy.objects.get(schedule=bad).invalid_reason.startswith("Its run cannot be stored")
    assert Run.objects.get(schedule=bad).reason.startswith("invalid: Its run cannot be stored")


def test_it_skips_the_due_moment_of_a_schedule_that_was_disabled():
    schedule = make_schedule()
    make_due(schedule)
    PeriodicTask.objects.update(enabled=False)
    assert claim_all() == []
    assert Run.objects.get().reason == "disabled before it could start"
    assert Policy.objects.get().next_due_at is None


@pytest.mark.parametrize("kind", ["interval", "clocked"])
def test_it_runs_a_one_off_schedule_once_and_disables_it(kind):
    timing = {}
    if kind == "clocked":
        timing["clocked"] = ClockedSchedule.objects.create(clocked_time=database_now() - SECOND)
    schedule = make_schedule(one_off=True, **timing)
    if kind == "interval":
        make_due(schedule)
    assert len(claim_all()) == 1
    calendar.sweep()
    schedule.refresh_from_db()
    assert not schedule.enabled
    assert Policy.objects.get().next_due_at is None
    assert claim_all() == []


def test_it_makes_a_limited_schedule_due_again_that_is_enabled_before_the_next_sweep():
    schedule = make_schedule(every=timedelta(hours=1), policy={"remaining_runs": 1})
    make_due(schedule)
    list(claim.claim_due())
    Policy.objects.update(remaining_runs=5)
    PeriodicTask.objects.filter(pk=schedule.pk).update(enabled=True)
    calendar.sweep()
    assert Policy.objects.get().next_due_at > database_now()


def test_it_lets_a_run_expire_after_the_schedule_s_expire_seconds():
    schedule = make_schedule(expire_seconds=90)
    make_due(schedule, ago=30 * SECOND)
    before = database_now()
    (run,) = claim_all()
    assert before <= run.expires_at - 90 * SECOND <= database_now()


def test_it_passes_on_the_message_options_of_the_schedule():
    schedule = make_schedule(
        headers='{"x-team": "billing"}', routing_key="r.k", policy={"time_limit": 9, "keep_result": True}
    )
    make_due(schedule)
    (run,) = claim_all()
    assert run.options == {
        "headers": {"x-team": "billing"},
        "routing_key": "r.k",
        "time_limit": 9,
        "ignore_result": False,
    }


def test_it_accepts_a_manual_request_besides_the_schedule_s_own_runs():
    schedule = make_schedule(enabled=False)
    run = run_now(schedule)
    assert (run.trigger, run.actor, run.state, run.schedule) == (Trigger.CODE, "ada", State.WAITING, schedule)
    PeriodicTask.objects.update(args="{}")
    schedule.refresh_from_db()
    with pytest.raises(Invalid, match="Positional arguments must be a JSON list"):
        run_now(schedule)
    assert Run.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_it_claims_each_moment_once_with_many_claimers_at_once():
    for number in range(60):
        make_due(make_schedule(f"s{number}", every=HOUR))
    barrier, claimed = threading.Barrier(4), []

    def claimer() -> None:
        barrier.wait()
        claimed.extend(claim_all())
        connection.close()

    threads = [threading.Thread(target=claimer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claimed.extend(claim_all())
    assert sorted(run.schedule_name for run in claimed) == sorted(f"s{n}" for n in range(60))
    assert Run.objects.count() == 60


@pytest.mark.django_db(transaction=True)
def test_it_skips_a_schedule_that_another_transaction_has_locked():
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time.")
    edited, other = make_schedule("edited"), make_schedule("other")
    make_due(edited)
    make_due(other)
    claimed: list[Run] = []

    def claimer() -> None:
        claimed.extend(claim_all())
        connection.close()

    with transaction.atomic():
        PeriodicTask.objects.filter(pk=edited.pk).update(description="in the middle of it")
        thread = threading.Thread(target=claimer)
        thread.start()
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert [run.schedule for run in claimed] == [other]
    assert [run.schedule for run in claim_all()] == [edited]
