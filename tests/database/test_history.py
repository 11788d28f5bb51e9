"""What happened to a schedule at a moment? One true sentence for each case, with the moments around it.

Each test sets the database's clock. The schedule was added on Monday at noon, and is due at two each night.
"""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask

from jobs.beat import claim
from jobs.ledger import requests, retention
from jobs.models import AuditEntry, Node, Policy, Run, State, Trigger, database_now
from jobs.monitoring.history import OUT_OF_YEARS, UNREAD, Answer, what_happened
from jobs.rules.errors import Invalid
from jobs.schedules import acts, calendar
from tests.database.test_past import (
    BEGIN,
    DAY,
    END,
    HOUR,
    MINUTE,
    MINUTES,
    MONDAY,
    NIGHTLY,
    START,
    backfill,
    claim_all,
    due_in,
    edit,
    history,
)
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)
ADDED = MONDAY + 12 * HOUR
NIGHTS = [MONDAY + day * DAY + 2 * HOUR for day in range(20)]  # NIGHTS[1] is the first one that was due
TUESDAY = NIGHTS[1]
DUE = "It was due on 2025-03-04 at 02:00 (UTC)"
NOT_DUE = "It was not due on 2025-03-04 at 03:30 (UTC)"
LATER = TUESDAY + 90 * MINUTE
THESE = PeriodicTask.objects.all()


@pytest.fixture
def nightly(at) -> PeriodicTask:
    at(ADDED)
    return make_schedule(cron=NIGHTLY, policy={"catch_up": "none"})


@pytest.fixture
def claimed(nightly, at) -> Run:
    """The run of Tuesday, claimed on time; now it is Tuesday at 03:00."""
    at(TUESDAY)
    assert sum(len(runs) for runs in claim.claim_due()) == 1
    at(TUESDAY + HOUR)
    return Run.objects.get()


def sentence(schedule: PeriodicTask, moment: datetime) -> str:
    return ask(schedule, moment).sentence


def ask(schedule: PeriodicTask, moment: datetime) -> Answer:
    """Ask by a stale copy: the answer must not depend on what the caller has read."""
    return what_happened(PeriodicTask(pk=schedule.pk), moment)


def change(run: Run, state: State, **columns: Any) -> None:
    Run.objects.filter(pk=run.pk).update(state=state, **columns)


def dated(moment: datetime) -> None:
    """Date the latest audit entry: SQLite cannot be given another clock."""
    entry = AuditEntry.objects.latest("id")
    entry.at = moment
    entry.save()


# --- it ran ---------------------------------------------------------------------------------------------------------

STARTED = {"started_at": TUESDAY + 2 * SECOND, "node": "celery@here", "pid": 7}
ENDED = {**STARTED, "finished_at": TUESDAY + 202 * SECOND}
UNSTARTED = {"finished_at": TUESDAY + MINUTE}


@pytest.mark.parametrize(
    ("state", "columns", "told"),
    [
        ("succeeded", ENDED, ", started 2 s late, took 3 min 20 s and succeeded."),
        (
            "failed",
            {**ENDED, "reason": "ValueError: no."},
            ", started 2 s late, took 3 min 20 s and failed: ValueError: no.",
        ),
        (
            "cancelled",
            {**ENDED, "reason": "cancelled: by ada"},
            ", started 2 s late, took 3 min 20 s and was cancelled: by ada.",
        ),
        (
            "lost",
            {**ENDED, "reason": "its process died"},
            ", started 2 s late, took 3 min 20 s and was lost: its process died.",
        ),
        (
            "succeeded",
            {**ENDED, "started_at": TUESDAY + 50 * SECOND, "attempt": 3},
            ", started its attempt 3 on 2025-03-04 at 02:00:50, took 2 min 32 s and succeeded.",
        ),
        ("running", STARTED, ", started 2 s late and has been running for 59 min 58 s on celery@here (7)."),
        ("waiting", {}, " and is waiting to be sent."),
        ("waiting", {"not_before": TUESDAY + 2 * HOUR}, " and is waiting until 2025-03-04 04:00."),
        (
            "waiting",
            {"not_before": TUESDAY, "reason": "sent once, no worker took it: no worker consumes queue `celery`"},
            " and is waiting to be sent: sent once, no worker took it: no worker consumes queue `celery`.",
        ),
        ("waiting", {"not_before": None}, " and is waiting for the runs before it to end."),
        ("queued", {"queued_at": TUESDAY, "sends": 1}, " and is queued, but no worker has started it."),
        ("expired", UNSTARTED, " and expired before it started."),
        (
            "cancelled",
            {**UNSTARTED, "reason": "cancelled: by ada\nand\tbob."},
            " and was cancelled before it started: by ada and bob.",
        ),
        (
            "failed",
            {**UNSTARTED, "reason": "No job is named 'x'. Did you mean 'y'?"},
            " and failed before it started: No job is named 'x'. Did you mean 'y'?",
        ),
    ],
)
def test_it_tells_how_a_run_went(claimed, nightly, state, columns, told):
    change(claimed, State(state), **columns)
    answer = ask(nightly, TUESDAY)
    assert answer.sentence == f"{DUE}{told}"
    assert (answer.run, answer.due_at, answer.before, answer.after) == (claimed, TUESDAY, None, NIGHTS[2])


