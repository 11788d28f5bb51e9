"""`manage.py runs`, `schedules` and `token`: what they print, change and refuse, and their exit status."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.utils.timezone import localtime
from django_celery_beat.models import PeriodicTask
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.management import reading, schedules
from jobs.management.terminal import Terminal, duration, safe
from jobs.models import (
    ApiToken,
    AuditEntry,
    Backfill,
    Policy,
    Run,
    RunLog,
    State,
    StoredFile,
    Trigger,
    database_now,
)
from jobs.models.audit import Actor
from jobs.schedules import calendar
from tests.making import make_run, make_schedule
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
EVIL = "\x1b[2J[red]x[/red]\u202e\n\t:bomb:"


class Called(NamedTuple):
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*words: str, **options: Any) -> Called:
    """Call a command in this process."""
    out, err = StringIO(), StringIO()
    try:
        call_command(*words, stdout=out, stderr=err, **options)
    except CommandError as error:
        return Called(error.returncode, out.getvalue(), err.getvalue() + str(error))
    except SystemExit as end:
        return Called(int(end.code or 0), out.getvalue(), err.getvalue())
    return Called(0, out.getvalue(), err.getvalue())


def audited() -> list[tuple[str, str, str, str]]:
    return list(AuditEntry.objects.order_by("id").values_list("door", "actor", "act", "name"))


# --- runs -----------------------------------------------------------------------------------------------------------


def test_it_lists_runs_as_aligned_text_newest_first():
    make_run()
    now = database_now()
    times = {"due_at": now - HOUR, "started_at": now - HOUR + timedelta(seconds=2), "finished_at": now}
    last = make_run(make_schedule("日報"), state=State.FAILED, reason="ValueError: no\nmore", **times)
    head, first, second = call("runs", "list").out.splitlines()
    assert head.split() == ["ID", "STATE", "SCHEDULE", "OR", "JOB", "DUE", "LATE", "TOOK", "REASON"]
    due = f"{localtime(last.due_at):%Y-%m-%d %H:%M:%S}"
    assert first.split() == [
        *(str(last.id)[-12:], "failed", "日報", *due.split(), "2.0", "s", "0:59:58", "ValueError:"),
        "no\\nmore",
    ]
    assert head.index("DUE") == first.index(due) + len("日報")  # wide characters take two columns
    assert "waiting" in second


def test_it_filters_runs_by_everything_that_the_ledger_knows():
    schedule = make_schedule("mine")
    parent = make_run(schedule, State.FAILED, error_class="KeyError", node="w1", actor="ada", queue="mail")
    backfill = Backfill.objects.create(schedule=schedule, start=database_now() - HOUR, end=database_now(), actor="a")
    child = make_run(trigger=Trigger.RETRY, parent=parent, backfill=backfill, task="tests.note")
    for words, found in {
        ("--state", "failed"): parent,
        ("--state", "failed", "--state", "lost"): parent,
        ("--trigger", "retry"): child,
        ("--schedule", "mine"): parent,
        ("--schedule", str(schedule.pk)): parent,
        ("--job", "tests.note"): child,
        ("--queue", "mail"): parent,
        ("--node", "w1"): parent,
        ("--actor", "ada"): parent,
        ("--error", "KeyError"): parent,
        ("--backfill", str(backfill.id)): child,
        ("--parent", str(parent.id)[-12:]): child,
        ("--limit", "1"): child,
    }.items():
        (run,) = call("runs", "list", "--json", *words).json
        assert run["id"] == str(found.id), words
    assert len(call("runs", "list", "--json", "--since", "1 hour").json) == 2
    for words in (("--since", "2999-01-01"), ("--until", "2 hours"), ("--until", "2020-01-01T00:00+01:00")):
        nothing = call("runs", "list", *words)
        assert (nothing.status, nothing.out, nothing.err) == (0, "", "No run matches.\n")
        assert call("runs", "list", "--json", *words).json == []


def test_it_shows_a_run_that_is_named_by_a_part_of_its_id():
    run = make_run(
        state=State.FAILED, attempt=2, kwargs={"month": "2026-11"}, error_text="Traceback\n  here", reason="no"
    )
    run.attempts.create(number=1, outcome="failed", reason="first")
    key = str(run.id)
    for part in (key, key.upper(), key.replace("-", ""), key[-12:], key[-4:], key[:18], f" {key} "):
        shown = call("runs", "show", part)
        assert (shown.status, shown.err) == (0, "")
        assert re.search(rf"^id +{key}$", shown.out, re.MULTILINE)
    assert re.search(r'^arguments +\{"month": "2026-11"\}$', shown.out, re.MULTILINE)
    assert "Attempt 1 failed: first\nTraceback\n  here\n" in shown.out
    whole = call("runs", "show", key, "--json").json
    assert (whole["arguments"], whole["is_over"], whole["attempts"][0]["reason"]) == (run.kwargs, True, "first")


def test_it_names_no_run_by_too_little_or_by_the_part_of_several():
    first, second = UUID("01900000-0000-7000-8000-00000000abcd"), UUID("01900000-0000-7000-8000-11110000abcd")
    make_run(id=first)
    make_run(id=second)
    assert call("runs", "show", "11110000abcd").status == 0
    for part, status, sentence in (
        ("0000abcd", 2, "The ids of several runs begin or end with '0000abcd': give more characters."),
        ("01900000", 2, "The ids of several runs begin or end with '01900000': give more characters."),
        ("cd", 3, "There is no run 'cd': give its id, or at least 4 characters of its end."),
        ("%", 3, "There is no run '%': give its id, or at least 4 characters of its end."),
        ("ffff", 3, "There is no run 'ffff': it was deleted, or never existed."),
        ("0" * 33, 3, f"There is no run '{'0' * 33}': give its id, or at least 4 characters of its end."),
    ):
        assert call("runs", "show", part) == Called(status, "", sentence)


def test_it_starts_a_run_with_arguments_and_options_as_the_user_of_the_shell():
    words = ("tests.note", "path=/tmp/x=y", "--queue", "celery", "--priority", "3", "--delay", "1 h", "--key", "mine")
    run = call("runs", "start", "--json", *words).json
    assert (run["arguments"], run["queue"], run["priority"]) == ({"path": "/tmp/x=y"}, "celery", 3)
    stored = Run.objects.get(id=run["id"])
    assert (stored.trigger, stored.actor) == (Trigger.MANUAL, Actor.of_shell().name)
    assert timedelta(minutes=59) < stored.due_at - database_now() < timedelta(minutes=61)
    assert audited() == [("shell", stored.actor, "start", "tests.note")]
    again = call("runs", "start", *words)
    assert again.out == f"Run {stored.id} of tests.note.\n"
    assert again.err == f"A request with this key has made run {stored.id} already.\n"
    assert Run.objects.count() == 1


def test_it_reads_values_that_are_json_as_json_and_others_as_text():
    pairs = ["a=1", "b=true", "c=null", 'd="1"', "e=2026-11", 'f={"x": [1]}', "g=", "h=NaN", 'i={"x": 1, "x": 2}']
    assert reading.arguments_of(pairs, None) == {
        "a": 1,
        "b": True,
        "c": None,
        "d": "1",
        "e": "2026-11",
        "f": {"x": [1]},
        "g": "",
        "h": "NaN",
        "i": '{"x": 1, "x": 2}',
    }
    assert reading.arguments_of([], '{"a": [1.5]}') == {"a": [1.5]}


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["tests.none"], 3, "No job is named 'tests.none'"),
        (["tests.note"], 1, "path"),
        (["tests.note", "x"], 2, "'x' is no argument: write name=value, such as month=2026-11."),
        (["tests.note", "a=1", "a=2"], 2, "The argument 'a' is given twice."),
        (
            ["tests.note", "a=1", "--arguments", "{}"],
            2,
            "Give arguments as name=value or as --arguments JSON, not both.",
        ),
        (["tests.note", "--arguments", "[]"], 2, "The arguments must be a JSON object."),
        (["tests.note", "--arguments", '{"a": NaN}'], 2, "The arguments are not valid JSON"),
        (["tests.note", "path=\x1b"], 1, "control characters"),
        (["tests.nothing", "--key", ""], 1, "The key of a request is text"),
        (["tests.nothing", "--delay", "9000 days"], 1, "A run starts at the latest"),
        # Django gives the errors of argparse the status 1 here, and 2 in a shell.
        (["tests.nothing", "--delay=-5"], 1, "write a duration such as"),
        (["tests.nothing", "--delay", "9999999999 weeks"], 1, "write a duration such as"),
        (["tests.nothing", "--at", "9999-12-31T23:59-14:00"], 1, "is no moment"),
        (["tests.nothing", "--at", "2999-01-01"], 1, "A run starts at the latest"),
        (["tests.nothing", "--at", "tomorrow"], 1, "is no moment"),
        (["tests.nothing", "--priority", "2.5"], 1, "is not a whole number from 0 to 255"),
        (["tests.nothing", "--priority", "256"], 1, "is not a whole number from 0 to 255"),
        (["tests.nothing", "--queue", "no such"], 1, "queue"),
        (["tests.nothing", "\udcff=1"], 2, "is not valid UTF-8"),
        (["tests.nothing", "a=\0"], 2, "contains NUL"),
    ],
)
def test_it_refuses_to_start_what_cannot_run(words, status, sentence):
    refused = call("runs", "start", *words)
    assert (refused.status, refused.out) == (status, "")
    assert sentence in refused.err
    assert "\n" not in refused.err
    assert not Run.objects.exists()


def test_it_starts_a_run_with_a_file_as_an_upload_does(tmp_path, settings):
    settings.MEDIA_ROOT = tmp_path / "media"
    (tmp_path / "data.csv").write_bytes(b"a,b\n")
    words = ("runs", "start", "jobs.process_upload", "--file", str(tmp_path / "data.csv"), "--key", "mine")
    run = call(*words, "--json").json
    row = StoredFile.objects.get()
    assert run["arguments"] == {"file": str(row.id)}
    assert (row.name, row.content_type, row.size) == ("data.csv", "text/csv", 4)
    again = call(*words)
    assert again.err.startswith(f"A request with this key has made run {run['id']} already.\n")
    for wrong, status in (
        (["jobs.process_upload", "--file", str(tmp_path / "none")], 2),
        (["jobs.process_upload", "--file", str(tmp_path)], 2),
        (["jobs.process_upload", "--file", "/dev/zero"], 2),
        (["jobs.process_upload", "a=1", *words[3:5]], 2),
        (["jobs.process_upload", "--delay", "1 h", *words[3:5]], 2),
        (["tests.none", *words[3:5]], 3),
        (["tests.note", *words[3:5]], 1),
    ):
        assert call("runs", "start", *wrong).status == status, wrong
    assert (Run.objects.count(), StoredFile.objects.count()) == (1, 1)
    assert [act for _, _, act, _ in audited()] == ["start"]


def test_it_retries_and_cancels_runs_and_says_which_it_refused():
    over, active, running = make_run(state=State.FAILED), make_run(), make_run(state=State.RUNNING)
    retried = call("runs", "retry", str(over.id), str(active.id))
    new = Run.objects.get(parent=over)
    assert (retried.status, retried.out) == (1, f"Run {new.id} of it.\n")
    assert "it is still waiting." in retried.err
    assert retried.err.endswith("1 request refused (see above).")
    cancelled = call("runs", "cancel", str(active.id), str(running.id), str(active.id))
    assert cancelled == Called(0, "Cancelled 1 unstarted run.\nAsked 1 running run to end.\n", "")
    none = call("runs", "cancel", str(over.id))
    assert none == Called(1, "", f"No run was cancelled: all have ended ({over.id} failed).")
    assert [act for _, _, act, _ in audited()] == ["retry", "cancel", "cancel"]
    assert call("runs", "retry", "--json", str(over.id)).json[0]["parent"] == str(over.id)


def test_it_does_nothing_to_the_other_runs_when_one_does_not_exist():
    run = make_run()
    assert call("runs", "cancel", str(run.id), "01900000-0000-7000-8000-00000000abcd").status == 3
    run.refresh_from_db()
    assert run.state == State.WAITING


def test_it_tails_the_logs_of_all_attempts_of_a_run_that_is_over():
    run = make_run(state=State.FAILED, attempt=2, reason="ValueError: no", progress_done=3, progress_total=10)
    for attempt in (1, 2):
        RunLog.append(run.id, attempt, f"line of {attempt}\n\x1b]0;title\x07")
    tailed = call("runs", "tail", str(run.id))
    assert tailed.out == "line of 1\n\\x1b]0;title\\x07line of 2\n\\x1b]0;title\\x07"
    assert tailed.status == 1
    assert tailed.err.splitlines() == [
        "Attempt 2: ValueError: no.",
        f"Run {run.id} failed: ValueError: no.",
    ]


def test_it_waits_for_no_longer_than_the_timeout():
    run = make_run()
    late = call("runs", "tail", str(run.id), "--timeout", "0")
    assert (late.status, late.err.splitlines()[-1]) == (
        4,
        f"Not over within 0 s, and going on: {run.id} (unfinished).",
    )
    late = call("runs", "start", "tests.nothing", "--wait", "--timeout", "10 ms")
    assert late.status == 4
    assert Run.objects.active().count() == 2
    late = call("runs", "start", "tests.nothing", "--wait", "--timeout", "10 ms", "--json")
    assert (late.status, late.json["state"] in {"waiting", "queued"}) == (4, True)


# --- schedules ------------------------------------------------------------------------------------------------------


def test_it_lists_and_shows_schedules():
    first = make_schedule("daily", task="tests.note", args=["x"], queue="mail")
    second = make_schedule("hourly", enabled=False)
    make_run(first, State.SUCCEEDED)
    head, *lines = call("schedules", "list").out.splitlines()
    assert head.split() == ["ID", "NAME", "JOB", "TIMING", "STATUS", "NEXT", "DUE", "LAST", "RUN"]
    assert [line.split()[1] for line in lines] == ["daily", "hourly"]
    assert lines[0].endswith("succeeded")
    for words, found in {
        ("--enabled",): first,
        ("--disabled",): second,
        ("--name", "HOUR"): second,
        ("--job", "tests.note"): first,
        ("--queue", "mail"): first,
        ("--limit", "1"): first,
    }.items():
        (shown,) = call("schedules", "list", "--json", *words).json
        assert shown["name"] == found.name, words
    assert call("schedules", "list", "--paused") == Called(0, "", "No schedule matches.\n")
    shown = call("schedules", "show", "daily")
    assert re.search(r'^args +\["x"\]$', shown.out, re.MULTILINE)
    assert re.search(r"^due 5 +\d{4}-", shown.out, re.MULTILINE)
    assert "succeeded" in shown.out.split("LAST RUNS")[1]
    whole = call("schedules", "show", str(first.pk), "--json").json
    assert (whole["args"], len(whole["due"]), whole["last_run"]["state"]) == (["x"], 5, "succeeded")


def test_it_prefers_the_name_of_a_schedule_to_an_id():
    other = make_schedule("other")
    named = make_schedule(str(other.pk))
    assert reading.schedule_of(str(other.pk)) == named
    for unknown in ("none", "0", "-1", "99999999999999999999999", "²", "1" * 5000):
        refused = call("schedules", "show", "--", unknown)
        assert (refused.status, refused.out) == (3, "")
        assert "`manage.py schedules list` shows all." in refused.err


def test_it_acts_on_schedules_as_the_user_of_the_shell():
    one, two = make_schedule("one"), make_schedule("two")
    policies = Policy.objects.filter(pk=one.pk)
    assert (
        call("schedules", "pause", "one", "two", "--reason", "moving", "--until", "2 hours").out
        == "Paused 2 schedules.\n"
    )
    assert policies.get().pause_reason == "moving"
    assert timedelta(minutes=119) < policies.get().paused_until - database_now() < timedelta(minutes=121)
    (shown,) = call("schedules", "pause", "one", "--json", "--catch-up", "latest").json
    assert (shown["pause"]["until"], shown["pause"]["catch_up"]) == (None, "latest")
    assert call("schedules", "resume", "one", "two") == Called(0, "Resumed 2 schedules.\n", "")
    assert call("schedules", "resume", "one") == Called(0, "", "None of these schedules was paused.\n")
    assert call("schedules", "skip", "one", "3").out == "one skips the next 3 due moments.\n"
    assert policies.get().skip_next == 3
    assert call("schedules", "skip", "one", "0").out == "one skips no due moment.\n"
    assert policies.get().skip_next == 0
    assert call("schedules", "disable", "one").out == "Disabled 1 schedule.\n"
    assert call("schedules", "enable", "one").out == "Enabled 1 schedule.\n"
    assert call("schedules", "run", "one", "two").out.count("\n") == 2
    assert call("schedules", "delete", "two", "--yes").out == "Deleted 1 schedule.\n"
    assert not PeriodicTask.objects.filter(name="two").exists()
    acts = [act for door, actor, act, name in audited() if name == "one"]
    assert acts == ["pause", "pause", "resume", "skip", "skip", "disable", "enable", "run"]
    assert {(door, actor) for door, actor, *_ in audited()} == {("shell", Actor.of_shell().name)}
    assert two.pk


NEW = {"name": "hourly", "job": "tests.nothing", "timing": {"every": "1 hour"}, "policy": {"overlap": "queue_one"}}


def test_it_adds_and_changes_a_schedule_with_the_form_of_the_api(tmp_path, monkeypatch):
    file = tmp_path / "form.json"
    file.write_text(json.dumps(NEW))
    assert call("schedules", "add", str(file)) == Called(0, "Added schedule hourly.\n", "")
    shown = call("schedules", "show", "hourly", "--json").json
    assert (shown["job"], shown["policy"]["overlap"]) == ("tests.nothing", "queue_one")
    form = json.dumps({**shown, "timing": {"every": "2 hours"}}).encode()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(form)))
    changed = call("schedules", "change", "hourly", "-", "--json").json
    assert (changed["timing"], changed["policy"]) == ({"every": "2 hours"}, shown["policy"])
    file.write_text('{"name": "renamed"}')
    assert call("schedules", "change", "hourly", str(file)).out == "Changed schedule renamed.\n"
    assert call("schedules", "change", "hourly", str(file)).status == 3
    assert [(door, act) for door, _, act, _ in audited()] == [
        ("shell", "add"),
        ("shell", "change"),
        ("shell", "change"),
    ]


@pytest.mark.parametrize(
    ("content", "status", "sentences"),
    [
        (b"{", 2, ["is not valid JSON"]),
        (b"\xff", 2, ["is not valid JSON"]),
        (b'{"a": NaN}', 2, ["is not valid JSON"]),
        (b" " * 2_500_001, 2, ["is larger than 2,500,000 bytes"]),
        (b"[]", 1, ["Input should be"]),
        (b"{}", 1, ["name: Field required.", "job: Field required.", "timing: Field required."]),
        (json.dumps({**NEW, "enabled": "yes", "colour": 1}).encode(), 1, ["enabled: Input", "colour: Extra inputs"]),
        (json.dumps({**NEW, "start_time": "2026-12-24"}).encode(), 1, ["start_time: add the offset"]),
        (json.dumps({**NEW, "timing": {"every": "now"}}).encode(), 1, ["now"]),
        (json.dumps({**NEW, "job": "tests.none"}).encode(), 3, ["No job is named"]),
        (json.dumps({**NEW, "name": "it"}).encode(), 1, ["already exists"]),
    ],
)
def test_it_adds_no_schedule_that_is_wrong_and_says_each_fault(tmp_path, content, status, sentences):
    make_schedule("it")
    (tmp_path / "form.json").write_bytes(content)
    refused = call("schedules", "add", str(tmp_path / "form.json"))
    assert (refused.status, refused.out) == (status, ""), refused
    assert all(sentence in refused.err for sentence in sentences), refused.err
    assert "\n" not in refused.err
    assert call("schedules", "add", str(tmp_path / "none.json")).status == 2
    assert PeriodicTask.objects.get().name == "it"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["pause", "none"], 3),
        (["pause", "it", "none"], 3),
        (["pause", "it", "--until", "101 years"], 1),
        (["pause", "it", "--until", "2020-01-01"], 1),
        (["pause", "it", "--reason", "x" * 501], 1),
        (["skip", "it", "10001"], 1),
        (["delete", "it"], 2),
        (["backfill", "it", "--from", "2 days", "--until", "1 day"], 2),
        (["backfill", "it", "--from", "1 day", "--until", "2 days", "--yes"], 1),
        (["preview"], 2),
        (["preview", "it", "--every", "1 day"], 2),
        (["preview", "--crontab", "99 * * * *"], 1),
        (["preview", "--solar", "sunset"], 1),
        (["at", "none", "1 day"], 3),
    ],
)
def test_it_changes_no_schedule_when_it_refuses(words, status):
    schedule = make_schedule("it")
    make_known()
    before = Policy.objects.values().get(pk=schedule.pk)
    refused = call("schedules", *words)
    assert refused.status == status, refused
    assert Policy.objects.values().get(pk=schedule.pk) == before
    assert not AuditEntry.objects.exists()


def make_known() -> None:
    """As if beat had computed the schedules since nine days."""
    since = database_now() - timedelta(days=9)
    PeriodicTask.objects.update(start_time=since)
    calendar.refresh(PeriodicTask.objects.all())
    Policy.objects.update(known_since=since, timing_since=since)


def test_it_previews_a_timing_and_what_a_schedule_will_do():
    make_schedule("it", task="tests.note", args=["x"])
    every = call("schedules", "preview", "--every", "15 minutes", "--number", "3", "--json").json
    assert len(every["due"]) == 3
    assert call("schedules", "preview", "it").out.count("\n") == 6
    once = call("schedules", "preview", "--crontab", "30 7 * * 1-5", "--zone", "Europe/Berlin")
    assert once.out.splitlines()[0]
    assert once.status == 0


def test_it_says_what_became_of_a_moment():
    schedule = make_schedule("it")
    make_known()
    due_at = schedules.rows().get().start_time + timedelta(days=1)
    run = make_run(schedule, State.SUCCEEDED, due_at=due_at, started_at=due_at, finished_at=due_at)
    answer = call("schedules", "at", "it", due_at.isoformat())
    assert answer.out.splitlines()[1] == f"Run {run.id}."
    assert answer.out.splitlines()[0] == call("schedules", "at", "it", due_at.isoformat(), "--json").json["sentence"]
    before = call("schedules", "at", str(schedule.pk), "0001-01-02", "--json").json
    assert (before["run"], before["due_at"]) == (None, None)


def test_it_backfills_after_a_preview_and_only_when_it_is_told_to():
    make_schedule("it")
    make_known()
    words = ("schedules", "backfill", "it", "--from", "24 hours", "--until", "10 minutes")
    seen = call(*words, "--preview")
    assert seen.out.splitlines()[0].startswith("23 due moments to run, 0 left alone.")
    assert seen.out.count("\n") == 12
    assert call(*words, "--preview", "--json").json["number"] == 23
    refused = call(*words)
    assert (refused.status, refused.err) == (2, "Create 23 runs? No terminal can confirm it: add --yes.")
    assert not Run.objects.exists()
    made = call(*words, "--yes", "--at-once", "7", "--json").json
    assert made["number"] == Run.objects.filter(backfill=made["id"]).count() == 23
    assert Backfill.objects.get().at_once == 7
    assert call(*words, "--yes").out.startswith("0 due moments to run, 23 left alone.")
    assert call(*words, "--yes", "--json").json["number"] == 0


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ada() -> User:
    user = User.objects.create_user("ada")
    user.user_permissions.add(
        *Permission.objects.filter(codename__in=["view_run", "add_run", "add_user", "delete_run"])
    )
    return user


def test_it_makes_a_token_that_is_admitted_and_prints_its_secret_once(ada):
    schedule = make_schedule("it")
    limits = ("--job", "billing.*", "--schedule", "it", "--expires", "90 days", "--rate", "7")
    made = call("token", "create", "ci", "--user", "ada", "--scope", "jobs.view_run", "--quiet", *limits)
    assert made.err == ""
    token = ApiToken.objects.admit(made.out.strip()).token
    assert (token.user, token.scopes, token.jobs) == (ada, ["jobs.view_run"], ["billing.*"])
    assert (token.schedules, token.rate) == ([schedule.pk], 7)
    assert timedelta(days=89) < token.expires_at - database_now() < timedelta(days=91)
    everything = call("token", "create", "all", "--user", "ada", "--all-scopes", "--json").json
    assert everything["scopes"] == ["jobs.add_run", "jobs.view_run"]  # no others: the API does not ask for them
    listed = call("token", "list")
    assert everything["secret"] not in listed.out + call("token", "list", "--json").out
    assert [line.split()[0] for line in listed.out.splitlines()] == ["NAME", "all", "ci"]
    assert call("token", "revoke", "ci", "none").status == 3
    assert ApiToken.objects.admit(made.out.strip()).token
    assert call("token", "revoke", "ci").status == 0
    assert not ApiToken.objects.admit(made.out.strip()).token
    assert call("token", "delete", "ci", "none").status == 3
    assert call("token", "delete", "--json", "ci").json == {"deleted": 1}
    assert call("token", "create", "ci", "--user", "ada", "--scope", "jobs.view_run").status == 0  # its name is free
    assert call("token", "revoke", "ci").status == 0
    User.objects.update(is_active=False)
    assert re.search(r"^all .* its user is disabled .*\n^ci .* revoked", call("token", "list").out, re.MULTILINE)
    assert [(door, act, name) for door, _, act, name in audited()] == [
        ("shell", "add", "ci"),
        ("shell", "add", "all"),
        ("shell", "revoke", "ci"),
        ("shell", "delete", "ci"),
        ("shell", "add", "ci"),
        ("shell", "revoke", "ci"),
    ]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["x", "--user", "none", "--all-scopes"], 3),
        (["x", "--user", "ada", "--scope", "jobs.change_run"], 1),
        (["x", "--user", "ada", "--scope", "nonsense"], 1),
        (["x", "--user", "ada", "--all-scopes", "--schedule", "none"], 3),
        (["x", "--user", "ada", "--all-scopes", "--expires", "200 years"], 1),
        (["", "--user", "ada", "--all-scopes"], 1),
        (["x" * 101, "--user", "ada", "--all-scopes"], 1),
        (["x", "--user", "bob", "--all-scopes"], 1),
    ],
)
def test_it_makes_no_token_that_would_never_work(ada, words, status):
    User.objects.create_user("bob")
    refused = call("token", "create", *words)
    assert (refused.status, refused.out) == (status, "")
    assert not ApiToken.objects.exists()


# --- terminals ------------------------------------------------------------------------------------------------------


def test_it_shows_data_that_a_terminal_would_obey_as_text():
    make_run(make_schedule(EVIL), State.FAILED, reason=EVIL, error_text=EVIL)
    schedule = PeriodicTask.objects.get()
    for words in (("runs", "list"), ("runs", "show", str(Run.objects.get().id)), ("schedules", "list")):
        for options in ({}, {"force_color": True}):
            out = call(*words, **options).out
            plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
            assert "\x1b" not in plain
            assert "\u202e" not in plain
            if not options:
                assert "\\x1b[2J[red]x[/red]\\u202e" in plain
            assert ("\x1b[" in out) == bool(options)
    assert "\x1b" not in call("schedules", "show", str(schedule.pk)).out
    assert call("runs", "list", "--json").out.isascii()


def test_it_writes_in_the_encoding_of_its_output():
    class Narrow(StringIO):
        encoding = "ascii"

    out = Narrow()
    Terminal(Wrapper(out), Wrapper(StringIO()), as_json=False, is_coloured=None).table(["name"], [["日報"]])
    assert out.getvalue() == "NAME\n\\u65e5\\u5831\n"


class Wrapper:
    """As Django's `OutputWrapper`."""

    def __init__(self, out: StringIO) -> None:
        self._out = out
        self.encoding = getattr(out, "encoding", None)

    def isatty(self) -> bool:
        return False

    def write(self, text: str, ending: str = "\n") -> None:
        self._out.write(text + ending)


