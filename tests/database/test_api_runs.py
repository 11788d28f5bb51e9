"""A program starts, follows, cancels and retries runs through the API, as an admin user does."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection, connections
from django.test import Client
from django.utils import timezone
from django_celery_results.models import TaskResult

from jobs.ledger import outcomes
from jobs.models import Attempt, Run, RunLog, State, Step, Trigger, database_now, new_run_id
from jobs.models.attempts import LONGEST_LOG
from jobs.models.audit import AuditEntry
from jobs.monitoring import waiting
from jobs.monitoring.search import first_id
from tests.api import Caller, checked, make_caller, make_token, make_user
from tests.making import make_run, make_schedule, only_where_rows_are_locked
from tests.waiting import DEADLINE, eventually

pytestmark = pytest.mark.django_db(transaction=True)

RUNS = "/api/runs"
RIGHTS = ("jobs.view_run", "jobs.add_run", "jobs.change_run")
KEY = {"Idempotency-Key": "a"}
ECHO = {"job": "tests.nothing", "arguments": {"value": 1}}


@pytest.fixture
def tom():
    return make_caller("tom", *RIGHTS)


def test_it_starts_a_run_and_notes_who_did_it(tom):
    answer = tom.client.post(RUNS, ECHO | {"priority": 3, "queue": "celery"}, "application/json")
    shown = checked(answer, 202)
    run = Run.objects.get()
    assert answer["Location"] == f"{RUNS}/{run.id}"
    assert (run.task, run.kwargs, run.priority, run.queue) == ("tests.nothing", {"value": 1}, 3, "celery")
    assert (run.trigger, run.actor, run.schedule) == (Trigger.API, "tom", None)
    assert (shown["id"], shown["job"], shown["arguments"], shown["is_over"]) == (
        str(run.id),
        "tests.nothing",
        {"value": 1},
        False,
    )
    entry = AuditEntry.objects.get(kind="run")
    assert (entry.actor, entry.door, entry.act, entry.key) == ("tom", "api", "start", str(run.id))
    assert entry.token


def test_it_starts_a_run_later(tom):
    later = database_now() + timedelta(days=1)
    for options in ({"delay": 3600}, {"at": later.isoformat()}):
        shown = tom.post(RUNS, ECHO | options, 202)
        assert shown["not_before"] > database_now().isoformat()
    assert "not both" in tom.post(RUNS, ECHO | {"delay": 1, "at": later.isoformat()}, 422)["detail"]
    assert Run.objects.count() == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("delay", value) for value in (-1, 1e300, "soon", [1], {}, 366 * 86_400 + 1)),
        *(("at", value) for value in ("2099-01-01", "soon", 4_000_000_000, "9999-12-31T23:59:59-14:00", [], {})),
        *(("priority", value) for value in (-1, 256, 2.5, "high", [3])),
        *(("queue", value) for value in (5, None, [], "x" * 201, "a b", "\0")),
        *(("key", value) for value in (5, "", [], "\0", "x" * 121)),
    ],
)
def test_it_refuses_options_that_no_run_can_have(tom, name, value):
    refused = tom.post(RUNS, ECHO | {name: value}, 422)
    assert len(refused["detail"]) > 20
    assert not Run.objects.exists()


def test_it_reads_moments_with_an_offset_only_and_shows_them_as_the_ledger_has_them(tom):
    for at in ("2026-12-24T18:00:00", 1_700_000_000):
        assert tom.post(RUNS, ECHO | {"at": at}, 422)["errors"][0]["place"] == "body/at"
    assert "add the offset" in tom.get(f"{RUNS}?since=2026-12-24T18:00:00", 422)["detail"]
    due_at = database_now().replace(microsecond=123_456)
    run = make_run(make_schedule("nightly"), State.SUCCEEDED, due_at=due_at)
    for shown in (tom.get(f"{RUNS}/{run.id}"), *tom.get(RUNS)["items"]):
        assert shown["due_at"] == due_at.isoformat()


def test_it_makes_one_run_for_a_key(tom):
    first = tom.post(RUNS, ECHO, 202, **{"Idempotency-Key": "monday"})
    again = tom.post(RUNS, ECHO, 200, **{"Idempotency-Key": "monday"})
    assert tom.post(RUNS, ECHO | {"key": "monday"}, 200)["id"] == first["id"] == again["id"]
    for other in (
        {"arguments": {"value": 2}},
        {"job": "jobs.heartbeat", "arguments": {}},
        {"queue": "celery"},
        {"priority": 1},
    ):
        assert "choose another key" in tom.post(RUNS, ECHO | other, 409, **{"Idempotency-Key": "monday"})["detail"]
    for key in ("", "x" * 121):
        assert tom.post(RUNS, ECHO, 422, **{"Idempotency-Key": key})["errors"]
    assert Run.objects.count() == 1
    assert AuditEntry.objects.filter(kind="run").count() == 1


@pytest.mark.parametrize("number", ["1e23", "12345678901234567890.5", "-0.0", "5e-324"])
def test_it_takes_numbers_that_the_database_writes_in_another_form(tom, number):
    body = f'{{"job": "tests.nothing", "arguments": {{"value": {number}}}}}'
    answers = [
        tom.client.post(RUNS, body, "application/json", headers={"Idempotency-Key": "a"}).status_code for _ in range(2)
    ]
    assert answers == [202, 200]
    tom.post(RUNS, ECHO | {"arguments": {"value": 2.5}}, 409, **{"Idempotency-Key": "a"})
    assert Run.objects.count() == 1


def test_it_keeps_the_keys_of_users_apart(tom):
    first = tom.post(RUNS, ECHO, 202, **{"Idempotency-Key": "monday"})
    second_token_of_tom = Caller(make_token(tom.user, *RIGHTS))
    assert second_token_of_tom.post(RUNS, ECHO, 200, **{"Idempotency-Key": "monday"})["id"] == first["id"]
    other = make_caller("eve", *RIGHTS).post(RUNS, ECHO, 202, **{"Idempotency-Key": "monday"})
    assert other["id"] != first["id"]


def test_it_makes_one_run_of_requests_that_arrive_at_once(tom):
    at_once = threading.Barrier(6)

    def post(_):
        at_once.wait(DEADLINE)
        try:
            return Caller(tom.secret).client.post(RUNS, ECHO, "application/json", headers={"Idempotency-Key": "k"})
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(post, range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert Run.objects.count() == 1


def test_it_refuses_a_start_without_the_right():
    make_caller("reader", "jobs.view_run").post(RUNS, ECHO, 403)
    starter = make_caller("starter", "jobs.add_run")
    assert "Can schedule and start" in starter.post(RUNS, {"job": "jobs.cleanup"}, 403)["detail"]
    limited = make_caller("limited", "jobs.add_run", jobs=["billing.*"])
    assert "limited to other schedules and jobs" in limited.post(RUNS, ECHO, 403)["detail"]
    assert not Run.objects.exists()


def test_it_shows_a_run_with_all_that_belongs_to_it(tom):
    schedule = make_schedule()
    run = make_run(
        schedule,
        State.FAILED,
        kwargs={"x": 1},
        reason="gone wrong",
        error_class="ValueError",
        error_text="Traceback",
        attempt=2,
    )
    Attempt.objects.create(run=run, number=1, outcome="retried", reason="again", node="w", pid=1)
    shown = tom.get(f"{RUNS}/{run.id}")
    assert (shown["state"], shown["is_over"], shown["reason"], shown["error_text"]) == (
        "failed",
        True,
        "gone wrong",
        "Traceback",
    )
    assert (shown["schedule"], shown["schedule_name"], shown["arguments"]) == (schedule.pk, "it", {"x": 1})
    assert [attempt["reason"] for attempt in shown["attempts"]] == ["again"]
    held = make_run(not_before=None)
    assert tom.get(f"{RUNS}/{held.id}")["reason"] == "waits for an earlier run to end"
    line = next(item for item in tom.get(RUNS)["items"] if item["id"] == str(run.id))
    assert line.items() <= shown.items()
    assert "never existed" in tom.get(f"{RUNS}/{uuid4()}", 404)["detail"]


def test_it_finds_runs_by_every_filter(tom):
    schedule = make_schedule()
    parent = make_run(
        schedule, State.FAILED, error_class="KeyError", node="w1", queue="q1", actor="ada", trigger=Trigger.MANUAL
    )
    child = make_run(parent=parent, task="jobs.heartbeat", trigger=Trigger.RETRY)
    filters = {
        "state": "failed",
        "trigger": "manual",
        "schedule": schedule.pk,
        "job": "tests.nothing",
        "queue": "q1",
        "node": "w1",
        "actor": "ada",
        "error": "KeyError",
        "until": child.due_at.isoformat().replace("+", "%2B"),
    }
    for name, value in filters.items():
        found = [item["id"] for item in tom.get(f"{RUNS}?{name}={value}")["items"]]
        assert found in ([str(parent.id)], [str(child.id), str(parent.id)][name == "until" :]), name
    assert [item["id"] for item in tom.get(f"{RUNS}?parent={parent.id}")["items"]] == [str(child.id)]
    assert [item["id"] for item in tom.get(f"{RUNS}?state=waiting&state=failed")["items"]] == [
        str(child.id),
        str(parent.id),
    ]
    assert tom.get(f"{RUNS}?backfill={uuid4()}")["items"] == []


def test_since_and_until_are_exact_to_the_microsecond():
    """Two runs of one millisecond may lie on both sides of a moment."""
    for _ in range(200):
        before = timezone.now()
        run = new_run_id()
        after = timezone.now() + timedelta(microseconds=1)
        assert first_id(before) <= run < first_id(after)


def test_it_hides_other_runs_from_a_token_that_is_limited():
    mine, other = make_schedule("mine"), make_schedule("other")
    runs = [make_run(schedule, State.FAILED) for schedule in (mine, other)]
    caller = make_caller("tom", *RIGHTS, schedules=[mine.pk])
    assert [item["id"] for item in caller.get(RUNS)["items"]] == [str(runs[0].id)]
    for path in ("", "/log", "/steps", "/progress"):
        caller.get(f"{RUNS}/{runs[0].id}{path}")
        caller.get(f"{RUNS}/{runs[1].id}{path}", 404)
    caller.post(f"{RUNS}/{runs[1].id}/retry", status=404)
    caller.post(f"{RUNS}/{runs[1].id}/cancel", status=404)
    assert caller.post(f"{RUNS}/retry", {"runs": [str(run.id) for run in runs]}, 202)["refused"] == []
    assert Run.objects.filter(parent__isnull=False).get().parent_id == runs[0].id


def test_it_answers_304_while_a_run_is_unchanged(tom):
    run = make_run(state=State.RUNNING)
    tag = tom.client.get(f"{RUNS}/{run.id}")["ETag"]
    assert tag.startswith('W/"')
    unchanged = tom.client.get(f"{RUNS}/{run.id}", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged["ETag"], unchanged.content) == (304, tag, b"")
    Run.objects.update(progress_done=1)
    changed = tom.client.get(f"{RUNS}/{run.id}", headers={"If-None-Match": tag})
    assert (changed.status_code, changed["ETag"] == tag) == (200, False)


def test_it_cancels_and_retries_a_run_once(tom):
    run, running = make_run(), make_run(state=State.RUNNING)
    assert tom.post(f"{RUNS}/{run.id}/cancel")["state"] == "cancelled"
    assert "ended as cancelled" in tom.post(f"{RUNS}/{run.id}/cancel", status=409)["detail"]
    shown = tom.post(f"{RUNS}/{running.id}/cancel")
    assert (shown["state"], shown["cancel_requested"]) == ("running", True)
    assert "by tom" in shown["reason"]
    assert "still running" in tom.post(f"{RUNS}/{running.id}/retry", status=409)["detail"]
    again = tom.post(f"{RUNS}/{run.id}/retry", status=202)
    assert (again["parent"], again["trigger"]) == (str(run.id), "retry")
    assert list(AuditEntry.objects.order_by("id").values_list("act", flat=True))[-3:] == ["cancel", "cancel", "retry"]
    make_caller("reader", "jobs.view_run").post(f"{RUNS}/{running.id}/cancel", status=403)
    restricted = make_run(state=State.FAILED, task="jobs.cleanup")
    tom.post(f"{RUNS}/{restricted.id}/retry", status=403)


def test_it_cancels_and_retries_several_runs(tom):
    waiting_, running, over = make_run(), make_run(state=State.RUNNING), make_run(state=State.FAILED)
    ids = [str(run.id) for run in (waiting_, running, over)]
    assert tom.post(f"{RUNS}/cancel", {"runs": [*ids, str(uuid4())]}) == {"ended": 1, "asked": 1}
    answer = tom.post(f"{RUNS}/retry", {"runs": ids}, 202)
    assert {run["parent"] for run in answer["runs"]} == {ids[0], ids[2]}
    assert [refused["run"] for refused in answer["refused"]] == [ids[1]]
    tom.post(f"{RUNS}/cancel", {"runs": []}, 422)
    tom.post(f"{RUNS}/cancel", {"runs": [str(uuid4())] * 201}, 422)


def test_it_retries_once_for_each_key(tom):
    failed, other = (make_run(state=State.FAILED) for _ in range(2))
    first, again = (tom.client.post(f"{RUNS}/{failed.id}/retry", headers={"Idempotency-Key": "a"}) for _ in range(2))
    assert [answer.status_code for answer in (first, again)] == [202, 200]
    assert first.json()["id"] == again.json()["id"]
    several = [tom.post(f"{RUNS}/retry", {"runs": [str(failed.id), str(other.id)]}, 202, **KEY) for _ in range(2)]
    new, old = ({run["id"]: run["parent"] for run in answer["runs"]} for answer in several)
    assert new == old
    assert set(new.values()) == {str(failed.id), str(other.id)}
    assert Run.objects.filter(parent=failed).count() == Run.objects.filter(parent=other).count() == 1
    assert AuditEntry.objects.filter(act="retry").count() == 2
    assert tom.post(f"{RUNS}/{failed.id}/retry", status=202, **{"Idempotency-Key": "b"})["id"] != first.json()["id"]


def test_it_gives_the_new_part_of_a_log(tom):
    run = make_run(state=State.RUNNING)
    path = f"{RUNS}/{run.id}/log"
    empty = tom.get(path)
    assert (empty["text"], empty["is_over"], empty["attempt"]) == ("", False, 1)
    RunLog.append(run.id, 1, "one\n")
    first = tom.get(f"{path}?after={empty['after']}")
    assert first["text"] == "one\n"
    RunLog.append(run.id, 1, "two\n")
    assert tom.get(f"{path}?after={first['after']}")["text"] == "two\n"
    RunLog.append(run.id, 1, "".join(f"line {number}\n" for number in range(20_000)))
    full = tom.get(path)
    assert len(full["text"]) == LONGEST_LOG
    RunLog.append(run.id, 1, "the last\n")  # drops the oldest
    assert tom.get(f"{path}?after={full['after']}")["text"] == "the last\n"
    assert tom.get(f"{path}?attempt=2")["text"] == ""
    assert tom.get(f"{path}?after={first['after']}&attempt=2")["text"] == ""
    for query in ("after=x", "attempt=0", f"after={first['after']}x"):
        tom.get(f"{path}?{query}", 422)


def test_it_lists_steps_and_counts_them_in_the_progress(tom):
    run = make_run(state=State.RUNNING, progress_done=3, progress_total=9, progress_message="reading")
    for name, state in [("a", "succeeded"), ("b", "running"), ("c", "queued")]:
        Step.objects.create(id=name, run=run, attempt=1, task="tests.nothing", state=state, following=state == "queued")
    Step.objects.create(id="d", run=run, attempt=2, task="tests.nothing", state="queued")
    first = tom.get(f"{RUNS}/{run.id}/steps?limit=2")
    assert [step["id"] for step in first["items"] + tom.get(first["next"])["items"]] == ["a", "b", "c"]
    progress = tom.get(f"{RUNS}/{run.id}/progress")
    assert {name: progress[name] for name in ("done", "total", "message", "steps_done", "steps")} == {
        "done": 3,
        "total": 9,
        "message": "reading",
        "steps_done": 1,
        "steps": 4,
    }
    assert (progress["state"], progress["is_over"]) == ("running", False)


def test_it_gives_the_result_or_says_why_there_is_none():
    caller = make_caller("tom", "jobs.view_run", "django_celery_results.view_taskresult")
    run = make_run(state=State.RUNNING)
    path = f"{RUNS}/{run.id}/result"
    assert "still running" in caller.get(path, 409)["detail"]
    outcomes.end(Run.objects.all(), {State.RUNNING}, State.SUCCEEDED)
    assert "ignore_result=False" in caller.get(path, 404)["detail"]
    row = TaskResult.objects.create(task_id=str(run.id), status="SUCCESS", result='{"rows": 7}')
    assert caller.get(path)["result"] == {"rows": 7}
    for text, shown in [("NaN", "NaN"), ("a pickle", "a pickle"), (None, None)]:
        TaskResult.objects.filter(pk=row.pk).update(result=text)
        assert caller.get(path)["result"] == shown
    make_caller("reader", "jobs.view_run").get(path, 403)


def in_threads(number, call):
    """Start calls in threads of their own; returns the pool's futures."""
    pool = ThreadPoolExecutor(number)
    futures = [pool.submit(call, each) for each in range(number)]
    pool.shutdown(wait=False)
    return futures