def test_it_has_a_word_for_every_state(claimed, nightly):
    for state in State:
        change(claimed, state, reason="why", finished_at=TUESDAY, started_at=None)
        assert sentence(nightly, TUESDAY).startswith(DUE)
        change(claimed, state, started_at=TUESDAY)
        assert sentence(nightly, TUESDAY).startswith(DUE)


def test_it_shows_moments_by_the_sites_clocks(claimed, nightly, settings):
    settings.TIME_ZONE = "Asia/Kathmandu"
    change(claimed, State.SUCCEEDED, **ENDED)
    assert sentence(nightly, TUESDAY).startswith("It was due on 2025-03-04 at 07:45 (Asia/Kathmandu), started")


@pytest.mark.parametrize("ago", [timedelta(0), SECOND, MINUTE - timedelta(microseconds=1)])
def test_it_takes_the_due_moment_within_the_same_minute(claimed, nightly, ago):
    answer = ask(nightly, (TUESDAY + ago).astimezone(timezone.get_fixed_timezone(330)))
    assert (answer.due_at, answer.run) == (TUESDAY, claimed)


@pytest.mark.parametrize("moment", [TUESDAY - SECOND, TUESDAY + MINUTE])
def test_it_takes_no_due_moment_of_another_minute(claimed, nightly, moment):
    answer = ask(nightly, moment)
    assert (answer.due_at, answer.run) == (None, None)
    assert TUESDAY in (answer.before, answer.after)


@pytest.mark.parametrize(("second", "due"), [(0, 7), (6, 7), (7, 7), (16, 7), (17, 17), (36.5, 27), (59, 57)])
def test_it_takes_the_last_of_several_moments_in_a_minute(at, second, due):
    at(ADDED + 7 * SECOND)
    schedule = make_schedule(every=10 * SECOND)
    at(ADDED + 2 * HOUR)
    assert ask(schedule, ADDED + HOUR + second * SECOND).due_at == ADDED + HOUR + due * SECOND


# --- it was skipped -------------------------------------------------------------------------------------------------


def test_it_tells_why_a_moment_was_skipped(nightly, at):
    at(TUESDAY + HOUR)
    claim_all()
    answer = ask(nightly, TUESDAY)
    assert answer.sentence == f"{DUE} and was skipped: missed: no beat claimed this within 60 seconds; catch-up: none."
    assert answer.run == Run.objects.get()


def test_it_tells_who_had_paused_it(nightly, at):
    acts.pause(THESE, "ada", "maintenance", None)
    Policy.objects.update(paused_at=ADDED)
    at(TUESDAY)
    claim_all()
    assert sentence(nightly, TUESDAY) == f"{DUE} and was skipped: paused by ada: maintenance."


def test_it_tells_which_row_of_skipped_moments_a_moment_is_part_of(nightly, at):
    at(NIGHTS[4] + HOUR)
    claim_all()
    for night in NIGHTS[1:5]:
        answer = ask(nightly, night + 5 * SECOND)
        assert answer.sentence == (
            f"It was due on {night:%Y-%m-%d} at 02:00 (UTC), one of 4 due moments from 2025-03-04 02:00 to 2025-03-07"
            " 02:00 that were skipped: missed: no beat claimed this within 60 seconds; catch-up: none."
        )
        assert (answer.run, answer.due_at) == (Run.objects.get(), night)
        assert answer.before == (night - DAY if night > TUESDAY else None)
        assert answer.after == night + DAY
    assert ask(nightly, NIGHTS[2] + HOUR).run is None


