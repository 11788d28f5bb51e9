"""`manage.py doctor`: each symptom is found where it is, by the rows that it leaves, and absent where all is well.

Its one rule: a test shows one symptom in an installation that is healthy otherwise. tests/live/test_doctor.py has the
symptoms that need processes and servers.
"""

import pytest
from celery import current_app
from django.db.migrations.recorder import MigrationRecorder
from django_celery_beat.models import PeriodicTask

from jobs.models import Attempt, Channel, Condition, Node, Policy, Run, State, UsualRuntime, database_now
from jobs.monitoring import asked, doctor, symptoms
from jobs.schedules import calendar
from tests.database.test_commands import call
from tests.database.test_system import DAY, HOUR, MINUTE, SECOND, ended, made, make_node, sent
from tests.making import make_due, make_run, make_schedule
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """A busy machine may take its time: only an answer that never comes is missing."""
    monkeypatch.setattr(asked, "DEADLINE", DEADLINE)
    monkeypatch.setattr(symptoms, "DEADLINE_OF_SERVERS", DEADLINE)


@pytest.fixture
def healthy(redis, settings) -> PeriodicTask:
    """A beat, a worker, a schedule that is well, and a channel."""
    settings.DEBUG = True  # otherwise the checks for production warn of the settings of tests
    settings.REMOTE_CONTROL = "inspect"
    make_node("beat")
    make_node("worker")
    Channel.objects.create(name="mail", addresses=["ada@example.org"])
    schedule = make_schedule("report")
    calendar.refresh(PeriodicTask.objects.all())
    ended(MINUTE, schedule)
    return schedule


def answers() -> dict[str, doctor.Answer]:
    return {each.question: each for each in doctor.examine()}


def found() -> dict[str, str]:
    """The evidence of each symptom that is found."""
    return {name: each.evidence for name, each in answers().items() if each.verdict == "found"}


def test_it_finds_no_symptom_where_all_is_well(healthy):
    assert found() == {}
    cannot_tell = {name for name, each in answers().items() if each.verdict == "cannot tell"}
    assert cannot_tell <= {"memory", "settings"}  # no worker is here, and DEBUG may be on
    assert answers()["executing"].evidence == "1 live worker (celery), no run running"
    assert answers()["beat"].evidence == "1 live beat, 1 enabled schedule, none of them overdue"
    assert " answered in " in answers()["broker"].evidence


def test_jobs_are_not_executed_without_a_worker_or_a_consumer(healthy):
    sent(HOUR, queue="slow")
    answer = answers()["executing"]
    assert answer.evidence.startswith("queue:slow: No worker consumes queue slow, where 1 run waits")
    assert answer.command == "manage.py worker --queues slow"
    Node.objects.filter(kind="worker").delete()
    assert answers()["executing"].evidence.startswith("worker: No worker has reported for 1 h")
    assert answers()["executing"].command == "manage.py worker"


def test_jobs_fail_silently_if_no_channel_tells(healthy):
    ended(MINUTE, None, State.FAILED, reason="ValueError: no")
    assert "silent" not in found()
    Channel.objects.update(is_enabled=False)
    assert found()["silent"].startswith("1 run failed in the last day, and no channel tells anyone: add one in the ad")
    assert found()["silent"].endswith(": ValueError: no")
    Run.objects.filter(state=State.FAILED).update(finished_at=database_now() - 2 * DAY)
    assert found() == {}


def test_a_success_that_is_suspiciously_short_fails_silently(healthy):
    ended(SECOND, healthy, started_at=database_now() - SECOND)
    Policy.objects.filter(pk=healthy.pk).update(invalid_reason="")
    UsualRuntime.objects.create(schedule=healthy, runs=20, shortest=HOUR, longest=None)
    Condition.objects.create(subject="x", schedule=healthy, health="short", sentence="", since=database_now())
    assert found()["silent"].startswith("report: It succeeded after only ")
    assert answers()["silent"].command == "manage.py doctor report"


def test_jobs_are_slow_if_one_runs_too_long(healthy):
    run = make_run(healthy, State.RUNNING, started_at=database_now() - HOUR)
    assert found() == {}
    assert "has been running for 1 h" in answers()["slow"].evidence
    Policy.objects.update(longest_runtime=MINUTE)
    assert found() == {"slow": "report: It has been running for 1 h on celery@here."}
    run.delete()
    assert found() == {}


def test_the_broker_fails_if_runs_are_not_sent(healthy):
    make_run(**made(HOUR))
    assert "has taken no message of 1 run for 1 h" in found()["broker"]


def test_results_are_missing_if_no_backend_keeps_them(healthy, monkeypatch):
    assert "keep results in " in answers()["results"].evidence
    monkeypatch.setattr(current_app.conf, "result_backend", "disabled://")
    monkeypatch.setattr(current_app._get_current_object(), "_local", type(current_app._local)())
    monkeypatch.setattr(current_app._get_current_object(), "_backend_cache", None)
    assert "the setting RESULT_BACKEND turns them off" in found()["results"]


def test_beat_schedules_nothing_if_it_is_gone_or_claims_nothing(healthy):
    make_due(healthy, MINUTE / 2)
    assert found() == {}
    make_due(healthy, HOUR)
    assert found()["beat"] == "1 due schedule without a run, the first is report since 1 h: read the log of beat"
    Policy.objects.update(next_due_at=None, invalid_reason="The crontab has no day 31.")
    assert found()["beat"] == "report: The crontab has no day 31."
    Node.objects.filter(kind="beat").delete()
    assert found()["beat"].startswith("beat: No beat has reported for 1 h")