@pytest.mark.parametrize(
    ("length", "text"),
    [(0.0123, "12 ms"), (-0.5, "-500 ms"), (59.94, "59.9 s"), (60, "0:01:00"), (93784, "1 day, 2:03:04")],
)
def test_it_writes_durations_for_people(length, text):
    assert duration(timedelta(seconds=length)) == text


def test_it_keeps_the_lines_of_a_log_and_nothing_else():
    assert safe("a\n\tb\r\x9b\x00é", keep="\n\t") == "a\n\tb\\r\\x9b\\x00é"


MOMENTS = [
    ("2 hours", True),
    ("90", True),
    ("2026-12-24", True),
    ("2026-12-24 18:00", True),
    ("2026-12-24T18:00+01:00", True),
    ("0001-01-01T00:00+23:59", False),
    ("9999-12-31T23:59-23:59", False),
    ("0001-01-01", True),
    ("9999-12-31", True),
    ("2026-13-01", False),
    ("", False),
    ("yesterday", False),
    ("-1 day", False),
    ("9999999999999 days", False),
]


@pytest.mark.parametrize(("word", "is_one"), MOMENTS)
def test_it_reads_moments_and_how_long_ago_they_were(word, is_one):
    assert (call("runs", "list", "--since", word).status == 0) == is_one


