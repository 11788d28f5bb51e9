"""Each act on schedules and runs is one function for all doors."""

import threading
from datetime import timedelta
from uuid import UUID

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery.signals import before_task_publish
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection, transaction
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import EncodeError
from kombu.exceptions import OperationalError as BrokerError

from jobs.beat import claim
from jobs.ledger import backfills, outbox, outcomes, requests, sending
from jobs.models import Actor, AuditEntry, Backfill, Door, Policy, Run, State, StoredFile, database_now
from jobs.monitoring import statistics
from jobs.rules.errors import Invalid
from jobs.schedules import acts
from jobs.toolkit import uploads
from tests.making import blocked, elsewhere, make_due, make_run, make_schedule, only_where_rows_are_locked
from tests.waiting import DEADLINE

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
    user = User.objects.create_superuser("ada")
    assert ACTS[noted](Actor.of_user(user, Door.ADMIN)) == 1
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.user_key, entry.door, entry.token) == ("ada", str(user.pk), "admin", "")
    assert (entry.kind, entry.key, entry.name, entry.summary) == ("schedule", str(schedule.pk), "it", noted)


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
    assert acts.disable(ALL(), ADA) == 2
    assert set(ALL().values_list("enabled", flat=True)) == {False}
    assert {entry.key for entry in AuditEntry.objects.all()} == {str(good.pk), str(bad.pk)}


def test_it_records_a_name_that_is_too_long_with_a_mark_where_it_is_cut():
    make_schedule()
    for name, kept in (("a" * 254, "a" * 254), ("a" * 255, "a" * 253 + "…")):
        acts.pause(ALL(), name)
        assert Policy.objects.get().paused_by == kept


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: acts.pause(ALL(), ADA, until=database_now() - HOUR), "next hundred years"),
        (lambda: acts.pause(ALL(), ADA, "x" * 501), "one line of at most 500 characters"),
        (lambda: acts.pause(ALL(), ADA, "two\nlines"), "one line"),
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


@only_where_rows_are_locked
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
        run, is_new = requests.start("tests.nothing", {}, "ada")
        assert redis.llen("celery") == 0
    assert sending.wait(DEADLINE)
    run.refresh_from_db()
    assert (is_new, run.state, redis.llen("celery")) == (True, State.QUEUED, 1)


def test_it_sends_with_a_new_session_after_one_has_broken(redis):
    """A server that restarts ends the session of the thread, which a busy process may keep for hours."""
    first, second = make_run(), make_run()

    def restart(**_: object) -> None:
        before_task_publish.disconnect(restart)
        sending.send_after_commit([second])  # called in the thread: it stays for this run
        connection.ensure_connection()
        connection.connection.close()

    before_task_publish.connect(restart)
    sending.send_after_commit([first])
    assert sending.wait(DEADLINE)
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, second.state, redis.llen("celery")) == (State.WAITING, State.QUEUED, 2)


def test_it_runs_valid_schedules_and_says_why_it_refuses_the_rest(redis):
    good, bad = make_schedule("good"), make_schedule("bad", task="tests.gone")
    requested = requests.run_now([bad, good], ADA)
    assert [run.schedule_name for run in requested.runs] == ["good"]
    assert [(schedule, why[:16]) for schedule, why in requested.refused] == [(bad, "No job is named ")]
    assert sending.wait(DEADLINE)
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


@only_where_rows_are_locked
def test_it_notes_no_cancellation_of_a_run_that_ends_meanwhile():
    run = make_run(make_schedule(), State.RUNNING)
    with transaction.atomic():
        Run.objects.filter(pk=run.pk).update(state=State.SUCCEEDED, finished_at=database_now())
        thread = blocked(lambda: requests.cancel(Run.objects.filter(pk=run.pk), ADA))
    thread.join()
    run.refresh_from_db()
    assert (run.state, run.cancel_reason) == (State.SUCCEEDED, "")
    assert not AuditEntry.objects.exists()


def test_it_records_who_requested_a_backfill():
    schedule, user = make_schedule(cron={"minute": "30"}), User.objects.create_superuser("ada")
    end = database_now().replace(minute=0, second=0, microsecond=0)
    asked = Backfill(schedule=schedule, start=end - 3 * HOUR, end=end)
    assert backfills.backfill(asked, Actor.of_user(user)) == 3
    assert set(Run.objects.values_list("actor", flat=True)) == {"ada"}
    entry = AuditEntry.objects.get()
    assert (entry.act, entry.after["runs"]) == ("backfill", 3)
    assert entry.summary.startswith("Backfilled: backfill of it")


def backfill(actor: Actor = ADA) -> int:
    end = database_now().replace(minute=0, second=0, microsecond=0)
    return backfills.backfill(Backfill(schedule=ALL().get(), start=end - 3 * HOUR, end=end), actor)


ON_POLICIES = {name: act for name, act in ACTS.items() if name not in {"Enabled.", "Disabled."}} | {
    "Backfill": backfill
}


@only_where_rows_are_locked
@pytest.mark.parametrize("act", ON_POLICIES)
def test_it_acts_on_a_policy_while_its_schedule_is_being_saved(act):
    """A save locks the schedule first and the policy second: an act that waited for the schedule could deadlock."""
    make_schedule(cron={"minute": "30"}, policy={"paused_at": database_now()})
    with transaction.atomic():
        ALL().update(description="new")
        assert elsewhere(lambda: ON_POLICIES[act](ADA))


