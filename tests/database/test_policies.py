"""How a schedule's policy decides about its due moments, from the policy's columns to the rows of the ledger."""

import threading
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection
from django_celery_beat.models import PeriodicTask

from jobs.beat import claim, release
from jobs.beat.rescue import rescue
from jobs.ledger import backfills, outcomes
from jobs.models import ACTIVE, Backfill, Policy, Run, State, Trigger, database_now
from jobs.models.audit import Actor
from jobs.models.runs import REQUESTED
from jobs.rules.errors import Invalid
from jobs.rules.policies import SKIPPED_BY_HAND, CatchUp, Overlap
from jobs.schedules import acts, calendar
from tests.making import make_due, make_run, make_schedule, run_now

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def claim_all() -> list[Run]:
    """The rows of the claimed runs that beat sends now."""
    return [Run.objects.get(id=run.id) for runs in claim.claim_due() for run in runs]


def states(schedule: PeriodicTask) -> list[str]:
    """The states of its runs, the oldest first; `waiting_turn` for a run that waits for its turn."""
    runs = Run.objects.filter(schedule=schedule).order_by("due_at", "trigger")
    return [f"{'waiting_turn' if run.state == State.WAITING and run.not_before is None else run.state}" for run in runs]


def end(run: Run, state: State = State.SUCCEEDED) -> None:
    Run.objects.filter(id=run.id).update(state=State.RUNNING, started_at=database_now(), lease_until=database_now())
    assert outcomes.finish(run.id, run.attempt, state)


# --- overlap --------------------------------------------------------------------------------------------------------


def test_it_lets_one_run_wait_until_the_run_before_it_ends():
    schedule = make_schedule(policy={"overlap": Overlap.QUEUE_ONE}, expire_seconds=60)
    running = make_run(schedule, state=State.RUNNING, due_at=database_now() - HOUR)
    for _ in range(2):
        make_due(schedule)
        assert claim_all() == []
    assert states(schedule) == ["running", "waiting_turn", "skipped"]
    assert release.release() == 0
    end(running)
    assert release.release() == 1
    released = Run.objects.get(state=State.WAITING)
    assert released.not_before <= database_now()
    assert timedelta(0) < released.expires_at - database_now() <= MINUTE


def test_it_cancels_unstarted_runs_and_interrupts_running_ones_for_a_later_run():
    schedule = make_schedule(policy={"overlap": Overlap.CANCEL_PREVIOUS})
    running = make_run(schedule, state=State.RUNNING, due_at=database_now() - 2 * HOUR)
    queued = make_run(schedule, state=State.QUEUED, due_at=database_now() - HOUR)
    make_due(schedule)
    assert claim_all() == []
    running.refresh_from_db()
    queued.refresh_from_db()
    assert (queued.state, running.state) == (State.CANCELLED, State.RUNNING)
    assert queued.reason == running.cancel_reason
    assert running.cancel_reason.endswith("takes its place; policy: cancel previous")
    assert states(schedule)[-1] == "waiting_turn"
    outcomes.fail(running.id, running.attempt, "RuntimeError: interrupted", {})
    running.refresh_from_db()
    assert (running.state, running.reason) == (State.CANCELLED, running.cancel_reason)
    assert release.release() == 1


def test_it_cancels_a_run_that_died_after_it_was_asked_to_end():
    run = make_run(
        make_schedule(), state=State.RUNNING, lease_until=database_now() - SECOND, cancel_reason="cancelled: x"
    )
    assert rescue() == 1
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled: x")


def test_it_runs_a_due_moment_beside_a_backfill():
    schedule = make_schedule()
    backfill = Backfill.objects.create(schedule=schedule, start=database_now() - DAY, end=database_now(), actor="ada")
    make_run(schedule, state=State.RUNNING, trigger=Trigger.BACKFILL, backfill=backfill)
    make_due(schedule)
    assert len(claim_all()) == 1