WORDS = st.sampled_from(
    [
        *("list", "show", "tail", "start", "retry", "cancel", "run", "pause", "skip", "preview", "backfill", "delete"),
        *("at", "enable", "disable", "resume", "create", "revoke", "--json", "--limit", "--since", "--until", "--from"),
        *(
            "--crontab",
            "--every",
            "--once",
            "--solar",
            "--latitude",
            "--zone",
            "--number",
            "--state",
            "failed",
            "--yes",
        ),
        *("--key", "--delay", "--at", "--arguments", "--priority", "--schedule", "--parent", "--user", "--scope", "it"),
        *(
            "--expires",
            "--rate",
            "--timeout",
            "0",
            "1",
            "-1",
            "1e999",
            "9" * 30,
            "nan",
            "0001-01-01",
            "9999-12-31",
            "ada",
        ),
        *("tests.nothing", "a=1", "{}", '{"a": [[]]}', "1 day", "* * * * *", "", "%", "\udcff", "\0", "--", "-", "💣"),
    ]
)
ANYTHING = st.lists(st.one_of(WORDS, WORDS, st.text(max_size=12)), max_size=7)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["runs", "schedules", "token", "sources", "files", "webhooks"]), ANYTHING)
@example("runs", ["list", "--limit", "9" * 5000])
@example("schedules", ["preview", "--every", "1e400"])
@example("schedules", ["at", "it", "0001-01-01"])
@example("schedules", ["at", "it", "9999-12-31"])
@example("schedules", ["backfill", "it", "--from", "0001-01-01", "--until", "9999-12-31", "--yes"])
@example("schedules", ["preview", "--solar", "sunset", "--latitude", "nan", "--longitude", "1e999"])
def test_it_answers_any_words_with_a_status(db, command, words):
    make_schedule(f"it{database_now().timestamp()}") if not PeriodicTask.objects.filter(name="it").exists() else None
    answer = call(command, *(word for word in words if word != "--wait"))
    assert answer.status in {0, 1, 2, 3, 4}