@only_where_rows_are_locked
@pytest.mark.parametrize("act", [*ACTS, "Backfill"])
def test_it_holds_no_schedule_while_it_waits_for_a_policy(act):
    """A deletion locks the policy first and the schedule second."""
    make_schedule(cron={"minute": "30"}, enabled=act != "Enabled.", policy={"paused_at": database_now()})
    with transaction.atomic():
        Policy.objects.select_for_update().get()
        thread = blocked(lambda: (ACTS | ON_POLICIES)[act](ADA))
        ALL().select_for_update(nowait=True).get()  # raises OperationalError where another holds it
    thread.join()


@only_where_rows_are_locked
@pytest.mark.parametrize("act", ACTS)
def test_it_locks_rows_in_the_order_of_their_keys(act):
    first, second = (make_schedule(name, policy={"paused_at": database_now()}) for name in ("s1", "s2"))
    rows = ALL() if act in {"Enabled.", "Disabled."} else Policy.objects.all()
    backwards = {name: lambda actor, name=name: in_order(name, "-pk", actor) for name in ACTS}
    with transaction.atomic():
        rows.select_for_update().get(pk=first.pk)
        thread = blocked(lambda: backwards[act](ADA))
        rows.select_for_update(nowait=True).get(pk=second.pk)  # raises OperationalError where the act has it
    thread.join()


def in_order(name: str, key: str, actor: Actor) -> int:
    chosen = ALL().order_by(key)
    calls = {"Enabled.": acts.enable, "Disabled.": acts.disable, "Paused.": acts.pause, "Resumed.": acts.resume}
    return calls[name](chosen, actor) if name in calls else acts.skip_next(chosen, actor, 1)


def unmarked(*_: object) -> None:
    raise OperationalError("server closed the connection unexpectedly")


def test_it_reports_a_committed_run_though_its_sending_cannot_be_noted(monkeypatch, redis):
    monkeypatch.setattr(outbox, "_mark_queued", unmarked)
    run, is_new = requests.start("tests.nothing", {}, "ada")
    assert (is_new, Run.objects.get()) == (True, run)


def test_it_keeps_the_file_of_a_committed_run_though_its_sending_fails(monkeypatch, redis, settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    monkeypatch.setattr(outbox, "_mark_queued", unmarked)
    uploads.take_upload(SimpleUploadedFile("a.csv", b"a,b\n1,2\n"), "ada")
    assert sending.wait(DEADLINE)
    kept = set(StoredFile.objects.values_list("id", flat=True))
    assert kept == {UUID(run.kwargs["file"]) for run in Run.objects.all()}
    assert len(kept) == 1


def interrupted(*_: object) -> None:
    raise SoftTimeLimitExceeded


def interrupted_in_the_flush(*_: object) -> None:
    raise BrokerError("the batch was not published") from SoftTimeLimitExceeded()


def interrupted_while_encoding(*_: object) -> None:
    raise EncodeError("the message was not encoded") from SoftTimeLimitExceeded()


@pytest.mark.parametrize("publish", [interrupted, interrupted_in_the_flush, interrupted_while_encoding])
def test_it_lets_a_process_end_that_is_asked_to_while_it_sends_a_run(monkeypatch, redis, publish):
    monkeypatch.setattr("jobs.messages.dispatch.Envelopes.publish", publish)
    run = make_run()
    with pytest.raises(SoftTimeLimitExceeded):
        outbox.send([run])
    run.refresh_from_db()
    assert run.state == State.WAITING


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (f"{'x' * 242}@example.org", f"{'x' * 242}@example.org"),
        ("x" * 300, "x" * 253 + "…"),
        ("", "unknown"),
        ("a\0b", "a\\0b"),
        ("ada\nroot\u202e", "ada\\nroot\\u202e"),
        ("Zoë O’Neill", "Zoë O’Neill"),
        ("\ud800", "\\ud800"),
        (7, "7"),
    ],
)
def test_it_names_an_actor_as_the_ledger_can_hold_it(redis, name, kept):
    make_schedule(cron={"minute": "30"})
    assert requests.start("tests.nothing", {}, Actor(name))[0].actor == kept
    assert acts.pause(ALL(), Actor(name)) == 1
    assert Policy.objects.get().paused_by == kept
    assert backfill(Actor(name)) == 3


def test_it_takes_a_plain_name_for_an_actor(redis):
    make_schedule(cron={"minute": "30"})
    assert [acts.disable(ALL(), "cron"), acts.enable(ALL(), "cron"), acts.pause(ALL(), "cron")] == [1, 1, 1]
    assert backfill("cron") == 3
    assert Policy.objects.get().paused_by == "cron"


@pytest.mark.parametrize(
    ("columns", "sentence"), [({"at_once": 0}, "at_once: .*greater than or equal to 1"), ({"which": "some"}, "which: ")]
)
def test_it_refuses_a_backfill_that_no_form_has_checked(columns, sentence):
    schedule = make_schedule(cron={"minute": "30"})
    end = database_now()
    with pytest.raises(Invalid, match=sentence):
        backfills.backfill(Backfill(schedule=schedule, start=end - HOUR, end=end, **columns), ADA)
    assert not Backfill.objects.exists()


def test_it_backfills_nothing_without_its_note(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no room for the note")

    make_schedule(cron={"minute": "30"})
    monkeypatch.setattr(backfills, "note", broken)
    with pytest.raises(RuntimeError):
        backfill()
    assert not Backfill.objects.exists()
    assert not Run.objects.exists()


def test_it_requests_the_other_runs_where_a_schedule_was_deleted_meanwhile(redis):
    good, gone = make_schedule("good"), make_schedule("gone")
    PeriodicTask.objects.filter(pk=gone.pk).delete()
    requested = requests.run_now([gone, good], ADA)
    assert [run.schedule_name for run in requested.runs] == ["good"]
    assert requested.refused == [(gone, "its schedule was deleted meanwhile")]
    assert sending.wait(DEADLINE)
    assert redis.llen("celery") == 1
