"""docs/commands.md and docs/doctor.md: each command of them works, with the output that stands below it.

Its one rule: all commands of a document run in their order, on one database. Moments, durations, ids and secrets
may differ.
"""

import re
import shlex
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import get_commands
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from jobs.models import Policy, Run, RunLog, State, StoredFile, Webhook, database_now, new_run_id
from jobs.monitoring.symptoms import QUESTIONS
from jobs.schedules import calendar
from tests.database.test_commands import call
from tests.making import make_run, make_schedule
from tests.pure.test_signatures import PLAIN
from tests.servers import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

SYMPTOMS = ROOT / "jobs" / "monitoring" / "symptoms.py"
DOCUMENT = ROOT / "docs" / "commands.md"
FORM = re.compile(r"`(\w+\.json)` is `([^`]+)`")
COMMAND = re.compile(r"^    \$ python manage\.py (.+)\n((?:    (?!\$ ).*\n|\n(?=    (?!\$ )))*)", re.MULTILINE)
SINCE = datetime(2025, 11, 1, tzinfo=UTC)
VARYING = [
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.\d+:]*", "MOMENT"),
    (r"punctual_[\w-]+", "SECRET"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{22}|\b[0-9a-f]{12}\b|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"\b[\d.:]+ (ms|s)\b|\b\d+:\d\d:\d\d\b", "LENGTH"),
    (r"(?m)^(id )?\d+\b|(?<=unmute )\d+", "KEY"),
    (r"(?<=MOMENT MOMENT )\S+(?= new server)", "USER"),
    (r'"schedule": \d+', '"schedule": KEY'),
]


@pytest.fixture
def installation(tmp_path, monkeypatch, settings) -> None:
    """What the document talks about."""
    settings.MEDIA_ROOT = tmp_path / "media"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    settings.WEBHOOK_KEYS = {"SHOP": [PLAIN]}
    for name, form in FORM.findall(" ".join(document().splitlines())):
        (tmp_path / name).write_text(form)
    make_schedule("Heartbeat", task="jobs.heartbeat", every=timedelta(minutes=1))
    nightly = make_schedule(
        "Nightly backup",
        task="jobs.backup_database",
        crontab=CrontabSchedule.objects.create(minute="0", hour="4", timezone="Europe/Berlin"),
        start_time=SINCE,
    )
    calendar.refresh(PeriodicTask.objects.all())
    Policy.objects.filter(pk=nightly.pk).update(known_since=SINCE, timing_since=SINCE)
    paused = {"due_at": datetime(2025, 11, 30, 3, tzinfo=UTC), "reason": "paused by ada: moving house"}
    make_run(nightly, State.SKIPPED, **paused, task=nightly.task)
    failed = make_documented(nightly, "9f2c51d0a7e3", State.FAILED)
    made = {"name": "report.pdf", "file": "report/report.pdf", "content_type": "application/pdf", "size": 48_213}
    key = UUID("0c0ffee0-0000-4000-8000-1a2b3c4d5e6f")
    StoredFile.objects.create(id=key, kind=StoredFile.Kind.REPORT, run_id=failed.id, **made)
    make_documented(None, "5e6f7a8b9c0d", State.WAITING)
    done = make_documented(None, "3b7a04f1c2d8", State.SUCCEEDED)
    Webhook.objects.create(
        id=UUID(str(new_run_id())[:-12] + "0d1e2f3a4b5c"),
        source_name="shop",
        event="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        content_type="application/json",
        headers={"x-github-event": "push"},
        body=b'{"ref": "main"}\n',
        run=done,
    )
    RunLog.append(done.id, 1, "2026-11-30 20:15:04,512 INFO jobs.tasks.heartbeat: Alive.\n")
    user = User.objects.create_user("ada")
    user.user_permissions.set(Permission.objects.filter(codename__in=["add_run", "view_run"]))


def document() -> str:
    """The document, with a job of the tests in place of the one of docs/webhooks.md."""
    return DOCUMENT.read_text().replace("billing.paid", "tests.nothing")


def make_documented(schedule: PeriodicTask | None, part: str, state: State) -> Run:
    due_at = database_now() - timedelta(minutes=1)
    started_at = due_at + timedelta(milliseconds=84)
    executed = {
        "started_at": started_at,
        "finished_at": started_at + timedelta(seconds=2.3),
        "node": "celery@a",
        "pid": 7,
    }
    failed = {"reason": "OSError: [Errno 28] No space left on device", "error_class": "OSError"}
    return make_run(
        schedule,
        state,
        id=UUID(str(new_run_id())[:-12] + part),
        task=schedule.task if schedule else "jobs.heartbeat",
        due_at=due_at,
        **(executed if state != State.WAITING else {}),
        **(failed if state == State.FAILED else {}),
    )


def test_it_runs_every_command_of_the_document_with_the_output_below_it(installation):
    commands = COMMAND.findall(document())
    assert len(commands) == document().count("$ python manage.py") > 20
    for command, shown in commands:
        done = call(*shlex.split(command))
        assert (command, done.status) == (command, 0), done.err
        assert normal(shown) == normal(done.out + done.err), command


def test_it_runs_every_command_about_the_doctor_whose_answers_include_the_lines_below_it(installation, redis):
    document = (ROOT / "docs" / "doctor.md").read_text()
    commands = COMMAND.findall(document)
    assert len(commands) == document.count("$ python manage.py") == 3
    for command, shown in commands:
        done = call(*shlex.split(command))
        assert done.status in {0, 1}, done.err
        assert normal(shown), command
        assert set(normal(shown)) <= set(normal(done.out)), (command, done.out)


def test_it_explains_each_symptom_with_commands_that_exist():
    document = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| ([A-Z][^|]*?) \|", document, re.MULTILINE)
    assert rows == [symptom for symptom, _ in QUESTIONS.values()]
    named = {*re.findall(r"`manage\.py (\w+)", document), *re.findall(r"manage\.py (\w+)", SYMPTOMS.read_text())}
    assert named <= {*get_commands()}


def normal(text: str) -> list[str]:
    text = "\n".join(" ".join(line.split()) for line in text.splitlines())
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text)
    return [line for line in text.splitlines() if line]
