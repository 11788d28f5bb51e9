"""Which parts of the system are not well? With the rows that beats, workers and senders leave behind."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from jobs.models import Channel, Node, Policy, Run, State, Trigger, database_now
from jobs.models.runs import new_run_id
from jobs.monitoring import system
from jobs.rules.health import Health
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=seconds) for seconds in (1, 60, 3600, 86_400))


def make_node(kind: str, name: str = "", ago: timedelta = timedelta(0), **columns: object) -> Node:
    """A node that started an hour ago, and reported last so long ago."""
    now = database_now()
    queues = "" if kind == "beat" else "celery"
    times = {"started_at": now - HOUR, "seen_at": now - ago}
    return Node.objects.create(
        **{"name": name or f"{kind}@here", "kind": kind, "queues": queues, "pid": 1} | times | columns
    )


@pytest.fixture
def processes():
    make_node("beat")
    make_node("worker")


def found() -> dict[str, str]:
    """The sentences about the parts that are not well now."""
    return {subject: finding.sentence for subject, finding in system.findings(database_now()).items()}


def made(ago: timedelta) -> dict[str, object]:
    """The columns of a run that was made and due so long ago."""
    milliseconds = int((database_now() - ago).timestamp() * 1000)
    run, due_at = new_run_id(), database_now() - ago
    old = type(run)(int=milliseconds << 80 | run.int & ((1 << 80) - 1))
    return {"id": old, "due_at": due_at, "last_due_at": due_at}


def sent(ago: timedelta, sends: int = 1, **columns: object) -> Run:
    """A run whose last message was sent so long ago."""
    at = database_now() - ago
    return make_run(**{"state": State.QUEUED, "sends": sends, "queued_at": at, "not_before": at + HOUR} | columns)


def test_it_finds_nothing_where_all_is_well(processes):
    schedule = make_schedule()
    make_run(schedule, State.RUNNING)
    make_run(schedule, State.SUCCEEDED)
    make_run()
    sent(SECOND)
    make_run(not_before=database_now() + HOUR, due_at=database_now() + HOUR)
    assert found() == {}


def test_an_empty_database_lacks_nothing():
    assert found() == {}


def test_it_misses_beat_and_workers_that_went_silent():
    make_schedule()
    make_node("beat", ago=3 * MINUTE)
    make_node("worker", ago=2 * MINUTE)
    findings = system.findings(database_now())
    beat, worker = findings.pop("beat"), findings.pop("worker")
    assert findings == {}
    expected = "No beat has reported for 3 min: no due moment gets a run. Start one: manage.py beat"
    assert (beat.health, beat.sentence) == (Health.DOWN, expected)
    assert beat.since == Node.objects.get(kind="beat").seen_at
    assert worker.sentence.startswith("No worker has reported for 2 min: no run starts. Start one: manage.py worker")


def test_it_misses_a_beat_that_was_stopped_but_not_one_that_restarts(processes):
    stopping = Node.objects.filter(kind="beat")
    stopping.update(stopped_at=database_now() - MINUTE / 2)
    assert found() == {}
    stopping.update(stopped_at=database_now() - 2 * MINUTE)
    assert [*found()] == ["beat"]
    make_node("beat", "beat@there")
    assert found() == {}


@pytest.mark.parametrize("kind", ["beat", "worker"])
def test_it_misses_what_has_never_reported_since_the_others_started(kind):
    make_schedule()
    other = make_node("worker" if kind == "beat" else "beat")
    assert found()[kind].startswith(f"No {kind} has reported for 1 h: ")
    Node.objects.filter(pk=other.pk).update(started_at=database_now())
    assert found() == {}
    other.delete()
    assert found()[kind].startswith(f"No {kind} has ever reported: ")


def test_it_misses_no_process_where_nothing_is_scheduled_and_nothing_waits():
    make_schedule(enabled=False)
    make_run(state=State.SUCCEEDED)
    assert found() == {}
    make_run()
    assert [*found()] == ["worker"]


def test_it_names_a_queue_that_no_worker_consumes(processes):
    sent(2 * MINUTE, queue="slow")
    sent(SECOND, queue="slow")
    sent(30 * SECOND, queue="new")
    finding = system.findings(database_now())
    assert [*finding] == ["queue:slow"]
    assert finding["queue:slow"].count == 2
    assert finding["queue:slow"].sentence == (
        "No worker consumes queue slow, where 2 runs wait, the oldest for 2 min. Start one: "
        "manage.py worker --queues slow"
    )
    make_node("worker", "slow@here", queues="slow")
    assert found() == {}


def test_it_looks_at_a_bounded_number_of_messages(processes, monkeypatch):
    monkeypatch.setattr(system, "MOST_SENT", 2)
    for _ in range(3):
        sent(HOUR, queue="slow")
    assert "where at least 2 runs wait, the oldest for 1 h" in found()["queue:slow"]


def test_a_queue_stays_named_while_its_run_is_sent_again(processes):
    run = sent(HOUR, sends=2, queue="slow")
    assert [*found()] == ["queue:slow"]
    Run.objects.filter(pk=run.pk).update(state=State.WAITING, not_before=database_now() + 5 * SECOND)
    assert [*found()] == ["queue:slow"]


def test_a_worker_that_is_missing_explains_all_queues():
    make_node("beat")
    make_node("worker", ago=HOUR)
    sent(HOUR, queue="slow")
    sent(HOUR)
    assert [*found()] == ["worker"]


def test_the_oldest_message_tells_the_backlog(processes, settings):
    sent(3 * MINUTE)
    sent(10 * SECOND, sends=4)  # after 20, 40 and 80 seconds
    assert found() == {}
    settings.QUEUE_AGE_ALERT = 149.0
    assert found()["backlog:celery"].startswith(
        "The oldest of 2 runs in queue celery has waited for 3 min. Its workers: "
    )
    Run.objects.filter(sends=1).delete()
    assert found()["backlog:celery"].startswith("The oldest of 1 run in queue celery has waited for 2 min 30 s. Its w")
    settings.QUEUE_AGE_ALERT = 160.0
    assert found() == {}


def test_the_queue_of_a_run_may_follow_from_its_options_and_its_task(processes):
    sent(HOUR, options={"queue": "own"})
    sent(HOUR, task="no.such.task")
    sent(HOUR, options={"exchange": "elsewhere", "routing_key": "x"})
    assert sorted(found()) == ["backlog:celery", "queue:own"]


@pytest.mark.parametrize("reason", ["celery@here holds it: 1/h", "celery@here starts others first: 1/h"])
def test_a_run_that_waits_for_a_rate_limit_is_no_backlog(processes, reason):
    run = sent(HOUR, reason=reason)
    assert found() == {}
    Run.objects.filter(pk=run.pk).update(reason="sent 8 times, no worker took it: the consumers are busy")
    assert [*found()] == ["backlog:celery"]


def test_it_notices_runs_that_beat_cannot_send(processes):
    make_run(**made(2 * MINUTE), not_before=database_now() + 4 * SECOND)  # beat has taken it just now
    make_run(**made(3 * MINUTE), not_before=database_now())
    make_run(**made(30 * SECOND))
    finding = system.findings(database_now()).pop("publishing")
    assert finding.count == 2
    assert finding.sentence.startswith("The broker ")
    assert "has taken no message of 2 runs for 3 min" in finding.sentence
    Node.objects.filter(kind="beat").update(seen_at=database_now() - HOUR)
    make_schedule()
    assert [*found()] == ["beat"]


def test_it_shows_no_password_of_the_broker(processes, settings):
    from celery import current_app

    before = current_app.conf.broker_write_url
    current_app.conf.broker_write_url = "redis://:canary@elsewhere:6379/0"
    try:
        make_run(**made(2 * MINUTE))
        assert found()["publishing"].startswith(
            "The broker redis://:**@elsewhere:6379/0 has taken no message of 1 run for"
        )
    finally:
        current_app.conf.broker_write_url = before


def waits_for_turn(overlap: str) -> None:
    make_run(make_schedule(policy={"overlap": overlap}), **made(HOUR))


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_run(**made(HOUR) | {"id": new_run_id()}),  # a missed moment that was claimed just now
        lambda: make_run(**made(HOUR), attempt=2),
        lambda: make_run(**made(HOUR), sends=1),
        lambda: make_run(**made(HOUR), trigger=Trigger.BACKFILL),
        lambda: make_run(make_schedule(policy={"jitter": 2 * HOUR}), **made(HOUR)),
        lambda: make_run(**made(HOUR) | {"due_at": database_now()}),  # requested an hour ago for now
        lambda: make_run(**made(HOUR), not_before=database_now() + MINUTE),
        lambda: waits_for_turn("queue_one"),
        lambda: waits_for_turn("cancel_previous"),
    ],
)
def test_a_run_that_waited_on_purpose_does_not_blame_the_broker(processes, make):
    make()
    assert found() == {}


def ended(
    ago: timedelta, schedule: PeriodicTask | None = None, state: State = State.SUCCEEDED, **columns: object
) -> Run:
    at = database_now() - ago
    return make_run(schedule, state, **{"due_at": at, "last_due_at": at, "finished_at": at} | columns)


def test_it_says_why_nothing_deletes_old_runs(processes):
    ended(2 * DAY)
    assert found() == {}
    ended(4 * DAY)
    assert found() == {
        "retention": "Nothing has deleted old runs yet: no schedule of jobs.cleanup exists. Add one, daily."
    }
    schedule = make_schedule("Clean up", "jobs.cleanup")
    ended(3 * DAY + HOUR, schedule)
    ended(9 * DAY, schedule)
    assert found()["retention"].startswith("Nothing has deleted old runs for 3 d 1 h: its schedule Clean up: ok. See ")
    failed = ended(HOUR, schedule, State.FAILED, reason="OSError: full")
    assert found()["retention"].endswith(
        f"the last run of Clean up ended as failed: OSError: full. See manage.py runs show {failed.pk}"
    )
    PeriodicTask.objects.update(enabled=False)
    assert "its schedule Clean up is disabled. Enable it: manage.py schedules enable 'Clean up'" in found()["retention"]
    ended(HOUR / 2, schedule)
    assert found() == {}


def test_a_paused_clean_up_is_named_as_paused(processes):
    schedule = make_schedule("Clean up", "jobs.cleanup")
    Policy.objects.filter(schedule=schedule).pause("ada", "it is slow")
    ended(4 * DAY)
    assert "its schedule Clean up: paused by ada" in found()["retention"]


def test_it_repeats_the_faults_that_nodes_report(processes):
    make_node("stranger", "celery@stock", problem="celery@stock consumes queue celery: stop it.")
    make_node("worker", "celery@copy", problem="This database belongs to 'live'.")
    make_node("worker", "celery@gone", ago=HOUR, problem="It is gone.")
    assert found() == {
        "stranger:celery@stock": "celery@stock consumes queue celery: stop it.",
        "node:celery@copy": "This database belongs to 'live'.",
    }


def test_it_names_a_channel_that_fails_for_five_minutes(processes):
    def make_channel(name: str, ago: timedelta, **columns: object) -> None:
        since = {"problem": "the server refuses it", "problem_since": database_now() - ago}
        Channel.objects.create(**{"name": name} | since | columns)

    make_channel("mail", 10 * MINUTE)
    make_channel("new", MINUTE)
    make_channel("off", HOUR, is_enabled=False)
    make_channel("well", HOUR, problem="", problem_since=None)
    assert found() == {"channel:mail": "Nothing could be sent through it for 10 min: the server refuses it"}


def test_each_part_has_a_name_for_people():
    subjects = ["beat", "worker", "queue:slow", "backlog:slow", "publishing", "retention"]
    subjects += ["stranger:celery@stock", "node:celery@a", "channel:mail", "queue:a:b"]
    titles = ["Beat", "Workers", "Queue slow", "The backlog of queue slow", "Sending to the broker", "The clean-up"]
    titles += ["The stranger celery@stock", "celery@a", "Channel mail", "Queue a:b"]
    assert [system.title(subject) for subject in subjects] == titles


def test_a_subject_fits_its_column(processes):
    sent(HOUR, queue="q" * 200)
    (subject,) = found()
    assert len(subject) == 200


def test_many_rows_need_no_more_queries(processes):
    def count() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            system.findings(database_now())
        return len(queries)

    sent(HOUR, queue="slow")
    ended(5 * DAY)
    few = count()
    for _ in range(20):
        sent(HOUR, queue="slow")
        make_run(**made(HOUR))
        ended(5 * DAY)
    assert count() == few <= 12