def test_it_catches_up_one_run_after_another():
    schedule = make_schedule(every=10 * MINUTE, policy={"catch_up": CatchUp.ALL, "catch_up_cap": 3})
    make_due(schedule, ago=HOUR)
    (first,) = claim_all()
    assert states(schedule) == ["skipped", "waiting", *["waiting_turn"] * 3]  # three missed moments and the present one
    order = [first.due_at]
    for _ in range(3):
        end(Run.objects.get(due_at=order[-1], schedule=schedule))
        assert release.release() == 1
        order.append(Run.objects.get(state=State.WAITING, not_before__isnull=False).due_at)
    assert order == sorted(order)
    assert len(set(order)) == 4


def test_it_cancels_waiting_runs_whose_schedule_was_deleted():
    schedule = make_schedule()
    run = make_run(schedule, not_before=None)
    PeriodicTask.objects.filter(pk=schedule.pk).delete()
    release.release()
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled: its schedule was deleted")


@pytest.mark.django_db(transaction=True)
def test_it_releases_no_more_runs_than_allowed_when_several_beats_release_at_once():
    schedule = make_schedule()
    for hours in range(5):
        make_run(schedule, not_before=None, due_at=database_now() - hours * HOUR)
    barrier = threading.Barrier(3)

    def releaser() -> None:
        barrier.wait()
        release.release()
        connection.close()

    threads = [threading.Thread(target=releaser) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Run.objects.waiting_turn().count() == 4


# --- jitter, limits, skipping ---------------------------------------------------------------------------------------


def test_it_starts_a_run_later_by_a_random_part_of_its_jitter():
    schedule = make_schedule(every=HOUR, policy={"jitter": 2 * HOUR}, expire_seconds=60)
    due_at = make_due(schedule)
    assert claim_all() == []
    run = Run.objects.get()
    assert due_at < run.not_before < due_at + HOUR
    assert run.expires_at == run.not_before + MINUTE


def test_it_disables_a_limited_schedule_with_its_last_run():
    schedule = make_schedule(policy={"remaining_runs": 2, "skip_next": 1, "overlap": Overlap.ALLOW})
    for _ in range(3):
        make_due(schedule)
        claim_all()
    run_now(PeriodicTask.objects.get())
    assert states(schedule) == ["skipped", "waiting", "waiting", "waiting"]
    assert [run.trigger for run in Run.objects.filter(state=State.WAITING).order_by("due_at")][-1] == Trigger.CODE
    policy = Policy.objects.select_related("schedule").get()
    assert (policy.remaining_runs, policy.next_due_at, policy.schedule.enabled) == (0, None, False)
    assert claim_all() == []


def test_it_does_not_count_a_manual_run_of_a_limited_schedule():
    schedule = make_schedule(policy={"remaining_runs": 2})
    run_now(schedule)
    assert Policy.objects.get().remaining_runs == 2


def test_it_skips_the_moment_that_the_page_names_though_older_ones_wait_for_a_decision():
    schedule = make_schedule(every=10 * MINUTE)
    first = make_due(schedule, ago=35 * MINUTE)
    pause(schedule, ago=HOUR, catch_up="latest")
    claim_all()
    Policy.objects.filter(schedule=schedule).resume()
    acts.skip_next(PeriodicTask.objects.all(), "ada", 1)
    assert [run.due_at for run in claim_all()] == [first + 30 * MINUTE]
    assert Policy.objects.get().skip_next == 1
    assert list(claim.claim_due(first + 40 * MINUTE)) == []
    skipped = Run.objects.latest("due_at")
    assert (skipped.due_at, skipped.reason) == (first + 40 * MINUTE, SKIPPED_BY_HAND)
    assert Policy.objects.get().skip_next == 0


def test_it_skips_the_next_moments_when_an_operator_chose_so():
    schedule = make_schedule(policy={"skip_next": 2})
    for expected in (0, 0, 1):
        make_due(schedule)
        assert len(claim_all()) == expected
    row = Run.objects.get(state=State.SKIPPED)
    assert (row.count, row.reason) == (2, "by hand: an operator chose to skip the next due moments")
    assert Policy.objects.get().skip_next == 0


@pytest.mark.parametrize("column", ["overlap", "catch_up", "pause_catch_up"])
def test_it_refuses_an_unknown_choice_in_a_policy(column):
    make_schedule()
    with pytest.raises(IntegrityError, match="policy_choices_known"):
        Policy.objects.update(**{column: "nonsense"})


def test_it_flags_a_policy_that_cannot_be_read_until_it_is_repaired():
    bad, good = make_schedule("bad", every=10 * MINUTE), make_schedule("good")
    make_due(bad, ago=25 * MINUTE)
    Policy.objects.filter(schedule=bad).update(former=[["", "nonsense"]])
    make_due(good)
    assert [run.schedule for run in claim_all()] == [good]
    row, policy = Run.objects.get(schedule=bad), Policy.objects.get(schedule=bad)
    assert (row.state, row.count) == (State.SKIPPED, 1)
    assert row.reason == f"invalid: {policy.invalid_reason}"
    assert "nonsense" in policy.invalid_reason
    make_due(bad)
    assert [run.schedule for run in claim_all()] == [bad]
    assert Policy.objects.get(schedule=bad).invalid_reason == ""


# --- pause ----------------------------------------------------------------------------------------------------------


def pause(schedule: PeriodicTask, ago: timedelta, **words) -> None:
    Policy.objects.filter(schedule=schedule).pause(**{"by": "ada", "reason": "maintenance", **words})
    Policy.objects.filter(schedule=schedule).update(paused_at=database_now() - ago)


def test_it_records_moments_during_a_pause_as_skipped_with_its_reason():
    schedule = make_schedule(every=10 * MINUTE)
    make_due(schedule, ago=HOUR)
    pause(schedule, ago=2 * HOUR)
    assert claim_all() == []
    row = Run.objects.get()
    assert (row.state, row.count, row.reason) == (State.SKIPPED, 7, "paused by ada: maintenance")
    assert Policy.objects.filter(schedule=schedule).resume() == 1
    make_due(schedule)
    assert len(claim_all()) == 1


@pytest.mark.parametrize(("catch_up", "expected"), [("latest", ["skipped", "waiting"]), ("all", ["waiting"] * 7)])
def test_it_runs_the_moments_that_a_pause_held_back_after_it_is_resumed(catch_up, expected):
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW, "catch_up": CatchUp.NONE})
    first = make_due(schedule, ago=HOUR + MINUTE)
    pause(schedule, ago=2 * HOUR, catch_up=catch_up)
    assert claim_all() == []
    assert not Run.objects.exists()
    policy = Policy.objects.get()
    assert (policy.owed_from, policy.next_due_at) == (first, None)
    assert claim_all() == []
    Policy.objects.filter(schedule=schedule).resume()
    claim_all()
    assert states(schedule) == expected
    assert sum(run.count for run in Run.objects.all()) == 7
    assert Policy.objects.get().next_due_at == first + 70 * MINUTE