# --- processes ------------------------------------------------------------------------------------------------------


def shell(environment: dict[str, str], *words: str | bytes, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "manage.py", *words]
    options = {"capture_output": True, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(line, cwd=ROOT, env=environment, text=True, timeout=DEADLINE, check=False, **options)


@pytest.mark.django_db(transaction=True)
def test_its_processes_end_with_the_status_and_one_sentence(environment):
    missing = shell(environment, "runs", "show", "abcd")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr == "There is no run 'abcd': it was deleted, or never existed.\n"
    usage = shell(environment, "runs", "list", "--limit", "0")
    assert (usage.returncode, usage.stderr.startswith("usage: manage.py runs list")) == (2, True)
    bytes_ = shell(environment, "schedules", "show", b"\xff\xfe")
    assert (bytes_.returncode, bytes_.stderr.count("\n")) == (2, 1)
    away = shell({**environment, "DATABASE_URL": "postgres://x:hidden@127.0.0.1:1/x"}, "runs", "list")
    assert (away.returncode, away.stderr.count("\n")) == (1, 1)
    assert away.stderr.startswith("The database cannot be used (")
    assert "hidden" not in away.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["", "--force-color", "--json"])
def test_it_ends_quietly_when_its_reader_is_gone(environment, option, unbuffered):
    """The command is kept waiting: a pipe holds 64 KiB."""
    environment["PYTHONUNBUFFERED"] = unbuffered
    Run.objects.bulk_create(make_many(3000))
    command = f"{sys.executable} manage.py runs list --limit 3000 {option} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ("[" if option == "--json" else "ID ") in done.stdout.splitlines()[0]
    assert (done.stdout.splitlines()[1], done.stderr) == ("141", "")


@pytest.mark.django_db(transaction=True)
def test_it_acts_and_keeps_its_status_without_streams(environment):
    """A service manager may start a command with closed streams."""
    make_schedule("it")
    closed = in_bash(environment, "schedules disable it <&- >&- 2>&-")
    assert (closed.returncode, PeriodicTask.objects.get().enabled) == (0, False)
    assert in_bash(environment, "runs show abcd >&- 2>&-").returncode == 3
    unasked = in_bash(environment, "schedules delete it <&-")
    assert (unasked.returncode, unasked.stderr) == (
        2,
        "Delete 1 schedule: it? No terminal can confirm it: add --yes.\n",
    )


@pytest.mark.django_db(transaction=True)
def test_it_says_in_one_sentence_that_its_output_cannot_be_written(environment):
    full = in_bash(environment, "schedules list --json >/dev/full")
    sentence = "The output cannot be written ([Errno 28] No space left on device).\n"
    assert (full.returncode, full.stderr) == (1, sentence)


@pytest.mark.django_db(transaction=True)
def test_it_names_its_run_before_it_waits_also_in_a_pipe(environment):
    line = [sys.executable, "manage.py", "runs", "start", "tests.nothing", "--wait", "--timeout", f"{DEADLINE} s"]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == f"Run {Run.objects.get().id} of tests.nothing.\n".encode()
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE) == 130
        assert child.stderr.read() == b"Not waiting any longer; the run goes on.\n"