def test_it_tells_of_a_row_of_skipped_moments_whose_timings_are_not_kept(nightly, at):
    at(NIGHTS[4] + HOUR)
    claim_all()
    edit(nightly, cron={"minute": "30", "hour": "5"})
    retention.delete_timings(database_now() + DAY)
    assert sentence(nightly, NIGHTS[2] + HOUR) == (
        "Its timings of 2025-03-05 at 03:00 (UTC) are not kept; 4 due moments from 2025-03-04 02:00 to 2025-03-07 02:00"
        " were skipped: missed: no beat claimed this within 60 seconds; catch-up: none."
    )


# --- it was run again -----------------------------------------------------------------------------------------------


def test_it_tells_of_a_backfill_of_a_skipped_moment(nightly, at):
    at(TUESDAY + HOUR)
    claim_all()
    (again,) = backfill(nightly, TUESDAY, TUESDAY + MINUTE)
    skipped = Run.objects.exclude(pk=again.pk).get()
    answer = ask(nightly, TUESDAY)
    assert answer.sentence.endswith("catch-up: none; ada ran it in a backfill, and that run succeeded.")
    assert answer.run == skipped


def test_it_tells_of_a_retry_of_a_failed_run(claimed, nightly):
    change(claimed, State.FAILED, **ENDED)
    requests.retry(Run.objects.all(), "bob")
    assert sentence(nightly, TUESDAY).endswith("and failed; bob retried it, and that run is waiting.")


def test_it_tells_of_a_backfill_of_a_moment_before_the_schedule_existed(nightly, at):
    at(TUESDAY + HOUR)
    (again,) = backfill(nightly, NIGHTS[0], NIGHTS[0] + MINUTE)
    answer = ask(nightly, NIGHTS[0])
    assert answer.sentence == (
        "It did not exist on 2025-03-03 at 02:00 (UTC), or its timings of that time are not kept: they are known since"
        " 2025-03-03 12:00; ada ran it in a backfill, and that run succeeded."
    )
    assert (answer.run, answer.due_at) == (again, NIGHTS[0])


def test_it_takes_no_run_that_an_operator_started_for_one_of_the_moment(claimed, nightly):
    make_run(nightly, State.SUCCEEDED, trigger=Trigger.MANUAL, due_at=TUESDAY, actor="ada")
    make_run(nightly, State.SUCCEEDED, trigger=Trigger.MANUAL, due_at=TUESDAY + HOUR / 2, actor="ada")
    assert ask(nightly, TUESDAY).run == claimed
    assert "ada" not in sentence(nightly, TUESDAY)
    assert ask(nightly, TUESDAY + HOUR / 2).run is None


# --- it was not due -------------------------------------------------------------------------------------------------


def test_it_names_the_nearest_due_moments_where_it_was_not_due(nightly, at):
    at(NIGHTS[3] + HOUR)
    claim_all()
    answer = ask(nightly, NIGHTS[2] + 90 * MINUTE)
    assert answer.sentence == (
        "It was not due on 2025-03-05 at 03:30 (UTC); the nearest due moments are 2025-03-05 02:00 and"
        " 2025-03-06 02:00."
    )
    assert (answer.run, answer.due_at, answer.before, answer.after) == (None, None, NIGHTS[2], NIGHTS[3])


def test_it_judges_by_the_timing_in_force_then(nightly, at):
    at(NIGHTS[2] + 12 * HOUR)
    claim_all()
    edit(nightly, cron={"minute": "30", "hour": "3"})
    at(NIGHTS[6])
    claim_all()
    assert ask(nightly, NIGHTS[2]).due_at == NIGHTS[2]
    assert ask(nightly, NIGHTS[2] + 90 * MINUTE).due_at is None
    assert ask(nightly, NIGHTS[4]).due_at is None
    assert ask(nightly, NIGHTS[4] + 90 * MINUTE).due_at == NIGHTS[4] + 90 * MINUTE
    answer = ask(nightly, NIGHTS[3])
    assert (answer.before, answer.after) == (NIGHTS[2], NIGHTS[3] + 90 * MINUTE)