def test_it_ends_a_pause_at_its_set_time():
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW})
    make_due(schedule, ago=HOUR + MINUTE)
    until = database_now() + HOUR
    pause(schedule, ago=2 * HOUR, catch_up="all", until=until)
    claim_all()
    assert Policy.objects.get().next_due_at == until
    Policy.objects.update(paused_until=database_now() - 5 * MINUTE, next_due_at=database_now())  # the time has come
    assert len(claim_all()) == 7
    assert not Policy.objects.paused().exists()


def test_it_catches_up_moments_missed_before_a_pause():
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW, "catch_up": CatchUp.ALL})
    make_due(schedule, ago=35 * MINUTE)
    pause(schedule, ago=20 * MINUTE)
    assert len(claim_all()) == 2
    assert states(schedule) == ["waiting", "waiting", "skipped"]


def test_it_keeps_the_moments_that_a_pause_held_back_when_the_schedule_is_edited():
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW})
    make_due(schedule, ago=35 * MINUTE)
    pause(schedule, ago=HOUR, catch_up="all")
    claim_all()
    schedule.interval = make_schedule("other", every=DAY).interval
    schedule.save()
    Policy.objects.filter(schedule=schedule).resume()
    assert len(claim_all()) == 4


def test_it_replaces_the_reason_when_a_paused_schedule_is_paused_again():
    schedule = make_schedule(every=10 * MINUTE)
    make_due(schedule, ago=HOUR)
    pause(schedule, ago=2 * HOUR, catch_up="all")
    claim_all()
    Policy.objects.filter(schedule=schedule).pause(by="bob", reason="longer")
    assert claim_all() == []
    assert (Run.objects.get().count, Run.objects.get().reason) == (7, "paused by bob: longer")


