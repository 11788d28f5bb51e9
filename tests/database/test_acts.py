"""Each act on schedules and runs is one function for all doors."""

import threading
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection, transaction
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import EncodeError
from kombu.exceptions import OperationalError as BrokerError

from jobs.beat import claim
from jobs.ledger import backfills, outbox, outcomes, requests
from jobs.models import Backfill, Policy, Run, State, StoredFile, database_now
from jobs.models.audit import Actor
from jobs.monitoring import statistics
from jobs.rules.errors import Invalid
from jobs.schedules import acts
from jobs.toolkit import uploads
from tests.making import blocked, make_due, make_run, make_schedule, only_where_rows_are_locked

pytestmark = pytest.mark.django_db(transaction=True)
HOUR = timedelta(hours=1)
ADA = Actor("ada")
ALL = PeriodicTask.objects.all


ACTS = {
    "Enabled.": lambda actor: acts.enable(ALL(), actor),
    "Disabled.": lambda actor: acts.disable(ALL(), actor),
    "Paused.": lambda actor: acts.pause(ALL(), actor, "audit"),
    "Resumed.": lambda actor: acts.resume(ALL(), actor),
    "Told to skip 1 due moment.": lambda actor: acts.skip_next(ALL(), actor, 1),
}


@pytest.mark.parametrize("noted", ACTS)
def test_it_records_the_user_in_the_history_of_the_schedule(noted):
    schedule = make_schedule(policy={"paused_at": database_now()})
    user = User.objects.create_user("ada")
    assert ACTS[noted](Actor.of_user(user)) == 1
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.object_repr) == (user, str(schedule.pk), "it")
    assert entry.get_change_message() == noted
    assert entry.get_edited_object() == schedule


@pytest.mark.parametrize("noted", ACTS)
def test_it_rolls_an_act_back_when_its_history_entry_fails(noted, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no room for the note")

    make_schedule(policy={"paused_at": database_now()})
    before = list(PeriodicTask.objects.values("enabled")), list(Policy.objects.values())
    monkeypatch.setattr(acts, "note", broken)
    with pytest.raises(RuntimeError):
        ACTS[noted](ADA)
    assert before == (list(PeriodicTask.objects.values("enabled")), list(Policy.objects.values()))


def test_it_acts_on_a_schedule_that_was_created_without_a_signal():
    PeriodicTask.objects.bulk_create(
        [PeriodicTask(name="new", task="tests.nothing", interval=make_schedule().interval)]
    )
    assert acts.pause(PeriodicTask.objects.filter(name="new"), ADA) == 1
    assert Policy.objects.paused().get().schedule.name == "new"


def test_it_acts_on_all_schedules_even_if_a_row_cannot_be_read():
    good, bad = make_schedule("good"), make_schedule("bad")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {PeriodicTask._meta.db_table} SET start_time = 'infinity' WHERE id = %s", [bad.pk])
    user = User.objects.create_user("ada")
    assert acts.disable(ALL(), Actor.of_user(user)) == 2
    assert set(ALL().values_list("enabled", flat=True)) == {False}
    assert {entry.object_id for entry in LogEntry.objects.all()} == {str(good.pk), str(bad.pk)}


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: acts.pause(ALL(), ADA, until=database_now() - HOUR), "next hundred years"),
        (lambda: acts.pause(ALL(), ADA, "x" * 501), "longer than 500 characters"),
        (lambda: acts.pause(ALL(), ADA, catch_up="some"), "choose from none, latest, all"),
        (lambda: acts.skip_next(ALL(), ADA, -1), "from 0 to 10,000"),
        (lambda: acts.skip_next(ALL(), ADA, 10_001), "from 0 to 10,000"),
    ],
)
def test_it_refuses_an_act_with_invalid_values(act, sentence):
    make_schedule()
    with pytest.raises(Invalid, match=sentence):
        act()
    assert not Policy.objects.paused().exists()


def test_it_lets_people_act_on_the_same_schedules_at_the_same_time():
    for number in range(20):
        make_schedule(f"s{number}")
    barrier, numbers = threading.Barrier(4), []

    def person(number: int) -> None:
        barrier.wait()
        for _ in range(5):
            numbers.append(acts.disable(ALL().order_by("-pk" if number % 2 else "pk"), ADA))
            numbers.append(acts.pause(ALL(), ADA))
        connection.close()

    threads = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers == [20] * 40


def test_it_leaves_a_locked_schedule_to_the_next_claim():
    """Beat skips a locked row, so a save and a claim never wait for each other."""
    schedule = make_schedule()
    make_due(schedule)
    changed, claimed = threading.Event(), threading.Event()

    def editor() -> None:
        with transaction.atomic():
            PeriodicTask.objects.filter(pk=schedule.pk).update(description="new")
            changed.set()
            claimed.wait()
        connection.close()

    thread = threading.Thread(target=editor)
    thread.start()
    changed.wait()
    try:
        assert list(claim.claim_due()) == []
    finally:
        claimed.set()
        thread.join()
    assert len(next(claim.claim_due())) == 1