def test_it_names_the_next_moment_of_a_schedule_that_was_never_due_before(nightly, at):
    at(ADDED + HOUR)
    assert sentence(nightly, ADDED + MINUTE) == (
        "It was not due on 2025-03-03 at 12:01 (UTC); the next one is 2025-03-04 02:00."
    )


def test_it_names_the_last_moment_of_a_schedule_that_is_never_due_again(nightly, at):
    edit(nightly, expires=TUESDAY + HOUR)
    at(TUESDAY + 3 * HOUR)
    claim_all()
    assert sentence(nightly, LATER) == f"{NOT_DUE}; the last due moment was 2025-03-04 02:00."


# --- it was not there -----------------------------------------------------------------------------------------------


def test_it_says_that_a_schedule_did_not_exist_yet_or_its_timings_are_not_known(nightly, at):
    at(TUESDAY + HOUR)
    for moment in (MONDAY - 900 * DAY, NIGHTS[0], ADDED):
        answer = ask(nightly, moment)
        assert answer.sentence == (
            f"It did not exist on {moment:%Y-%m-%d} at {moment:%H:%M} (UTC), or its timings of that time are not kept:"
            " they are known since 2025-03-03 12:00."
        )
        assert (answer.before, answer.after, answer.due_at, answer.run) == (None, TUESDAY, None, None)


def test_it_says_who_added_a_schedule_that_did_not_exist_yet(at):
    at(ADDED)
    crontab = CrontabSchedule.objects.create(**NIGHTLY)
    schedule = PeriodicTask(name="it", task="tests.nothing", crontab=crontab)
    acts.save(schedule, {}, "ada")
    dated(ADDED)
    assert sentence(schedule, NIGHTS[0]) == (
        "It did not exist on 2025-03-03 at 02:00 (UTC): ada added it on 2025-03-03 12:00."
    )


def test_it_knows_the_first_moment_of_a_schedule_that_was_saved_a_little_later(at):
    at(ADDED + 30 * SECOND)
    once = make_schedule(clocked=ClockedSchedule.objects.create(clocked_time=ADDED), one_off=True)
    assert sentence(once, ADDED) == (
        "It was due on 2025-03-03 at 12:00 (UTC), but beat has not decided about it yet: no beat is running."
    )
    claim_all()
    assert ask(once, ADDED).run == Run.objects.get()
    assert sentence(once, ADDED + HOUR).startswith("It will not be due")


def test_it_asks_for_patience_with_a_schedule_that_beat_has_not_read(nightly):
    Policy.objects.all().delete()
    assert ask(nightly, TUESDAY) == Answer(UNREAD)


# --- it was disabled ------------------------------------------------------------------------------------------------


def disable(moment: datetime, at: Any) -> None:
    at(moment)
    claim_all()
    acts.disable(THESE, "ada")
    dated(moment)
    calendar.sweep()  # as the act does once it is committed


def test_it_says_who_had_disabled_it(nightly, at):
    disable(TUESDAY + HOUR, at)
    at(NIGHTS[4])
    by_ada = ", because ada disabled it on 2025-03-04 03:00; the last due moment was 2025-03-04 02:00."
    assert sentence(nightly, NIGHTS[2]) == f"It was not due on 2025-03-05 at 02:00 (UTC){by_ada}"
    assert sentence(nightly, NIGHTS[9]) == f"It will not be due on 2025-03-12 at 02:00 (UTC){by_ada}"
    assert sentence(nightly, TUESDAY).startswith(DUE)
    assert ask(nightly, TUESDAY + HOUR / 2).sentence == (
        "It was not due on 2025-03-04 at 02:30 (UTC); the last due moment was 2025-03-04 02:00."
    )