@pytest.mark.django_db(transaction=True)
def test_it_pauses_a_schedule_after_failures_in_a_row_that_used_up_their_attempts():
    schedule = make_schedule(policy={"pause_after_failures": 2, "max_attempts": 2, "retry_delay": timedelta(0)})
    for hours in (3, 2):
        run = make_run(schedule, state=State.RUNNING, due_at=database_now() - hours * HOUR)
        outcomes.fail(run.id, 1, "ValueError: no", {})
        assert not Policy.objects.paused().exists()
        Run.objects.filter(id=run.id).update(state=State.RUNNING, started_at=database_now())
        outcomes.fail(run.id, 2, "ValueError: no", {})
    policy = Policy.objects.paused().get()
    assert (policy.paused_by, policy.pause_reason) == ("Punctual", "the last 2 runs failed")
    assert policy.pause.sentence == "paused by Punctual: the last 2 runs failed"


@pytest.mark.django_db(transaction=True)
def test_it_counts_failures_anew_after_a_pause_is_resumed():
    schedule = make_schedule(policy={"pause_after_failures": 2})
    for _ in range(2):
        run = make_run(schedule, state=State.RUNNING)
        outcomes.fail(run.id, 1, "ValueError: no", {})
    assert Policy.objects.filter(schedule=schedule).resume() == 1
    run = make_run(schedule, state=State.RUNNING)
    outcomes.fail(run.id, 1, "ValueError: no", {})
    assert not Policy.objects.paused().exists()


@pytest.mark.parametrize("between", [State.SUCCEEDED, State.LOST])
def test_it_counts_lost_runs_as_failures_and_counts_anew_after_a_success(between):
    schedule = make_schedule(policy={"pause_after_failures": 3, "rerun_if_lost": False})
    for ago, state in ((3, State.FAILED), (2, between), (1, State.FAILED)):
        make_run(schedule, state=state, due_at=database_now() - ago * HOUR)
    Policy.objects.filter(schedule=schedule).pause_if_failing()
    assert Policy.objects.paused().exists() is (between == State.LOST)


# --- changes --------------------------------------------------------------------------------------------------------


def test_it_runs_moments_due_before_an_edit_under_their_former_timing():
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW, "catch_up": CatchUp.ALL})
    first = make_due(schedule, ago=35 * MINUTE)
    other = make_schedule("other", every=DAY).interval
    PeriodicTask.objects.filter(pk=schedule.pk).update(interval=other)
    calendar.sweep()
    assert [run.due_at for run in claim_all()] == [first + n * 10 * MINUTE for n in range(4)]
    policy = Policy.objects.get(schedule=schedule)
    assert policy.former is None
    assert policy.next_due_at > database_now() + 23 * HOUR


def test_it_runs_moments_due_before_several_edits():
    schedule = make_schedule(every=10 * MINUTE, policy={"overlap": Overlap.ALLOW, "catch_up": CatchUp.ALL})
    make_due(schedule, ago=35 * MINUTE)
    schedule.enabled = False
    schedule.save()
    schedule.enabled, schedule.interval = True, make_schedule("other", every=DAY).interval
    schedule.save()
    assert len(claim_all()) == 4


def test_it_skips_due_moments_when_a_schedule_is_disabled_before_they_start():
    schedule = make_schedule(every=10 * MINUTE)
    make_due(schedule, ago=35 * MINUTE)
    schedule.enabled = False
    schedule.save()
    assert claim_all() == []
    row = Run.objects.get()
    assert (row.count, row.reason) == (4, "disabled before it could start")


# --- backfill -------------------------------------------------------------------------------------------------------


def make_backfill(schedule: PeriodicTask, **columns) -> Backfill:
    now = database_now().replace(minute=0, second=0, microsecond=0)
    defaults = {"start": now - 6 * HOUR, "end": now, "actor": "ada"}
    return Backfill(schedule=schedule, **{**defaults, **columns})