def test_it_answers_a_waiting_request_when_its_run_ends(tom):
    run, other = make_run(state=State.RUNNING), make_run(state=State.RUNNING)

    def wait(_):
        try:
            return Caller(tom.secret).get(f"{RUNS}/{run.id}?wait=60")
        finally:
            connection.close()

    futures = in_threads(waiting.MOST, wait)
    eventually(lambda: len(waiting._waiting) == waiting.MOST)
    assert tom.get(f"{RUNS}/{other.id}?wait=60")["state"] == "running"  # one too many, so it does not wait
    assert not any(future.done() for future in futures)
    outcomes.end(Run.objects.filter(id=run.id), {State.RUNNING}, State.SUCCEEDED)
    assert {future.result(DEADLINE)["state"] for future in futures} == {"succeeded"}
    eventually(lambda: not waiting._waiting and waiting._watcher is None)
    assert tom.get(f"{RUNS}/{other.id}?wait=1")["state"] == "running"  # the time is up
    assert tom.get(f"{RUNS}/{run.id}?wait=60")["state"] == "succeeded"
    for wrong in ("-1", "61", "x"):
        tom.get(f"{RUNS}/{run.id}?wait={wrong}", 422)


def test_it_answers_a_waiting_request_when_its_run_is_deleted(tom):
    run = make_run(state=State.RUNNING)

    def wait(_):
        try:
            return Caller(tom.secret).get(f"{RUNS}/{run.id}?wait=60", 404)
        finally:
            connection.close()

    (future,) = in_threads(1, wait)
    (event,) = eventually(lambda: [*waiting._waiting])
    Run.objects.all().delete()
    eventually(event.is_set, stop=lambda: "the time was up" if future.done() and not event.is_set() else "")
    assert "was deleted" in future.result(DEADLINE)["detail"]