def test_it_says_who_had_disabled_a_schedule_that_is_enabled_again(nightly, at):
    disable(TUESDAY + HOUR, at)
    at(NIGHTS[3] + HOUR)
    acts.enable(THESE, "bob")
    dated(NIGHTS[3] + HOUR)
    calendar.sweep()
    at(NIGHTS[5])
    assert sentence(nightly, NIGHTS[2]) == (
        "It was not due on 2025-03-05 at 02:00 (UTC), because ada disabled it on 2025-03-04 03:00; the"
        " nearest due moments"
        " are 2025-03-04 02:00 and 2025-03-07 02:00."
    )
    assert "disabled" not in sentence(nightly, NIGHTS[4] + HOUR)


def test_it_says_who_added_it_disabled(at):
    at(ADDED)
    crontab = CrontabSchedule.objects.create(**NIGHTLY)
    schedule = PeriodicTask(name="it", task="tests.nothing", crontab=crontab, enabled=False)
    acts.save(schedule, {}, "ada")
    dated(ADDED)
    assert sentence(schedule, TUESDAY) == (
        "It will not be due on 2025-03-04 at 02:00 (UTC), because ada added it disabled on 2025-03-03 12:00."
    )


def test_it_does_not_blame_an_act_that_code_has_undone(nightly, at):
    disable(TUESDAY + HOUR, at)
    edit(nightly, enabled=True)
    at(NIGHTS[3])
    assert "because" not in sentence(nightly, NIGHTS[2] + HOUR)
    assert sentence(nightly, NIGHTS[5] + HOUR).startswith(
        "It will not be due on 2025-03-08 at 03:00 (UTC); the nearest"
    )


def test_it_says_that_it_is_disabled_where_code_disabled_it(nightly, at):
    at(TUESDAY + HOUR)
    claim_all()
    edit(nightly, enabled=False)
    at(TUESDAY + 2 * HOUR)
    assert sentence(nightly, LATER) == f"{NOT_DUE}, because it is disabled; the last due moment was 2025-03-04 02:00."


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("limit", [{"one_off": True}, {"policy": {"remaining_runs": 1}}], ids=["one-off", "limited"])
def test_it_says_that_the_last_run_has_disabled_it(at, limit, swept):
    at(ADDED)
    schedule = make_schedule(cron=NIGHTLY, **limit)
    at(TUESDAY)
    claim_all()
    at(NIGHTS[3])
    if swept:
        calendar.sweep()
    assert ask(schedule, TUESDAY).run == Run.objects.get()
    for night in (NIGHTS[2], NIGHTS[9]):
        answer = ask(schedule, night)
        assert (answer.due_at, answer.before, answer.after) == (None, TUESDAY, None)
        assert "was due" not in answer.sentence
    assert "because its last run has disabled it" in sentence(schedule, NIGHTS[9])


# --- it has no outcome ----------------------------------------------------------------------------------------------

UNDECIDED = f"{DUE}, but beat has not decided about it yet: "


def test_it_says_that_beat_has_not_decided_yet(nightly, at):
    at(TUESDAY + SECOND)
    assert sentence(nightly, TUESDAY) == f"{UNDECIDED}no beat is running."
    Node.objects.create(name="beat@here", kind="beat", pid=1)
    assert sentence(nightly, TUESDAY) == f"{UNDECIDED}it will in a few seconds."
    answer = ask(nightly, TUESDAY)
    assert (answer.run, answer.due_at) == (None, TUESDAY)


def test_it_says_which_pause_holds_a_moment_back(nightly, at):
    acts.pause(THESE, "ada", "maintenance", None, "all")
    Policy.objects.update(paused_at=ADDED)
    at(NIGHTS[2])
    claim_all()
    for night in NIGHTS[1:3]:
        assert sentence(nightly, night).endswith(
            "but beat has not decided about it yet: it is held back, paused by ada: maintenance."
        )


def test_it_says_that_no_beat_knows_the_job(nightly, at):
    edit(nightly, task="tests.nothin")
    at(TUESDAY + SECOND)
    claim_all()
    assert sentence(nightly, TUESDAY) == f"{UNDECIDED}No job is named 'tests.nothin'. Did you mean 'tests.nothing'?"


def test_it_says_that_beat_has_yet_to_compute_a_changed_timing(nightly, at):
    at(TUESDAY + SECOND)
    Policy.objects.update(stale_since=ADDED + HOUR)
    stale = "its timing was changed, and beat has yet to compute it."
    assert sentence(nightly, TUESDAY) == f"{UNDECIDED}{stale}"
    assert sentence(nightly, NIGHTS[2]) == f"Whether it is due on 2025-03-05 at 02:00 (UTC) is not known yet: {stale}"