@pytest.fixture
def hourly() -> PeriodicTask:
    """Due every full hour; the last six in order: succeeded, failed, running, skipped, and two that are missing."""
    schedule = make_schedule(cron={"minute": "0"})
    full_hour = database_now().replace(minute=0, second=0, microsecond=0)
    for ago, state in ((6, State.SUCCEEDED), (5, State.FAILED), (4, State.RUNNING), (3, State.SKIPPED)):
        make_run(schedule, state=state, due_at=full_hour - ago * HOUR, last_due_at=full_hour - ago * HOUR)
    return schedule


@pytest.mark.parametrize(
    ("which", "hours_ago"), [("missing", [3, 2, 1]), ("failed", [5, 3, 2, 1]), ("all", [6, 5, 3, 2, 1])]
)
def test_it_backfills_exactly_the_moments_of_its_preview(hourly, which, hours_ago):
    backfill = make_backfill(hourly, which=which, at_once=2)
    seen = backfills.preview(backfill)
    assert seen.moments == [backfill.end - hours * HOUR for hours in hours_ago]
    assert seen.left_alone == 6 - len(hours_ago)
    assert backfills.backfill(backfill, Actor("ada")) == len(hours_ago)
    runs = Run.objects.filter(backfill=backfill).order_by("due_at")
    assert [run.due_at for run in runs] == seen.moments
    assert {(run.trigger, run.actor, run.schedule) for run in runs} == {(Trigger.BACKFILL, "ada", hourly)}


@pytest.mark.parametrize("trigger", sorted(REQUESTED))
def test_it_takes_no_requested_run_for_that_of_a_due_moment(hourly, trigger):
    backfill = make_backfill(hourly)
    at = backfill.end - 2 * HOUR
    make_run(hourly, State.SUCCEEDED, trigger=trigger, due_at=at, last_due_at=at)
    assert at in backfills.preview(backfill).moments


def test_it_backfills_no_moment_that_beat_has_yet_to_decide():
    schedule = make_schedule(every=HOUR, start_time=database_now() - 48 * HOUR)
    Policy.objects.update(next_due_at=database_now() - 3 * HOUR, owed_from=database_now() - 5 * HOUR)
    asked = Backfill(schedule=schedule, start=database_now() - 9 * HOUR, end=database_now(), actor="ada")
    assert len(backfills.preview(asked).moments) == 4


def test_it_makes_a_backfill_once_when_it_is_requested_twice(hourly):
    backfill = make_backfill(hourly, which="all")
    assert backfills.backfill(backfill, Actor("ada")) == 5
    assert backfills.backfill(make_backfill(hourly, which="all", id=backfill.id), Actor("ada")) == 0
    assert Run.objects.filter(backfill=backfill).count() == 5
    assert backfills.preview(make_backfill(hourly)).moments == []  # active runs are not missing


def test_it_starts_no_more_runs_of_a_backfill_at_once_than_requested(hourly):
    backfill = make_backfill(hourly, which="all", at_once=2)
    backfills.backfill(backfill, Actor("ada"))
    mine = Run.objects.filter(backfill=backfill)
    assert not mine.filter(not_before__isnull=False).exists()
    assert (release.release(), release.release()) == (2, 0)
    end(mine.filter(not_before__isnull=False).order_by("due_at").first())
    assert release.release() == 1
    while mine.filter(state__in=ACTIVE).exists():
        for run in mine.filter(state=State.WAITING, not_before__isnull=False):
            end(run)
        release.release()
    assert set(mine.values_list("state", flat=True)) == {State.SUCCEEDED}


def test_it_backfills_a_disabled_schedule_too(hourly):
    PeriodicTask.objects.update(enabled=False)
    calendar.sweep()
    assert len(backfills.preview(make_backfill(hourly)).moments) == 3


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"start": database_now}, "in the past"),
        ({"end": lambda: database_now() + HOUR}, "in the past"),
        ({"start": lambda: database_now() - 3000 * DAY}, "more than 10000 due moments"),
    ],
)
def test_it_refuses_a_backfill_whose_range_is_empty_or_too_long_or_ends_in_the_future(hourly, columns, sentence):
    backfill = make_backfill(hourly, **{name: value() for name, value in columns.items()})
    with pytest.raises(Invalid, match=sentence):
        backfills.backfill(backfill, Actor("ada"))
    assert not Backfill.objects.exists()