def test_workers_die_if_they_fall_silent_or_runs_are_lost(healthy):
    run = make_run(healthy, State.RUNNING)
    Attempt.objects.create(run=run, number=1, outcome="lost", reason="its process died")
    answer = answers()["dying"]
    assert answer.evidence == "no worker fell silent; no run and 1 attempt lost in the last day: its process died"
    assert answer.command == f"manage.py runs show {run.pk}"
    ended(MINUTE, None, State.LOST, reason="lost with celery@b")
    assert found()["dying"].endswith("; 1 run and 1 attempt lost in the last day: lost with celery@b")
    Attempt.objects.update(ended_at=database_now() - 2 * DAY)
    Attempt.objects.create(run=run, number=2, outcome="retried", reason="ValueError: no")
    Run.objects.filter(state=State.LOST).delete()
    assert found() == {}
    make_node("worker", "celery@b", ago=HOUR)
    assert found() == {
        "dying": "1 worker fell silent (celery@b); no run and no attempt lost in the last day: read its log"
    }


def test_queues_fill_up_if_messages_wait_for_long(healthy):
    sent(HOUR)
    assert found()["queues"].startswith("backlog:celery: The oldest of 1 run in queue celery has waited for 1 h")


def test_it_names_a_migration_that_is_not_applied(healthy):
    recorder = MigrationRecorder.Migration.objects
    last = recorder.filter(app="jobs").order_by("-name")[0]
    recorder.filter(pk=last.pk).delete()
    try:
        answer = answers()["database"]
    finally:
        last.save()
    assert answer.evidence == f"1 migration not applied, the first is jobs.{last.name}"
    assert answer.command == "manage.py migrate"


def test_it_names_the_warnings_of_the_checks_for_production(healthy, settings):
    settings.DEBUG = False
    settings.SESSION_COOKIE_AGE = 400 * 86_400
    settings.SILENCED_SYSTEM_CHECKS = []
    answer = answers()["settings"]
    assert answer.verdict == "found"
    assert answer.command == "manage.py check --deploy"
    settings.DEBUG = True
    assert answers()["settings"].verdict != "fine"


def test_it_says_what_the_broker_cannot_do(healthy, monkeypatch):
    make_schedule("urgent", priority=9)
    assert found() == {}
    monkeypatch.setattr(current_app.conf, "broker_write_url", "filesystem://")
    assert "it ignores the priority of 1 schedule" in found()["abilities"]


def test_the_command_prints_a_table_or_json_and_says_by_its_status_whether_it_found_one(healthy):
    answer = call("doctor")
    assert answer.out.splitlines()[0].split() == ["ANSWER", "SYMPTOM", "EVIDENCE", "COMMAND"]
    assert len(answer.out.splitlines()) == 1 + len(symptoms.QUESTIONS)
    assert (answer.status, answer.err) == (0, "0 symptoms found.\n")
    sent(HOUR)
    answer = call("doctor", "--json")
    assert answer.status == 1
    assert {each["question"] for each in answer.json["answers"] if each["verdict"] == "found"} == {"queues"}
    assert {*answer.json["answers"][0]} == {"question", "symptom", "verdict", "evidence", "command"}


def test_it_shows_no_secret(healthy, settings):
    settings.JOB_SECRETS = {"KEY": "canary-canary"}
    Channel.objects.all().delete()
    ended(MINUTE, None, State.FAILED, reason="ValueError: canary-canary")
    out = call("doctor").out
    assert "ValueError: " in out
    assert "canary" not in out


def test_it_says_how_a_schedule_is_and_when_it_is_due(healthy):
    answer = call("doctor", "report")
    assert answer.status == 0
    assert [line.split()[0] for line in answer.out.splitlines()][:4] == ["id", "name", "status", "health"]
    assert answer.out.count("due ") == 5
    Policy.objects.update(invalid_reason="The crontab has no day 31.")
    answer = call("doctor", "report", "--json")
    assert (answer.status, answer.json["health"], answer.json["sentence"]) == (
        1,
        "blocked",
        "The crontab has no day 31.",
    )


def test_it_says_what_became_of_a_moment(healthy):
    at = (database_now() + 2 * DAY).isoformat()
    answer = call("doctor", "report", "--at", at)
    assert (answer.status, answer.out.startswith("It will ")) == (0, True)
    assert call("doctor", str(healthy.pk), "--at", at, "--json").json["sentence"] == answer.out.strip()


def test_it_takes_a_part_of_a_name_only_if_it_is_clear(healthy):
    assert "report" in call("doctor", "EPOR").out
    make_schedule("a report")
    assert call("doctor", "report").status == 0
    several, none = call("doctor", "EPOR"), call("doctor", "invoice")
    assert (several.status, several.err) == (
        2,
        "Several schedules have 'EPOR' in their names: a report, report. Name one.",
    )
    assert (none.status, none.err) == (3, "There is no schedule 'invoice': `manage.py schedules list` shows all.")


@pytest.mark.parametrize("words", [["--at", "2026-11-30T04:00"], ["report", "--at", "tomorrow"], ["--unknown"]])
def test_it_refuses_wrong_usage(healthy, words):
    answer = call("doctor", *words)
    assert answer.status in {1, 2}
    assert answer.err