def test_it_shows_an_act_in_the_statistics_at_once(redis):
    make_schedule()
    assert statistics.figures()["schedules"]["enabled"] == 1
    acts.disable(ALL(), ADA)
    assert statistics.figures()["schedules"]["enabled"] == 0


def test_it_sends_a_requested_run_after_its_transaction_is_committed(redis):
    with transaction.atomic():
        run, is_new = requests.run_job("tests.nothing", {}, "ada")
        assert redis.llen("celery") == 0
    run.refresh_from_db()
    assert (is_new, run.state, redis.llen("celery")) == (True, State.QUEUED, 1)


def test_it_runs_valid_schedules_and_says_why_it_refuses_the_rest(redis):
    good, bad = make_schedule("good"), make_schedule("bad", task="tests.gone")
    requested = requests.run_now([bad, good], ADA)
    assert [run.schedule_name for run in requested.runs] == ["good"]
    assert [(schedule, why[:16]) for schedule, why in requested.refused] == [(bad, "No job is named ")]
    assert redis.llen("celery") == 1


def test_it_refuses_to_retry_a_run_that_is_not_over(redis):
    over, active = make_run(state=State.FAILED), make_run()
    requested = requests.retry([over, active], ADA)
    assert [(run.parent_id, run.actor) for run in requested.runs] == [(over.id, "ada")]
    assert requested.refused == [(active, "it is still waiting")]


def test_it_cancels_unstarted_runs_and_asks_running_ones_to_end():
    make_run()
    running = make_run(state=State.RUNNING)
    make_run(state=State.FAILED)
    assert requests.cancel(Run.objects.all(), ADA) == outcomes.Cancelled(ended=1, asked=1)
    running.refresh_from_db()
    assert (running.state, running.cancel_reason) == (State.RUNNING, "cancelled: by ada")


def test_it_records_who_requested_a_backfill():
    schedule, user = make_schedule(cron={"minute": "30"}), User.objects.create_user("ada")
    end = database_now().replace(minute=0, second=0, microsecond=0)
    asked = Backfill(schedule=schedule, start=end - 3 * HOUR, end=end)
    assert backfills.backfill(asked, Actor.of_user(user)) == 3
    assert set(Run.objects.values_list("actor", flat=True)) == {"ada"}
    assert LogEntry.objects.get().get_change_message().startswith("Backfilled: backfill of it")


@only_where_rows_are_locked
@pytest.mark.parametrize("act", ["backfill", *ACTS])
def test_it_holds_no_policy_while_it_waits_for_the_schedule(act):
    """Or it would deadlock with a save, which locks the schedule first."""
    schedule = make_schedule(cron={"minute": "30"}, policy={"paused_at": database_now()})
    end = database_now().replace(minute=0, second=0, microsecond=0)
    request = Backfill(schedule=schedule, start=end - 3 * HOUR, end=end)
    with transaction.atomic():
        PeriodicTask.objects.select_for_update().get()
        thread = blocked(lambda: backfills.backfill(request, ADA) if act == "backfill" else ACTS[act](ADA))
        Policy.objects.select_for_update(nowait=True).get()  # raises OperationalError where another holds it
    thread.join()


def unmarked(*_: object) -> None:
    raise OperationalError("server closed the connection unexpectedly")


def test_it_reports_a_committed_run_though_its_sending_cannot_be_noted(monkeypatch, redis):
    monkeypatch.setattr(outbox, "_mark_queued", unmarked)
    run, is_new = requests.run_job("tests.nothing", {}, "ada")
    assert (is_new, Run.objects.get()) == (True, run)


def test_it_keeps_the_file_of_a_committed_run_though_its_sending_fails(monkeypatch, redis, settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    for failing in (unmarked, interrupted):
        monkeypatch.setattr(outbox, "_mark_queued", failing)
        with suppress(SoftTimeLimitExceeded):
            uploads.take_upload(SimpleUploadedFile("a.csv", b"a,b\n1,2\n"), "ada")
    kept = set(StoredFile.objects.values_list("id", flat=True))
    assert kept == {UUID(run.kwargs["file"]) for run in Run.objects.all()}
    assert len(kept) == 2


def interrupted(*_: object) -> None:
    raise SoftTimeLimitExceeded


def interrupted_in_the_flush(*_: object) -> None:
    raise BrokerError("the batch was not published") from SoftTimeLimitExceeded()


def interrupted_while_encoding(*_: object) -> None:
    raise EncodeError("the message was not encoded") from SoftTimeLimitExceeded()


@pytest.mark.parametrize("publish", [interrupted, interrupted_in_the_flush, interrupted_while_encoding])
def test_it_lets_a_job_end_that_is_asked_to_while_it_requests_a_run(monkeypatch, redis, publish):
    monkeypatch.setattr("jobs.messages.dispatch.Envelopes.publish", publish)
    with pytest.raises(SoftTimeLimitExceeded):
        requests.run_job("tests.nothing", {}, "ada")
    assert Run.objects.get().state == State.WAITING