def in_bash(environment: dict[str, str], line: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", f"exec {sys.executable} manage.py {line}"]
    options = {"capture_output": True, "text": True, "timeout": DEADLINE}
    return subprocess.run(words, cwd=ROOT, env=environment, check=False, **options)


def make_many(number: int) -> list[Run]:
    now = database_now()
    many = {"task": "tests.nothing", "due_at": now, "last_due_at": now, "not_before": now, "schedule_name": "x" * 150}
    return [Run(**many) for _ in range(number)]


@pytest.mark.django_db(transaction=True)
def test_it_has_colours_on_a_terminal_and_asks_before_it_deletes(environment):
    make_run(make_schedule("it"), State.FAILED, reason=EVIL)
    shown, status = on_terminal(environment, "runs", "list")
    assert status == 0
    assert re.search(r"\x1b\[31mfailed", shown)
    assert "\x1b[2J" not in shown
    plain, _ = on_terminal({**environment, "NO_COLOR": "1"}, "runs", "list")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)
    narrow, _ = on_terminal({**environment, "COLUMNS": "40"}, "runs", "list")
    assert str(Run.objects.get().id)[-12:] in narrow
    assert localtime(Run.objects.get().due_at).strftime("%Y-%m-%d %H:%M:%S") in narrow
    missing, _ = on_terminal({**environment, "NO_COLOR": "1"}, "runs", "show", "abcd")
    assert missing.startswith("There is no run")
    shown, status = on_terminal(environment, "schedules", "delete", "it", answer=b"n\n")
    assert (status, "Nothing was changed." in shown, PeriodicTask.objects.count()) == (1, True, 1)
    shown, status = on_terminal(environment, "schedules", "delete", "it", answer=b"y\n")
    assert (status, "Deleted 1 schedule." in shown, PeriodicTask.objects.count()) == (0, True, 0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
@pytest.mark.parametrize("seen", [b"\x1b[?25l", b"waiting"])
def test_it_shows_the_cursor_again_when_a_signal_ends_it(environment, number, status, seen):
    run = make_run()
    hidden, visible = b"\x1b[?25l", b"\x1b[?25h"
    shown = b""
    with opened_on_terminal(environment, "runs", "tail", str(run.id)) as (terminal, child):
        while seen not in shown:
            shown += os.read(terminal, 4096)
        child.send_signal(number)
        shown += rest_of(terminal)
        assert child.wait(DEADLINE) == status
    assert shown.rfind(visible) > shown.rfind(hidden)
    run.refresh_from_db()
    assert run.state == State.WAITING


def on_terminal(environment: dict[str, str], *words: str, answer: bytes = b"") -> tuple[str, int]:
    """Run a command on a pseudo-terminal; returns what it showed, and its status."""
    with opened_on_terminal(environment, *words) as (terminal, child):
        os.write(terminal, answer)
        return rest_of(terminal).decode(), child.wait(DEADLINE)


@contextmanager
def opened_on_terminal(environment: dict[str, str], *words: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A command on a pseudo-terminal, and the end of it that a person sees."""
    ours, theirs = pty.openpty()
    line = [sys.executable, "manage.py", *words]
    child = subprocess.Popen(
        line,
        cwd=ROOT,
        env={"COLUMNS": "200", **environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield ours, child
    finally:
        child.kill()
        child.wait(DEADLINE)
        os.close(ours)


def rest_of(terminal: int) -> bytes:
    """What a command still shows until it ends."""
    shown = b""
    with suppress(OSError):  # Linux: EIO once the child has closed it
        while piece := os.read(terminal, 4096):
            shown += piece
    return shown