def test_it_says_that_the_clean_up_has_deleted_the_outcome(nightly, at):
    for night in NIGHTS[1:5]:
        at(night)
        claim_all()
    assert sum(retention.delete_ended(NIGHTS[3], {State.SUCCEEDED})) == 2
    for night in NIGHTS[1:3]:
        answer = ask(nightly, night)
        assert answer.sentence == (
            f"It was due on {night:%Y-%m-%d} at 02:00 (UTC), but the clean-up has deleted what came of it:"
            " it has deleted runs due up to 2025-03-05 02:00."
        )
        assert (answer.run, answer.due_at) == (None, night)
    assert ask(nightly, NIGHTS[3]).run is not None


def test_it_says_that_the_ledger_has_lost_an_outcome(claimed, nightly):
    claimed.delete()
    assert sentence(nightly, TUESDAY) == (
        f"{DUE} by its timing, but the ledger has no outcome: the row was deleted, or a clock or a zone was wrong."
    )


def test_it_tells_what_the_ledger_knows_of_a_schedule_whose_timing_cannot_be_computed(claimed, nightly):
    CrontabSchedule.objects.update(hour="99")
    calendar.sweep()
    assert sentence(nightly, TUESDAY).startswith(f"{DUE} and is waiting")
    assert sentence(nightly, NIGHTS[2]) == (
        "It will not be due on 2025-03-05 at 02:00 (UTC), because it cannot be computed: Hour: choose"
        " from 0 to 23, not 99."
    )


def test_it_answers_where_a_machine_lacks_the_zone_of_a_timing(claimed, nightly):
    unknown = Policy.objects.get().timing.replace("UTC", "Mars/Olympus")
    Policy.objects.update(timing=unknown)
    assert ask(nightly, TUESDAY).run == claimed
    assert sentence(nightly, NIGHTS[2]).startswith("It will not be due")


# --- future moments -------------------------------------------------------------------------------------------------

WILL = "It will be due on 2025-03-06 at 02:00 (UTC)"
FUTURE = NIGHTS[3]


def test_it_says_that_nothing_speaks_against_a_moment_to_come(nightly):
    answer = ask(nightly, FUTURE + 30 * SECOND)
    assert answer.sentence == f"{WILL}, and nothing speaks against its run."
    assert (answer.run, answer.due_at, answer.before, answer.after) == (None, FUTURE, NIGHTS[2], NIGHTS[4])


def test_it_says_when_it_will_not_be_due(nightly):
    assert sentence(nightly, FUTURE + HOUR) == (
        "It will not be due on 2025-03-06 at 03:00 (UTC); the nearest due moments are 2025-03-06 02:00"
        " and 2025-03-07 02:00."
    )


@pytest.mark.parametrize(
    ("until", "catch_up", "told"),
    [
        (None, "none", ", but will be skipped: paused by ada: maintenance."),
        (NIGHTS[4], "none", ", but will be skipped: paused by ada until 2025-03-07 02:00:00 UTC: maintenance."),
        (NIGHTS[2], "none", ", and nothing speaks against its run."),
        (
            *(None, "latest"),
            ", but is held back until the pause ends: paused by ada: maintenance; catch-up after it: latest.",
        ),
    ],
)
def test_it_says_that_a_pause_speaks_against_a_moment(nightly, until, catch_up, told):
    Policy.objects.pause("ada", "maintenance", until, catch_up)
    Policy.objects.update(paused_at=ADDED)
    assert sentence(nightly, FUTURE) == f"{WILL}{told}"