def test_it_waits_where_each_request_is_a_transaction(tom, monkeypatch):
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    run = make_run(state=State.RUNNING)
    assert tom.get(f"{RUNS}/{run.id}?wait=1")["state"] == "running"


def test_it_waits_again_after_a_thread_could_not_be_started(tom, monkeypatch):
    eventually(lambda: waiting._watcher is None)
    run = make_run(state=State.RUNNING)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        waiting.until_over(run.id, 0)
    monkeypatch.undo()
    assert waiting._waiting == {}
    assert waiting.until_over(run.id, 0)
    eventually(lambda: waiting._watcher is None)


def refuse(_):
    raise RuntimeError("can't start new thread")


@only_where_rows_are_locked
def test_it_holds_no_connection_while_a_request_waits(tom):
    run = make_run(state=State.RUNNING)

    def wait(_):
        try:
            return Caller(tom.secret).get(f"{RUNS}/{run.id}?wait=60")
        finally:
            connection.close()

    def connections():
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return cursor.fetchone()[0]

    eventually(lambda: waiting._watcher is None)
    before = connections()
    futures = in_threads(3, wait)
    eventually(lambda: len(waiting._waiting) == 3 and connections() == before + 1)  # one for all of them
    outcomes.end(Run.objects.filter(id=run.id), {State.RUNNING}, State.SUCCEEDED)
    assert [future.result(DEADLINE)["state"] for future in futures] == ["succeeded"] * 3


def test_it_ends_all_waits_when_the_database_fails(tom, monkeypatch):
    run = make_run(state=State.RUNNING)
    monkeypatch.setattr(waiting, "ACTIVE", 7)  # so that the query fails
    assert tom.get(f"{RUNS}/{run.id}?wait=60")["state"] == "running"


def test_it_shows_runs_to_a_session_user_without_staff_status():
    client = Client()
    client.force_login(make_user("eve", "jobs.view_run"))
    make_run()
    assert len(checked(client.get(RUNS), 200)["items"]) == 1
    checked(client.get("/api/nodes"), 403)