@pytest.mark.parametrize(("moments", "is_skipped"), [(2, False), (3, True)])
def test_it_says_that_an_operator_chose_to_skip_a_moment(nightly, moments, is_skipped):
    Policy.objects.update(skip_next=moments, skip_from=ADDED)
    told = ", but will be skipped: by hand: an operator chose to skip the next due moments."
    assert sentence(nightly, FUTURE) == f"{WILL}{told if is_skipped else ', and nothing speaks against its run.'}"


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (3, f"{WILL}, and nothing speaks against its run."),
        (
            2,
            (
                "It will not run on 2025-03-06 at 02:00 (UTC): it has 2 runs left, the last of them due on"
                " 2025-03-05 02:00."
            ),
        ),
        (
            1,
            (
                "It will not run on 2025-03-06 at 02:00 (UTC): it has 1 run left, the last of them due on"
                " 2025-03-04 02:00."
            ),
        ),
        (0, "It will not run on 2025-03-06 at 02:00 (UTC): it has no runs left."),
    ],
)
def test_it_says_that_the_last_run_comes_before_a_moment(nightly, left, told):
    Policy.objects.update(remaining_runs=left)
    assert sentence(nightly, FUTURE) == told


def test_it_counts_only_so_many_moments(at):
    at(ADDED)
    schedule = make_schedule(every=SECOND, policy={"remaining_runs": 2**31 - 1})
    assert sentence(schedule, ADDED + 5 * HOUR) == (
        "It will be due on 2025-03-03 at 17:00 (UTC), after more than 10,000 other moments: ask again later what speaks"
        " against it."
    )
    assert "nothing speaks against" in sentence(schedule, ADDED + 2 * HOUR)
    Policy.objects.update(remaining_runs=None)
    assert "nothing speaks against" in sentence(schedule, datetime(9998, 1, 1, tzinfo=UTC))


def test_it_says_that_a_schedule_cannot_run(nightly):
    Policy.objects.update(invalid_reason="No job is named 'x'.")
    assert sentence(nightly, FUTURE) == f"{WILL}, but cannot run: No job is named 'x'."


# --- any moment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(1, 12, 31, tzinfo=UTC),
        datetime(9999, 1, 1, tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone.get_fixed_timezone(600)),
        datetime.max.replace(tzinfo=timezone.get_fixed_timezone(-600)),
    ],
)
def test_it_answers_for_a_moment_outside_of_the_calendar(claimed, nightly, moment):
    assert ask(nightly, moment) == Answer(OUT_OF_YEARS)


@pytest.mark.parametrize("moment", [datetime(2, 1, 1, tzinfo=UTC), datetime(9998, 12, 31, 23, 59, 59, tzinfo=UTC)])
@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Niue"])
def test_it_answers_for_the_first_and_the_last_moment_of_the_calendar(claimed, nightly, settings, moment, zone):
    settings.TIME_ZONE = zone
    assert ask(nightly, moment).sentence.startswith(("It did not exist on ", "It will not be due on "))


def test_it_refuses_a_moment_without_a_time_zone(nightly):
    with pytest.raises(Invalid, match="has no time zone: add its offset"):
        what_happened(nightly, datetime(2025, 3, 3))  # noqa: DTZ001 - that is the point


def test_it_answers_in_few_queries(claimed, nightly, django_assert_max_num_queries):
    for moment in (TUESDAY, TUESDAY + HOUR, NIGHTS[0], FUTURE, FUTURE + HOUR):
        with django_assert_max_num_queries(16):
            ask(nightly, moment)


@pytest.mark.parametrize("seed", range(4))
def test_it_knows_which_moments_of_any_history_were_due(at, seed):
    """Compared with the oracle of test_past, at due moments and at others, before and after beat has decided."""
    chance = random.Random(seed)
    lives = history(chance)
    at(lives[0].since)
    schedule = make_schedule(start_time=START, policy={"catch_up": "all", "overlap": "allow"}, **lives[0].columns())
    for life in lives[1:]:
        if chance.random() < 0.5:
            at(life.since - MINUTE / 4)
            claim_all()
        at(life.since)
        edit(schedule, **life.columns())
    at(END - MINUTE / 2)
    known = [moment for moment in due_in(lives) if moment > lives[0].since]
    asked = {*chance.sample(known, min(len(known), 25)), *chance.sample(MINUTES, 25), lives[0].since, BEGIN}
    for decided in (False, True):
        for moment in sorted(asked):
            answer = ask(schedule, moment)
            assert answer.due_at == (moment if moment in known else None)
            assert answer.before == max((each for each in known if each < moment), default=None)
            following = min((each for each in known if each > moment), default=None)
            assert answer.after == following or (
                following is None and (answer.after is None or answer.after > known[-1])
            )
            assert not decided or bool(answer.run) == (moment in known)
        claim_all()
