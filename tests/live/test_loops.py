"""Coroutines, event loops and threads in jobs: what they do is executed and recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from celery import current_app

from jobs.beat.rescue import rescue
from jobs.ledger import outbox, outcomes
from jobs.models import FeedEntry, Run, RunLog, State, Step, database_now
from tests.live.conftest import SHORT_LEASE
from tests.making import ends, lines, send

pytestmark = pytest.mark.django_db(transaction=True)
POOLS = [(), ("--pool=threads",), ("--pool=solo",)]


def facts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def over(run: Run) -> bool:
    """Rescue and send like beat; returns whether the run is over."""
    rescue()
    outbox.send_waiting()
    return ends(run)


@pytest.mark.parametrize("pool", POOLS)
def test_it_executes_a_coroutine_as_a_job(processes, eventually, tmp_path, pool):
    processes.start_worker(*pool)
    path = tmp_path / "left"
    run, decorated = send("tests.coroutine", str(path)), send("tests.decorated_coroutine", str(path))
    generators = [send(f"tests.{name}", str(path)) for name in ("generator", "async_generator", "forget_await")]
    failing = send("tests.fail_in_coroutine", str(tmp_path / "failed"))
    eventually(lambda: all(over(each) for each in (run, decorated, failing, *generators)))
    assert [(each.state, each.reason) for each in (run, decorated)] == [(State.SUCCEEDED, "")] * 2
    assert (run.progress_done, run.progress_total, run.progress_message) == (1, 2, "half")
    assert FeedEntry.objects.get().feed == str(run.id)
    told = facts(path)
    assert {"run": str(run.id), "once": [False, True, True, False], "row": True} in told
    assert {"step": str(run.id)} in told
    assert {"decorated": True} in told
    assert len(told) == 3
    assert [each.state for each in generators] == [State.FAILED] * 3
    assert "tests.generator returned a generator, whose body nothing executes" in generators[0].reason
    assert "tests.async_generator returned an async generator" in generators[1].reason
    assert "tests.forget_await returned a coroutine that nothing awaits" in generators[2].reason
    assert (failing.state, failing.error_class, failing.attempt) == (State.FAILED, "ConnectionError", 2)
    assert facts(tmp_path / "failed") == [{"retries": 0}, {"retries": 1}]


@pytest.mark.parametrize("pool", POOLS)
def test_it_interrupts_a_coroutine_where_it_waits(processes, eventually, tmp_path, pool):
    processes.start_worker(*pool, "--concurrency=3", env=SHORT_LEASE)
    kinds = ["await", "gather"] if pool else ["await", "gather", "block"]
    for how in kinds:
        run = send("tests.wait_in_coroutine", str(tmp_path / how), how)
        eventually(lambda how=how: facts(tmp_path / f"{how}.started"))
        outcomes.cancel(Run.objects.filter(id=run.id), "enough")
        eventually(lambda run=run: over(run))
        assert (run.state, run.error_class, run.attempt) == (State.CANCELLED, "SoftTimeLimitExceeded", 1)
        assert facts(tmp_path / how) == [{"cleaned": how}]


@pytest.mark.parametrize("pool", [(), ("--pool=threads",)])
def test_it_ends_the_children_of_an_interrupted_coroutine(processes, eventually, tmp_path, pool):
    processes.start_worker(*pool, env=SHORT_LEASE)
    kinds = ["group", "wait_for", "swallows", *([] if pool else ["computes"])]
    for how in kinds:
        run = send("tests.interrupt_group", str(tmp_path / how), how)
        eventually(lambda how=how: facts(tmp_path / f"{how}.started"))
        outcomes.cancel(Run.objects.filter(id=run.id), "enough")
        eventually(lambda run=run: over(run))
        assert (run.state, run.error_class) == (State.CANCELLED, "SoftTimeLimitExceeded")
        assert facts(tmp_path / how) == [{"ended": "child"}, {"ended": "job"}]


@pytest.mark.parametrize("pool", [(), ("--pool=threads",)])
def test_it_executes_coroutines_inside_others(processes, eventually, tmp_path, pool):
    processes.start_worker(*pool)
    run = send("tests.nest", str(path := tmp_path / "left"))
    eventually(lambda: over(run))
    assert (run.state, run.reason) == (State.SUCCEEDED, "")
    assert facts(path) == [{"decorated": True}] * 2 + [{"step": str(run.id)}] * 2


def test_it_executes_each_way_to_call_a_task_or_says_why_not(processes, eventually, tmp_path):
    processes.start_worker()
    names = ["called_in_coroutine", "called_in_generator", "retry_by_hand", "leave_tasks"]
    paths = [tmp_path / name for name in names]
    runs = [send(f"tests.{path.name}", *([] if path.name == "leave_tasks" else [str(path)])) for path in paths]
    eventually(lambda: all(over(run) for run in runs))
    states = [State.SUCCEEDED, State.FAILED, State.FAILED, State.SUCCEEDED]
    assert [(run.state, run.attempt) for run in runs] == [(state, 1) for state in states]
    assert [facts(path) for path in paths] == [[{"called": True}], [], [{"tried": True}], []]
    assert "returned a generator" in runs[1].reason
    assert "only self.retry() executes it again" in runs[2].reason
    assert "tasks that it did not await: forgotten" in RunLog.objects.get(run=runs[3]).text


@pytest.mark.parametrize("how", ["cursor", "autocommit"])
def test_it_refuses_a_step_in_a_transaction_that_django_does_not_manage(processes, eventually, tmp_path, how):
    processes.start_worker()
    run = send("tests.send_in_own_transaction", str(tmp_path / "left"), how)
    eventually(lambda: over(run))
    assert (run.state, run.attempt, run.steps.count()) == (State.FAILED, 1, 0)
    assert "use transaction.atomic()" in run.reason
    assert not FeedEntry.objects.exists()


def test_it_starts_no_follower_of_a_step_once_the_body_has_failed(processes, eventually, tmp_path):
    processes.start_worker("--concurrency=3")
    path = tmp_path / "left"
    run = send("tests.fail_beside_chain", str(path))
    eventually(lambda: Run.objects.carried().filter(id=run.id).exclude(error_class="").exists())
    for name in ("chain", "chord"):
        Path(f"{path}.{name}.go").touch()
    eventually(lambda: over(run))
    assert (run.state, run.reason) == (State.FAILED, "ValueError: the body is bad")
    states = sorted(run.steps.exclude(task="tests.hold").values_list("state", flat=True))
    assert set(states) == {Step.State.CANCELLED}
    assert facts(path) == []


def test_it_ends_a_coroutine_at_its_time_limits(processes, eventually, tmp_path):
    processes.start_worker()
    runs = {
        how: send("tests.wait_in_coroutine", str(tmp_path / how), how, soft_time_limit=1, time_limit=30)
        for how in ("await", "block")
    }
    hard = send("tests.wait_in_coroutine", str(tmp_path / "hard"), time_limit=1)
    eventually(lambda: all(over(run) for run in (*runs.values(), hard)))
    for how, run in runs.items():
        assert (run.state, run.error_class) == (State.FAILED, "SoftTimeLimitExceeded")
        assert facts(tmp_path / how) == [{"cleaned": how}]
    assert (hard.state, hard.error_class) == (State.FAILED, "TimeLimitExceeded")


def test_it_awaits_coroutines_outside_runs(processes, eventually, tmp_path):
    processes.start_worker()
    path = tmp_path / "left"
    current_app.tasks["tests.decorated_coroutine"].delay(str(path))
    assert current_app.tasks["tests.answer_in_coroutine"].delay().get(timeout=30) == 42
    eventually(lambda: facts(path))
    assert not Run.objects.exists()


def test_it_records_steps_and_ends_beside_an_event_loop(processes, eventually, tmp_path):
    worker = processes.start_worker("--concurrency=1")
    path = tmp_path / "left"
    beside = send("tests.loop_in_job", str(path))
    eventually(lambda: over(beside))
    assert beside.state == State.SUCCEEDED
    assert sorted(map(str, facts(path))) == sorted(map(str, [{"once": True}, {"step": str(beside.id)}]))
    leaving, after = send("tests.leave_loop"), send("tests.query", str(tmp_path / "after"))
    eventually(lambda: over(leaving) and over(after))
    assert [(run.state, run.attempt) for run in (leaving, after)] == [(State.SUCCEEDED, 1)] * 2
    assert facts(tmp_path / "after") == [{"entries": 0}]
    assert "An event loop was left running" in worker.log


def test_it_replaces_a_child_that_cannot_start_runs(processes, eventually, tmp_path):
    worker = processes.start_worker("--concurrency=1")
    breaking = send("tests.break_process")
    eventually(lambda: over(breaking))
    run = send("tests.query", str(tmp_path / "left"))

    def over_at_last() -> bool:
        queued = Run.objects.filter(id=run.id, state=State.QUEUED)
        queued.update(not_before=database_now(), sends=1)  # its first patience has passed
        return over(run)

    eventually(over_at_last)
    assert (run.state, run.attempt, facts(tmp_path / "left")) == (State.SUCCEEDED, 1, [{"entries": 0}])
    assert "RuntimeError: spoilt" in worker.log


def test_it_tells_threads_of_a_job_how_to_belong_to_its_run(processes, eventually, tmp_path):
    processes.start_worker()
    path = tmp_path / "left"
    run = send("tests.in_threads", str(path))
    eventually(lambda: over(run))
    *refused, known = facts(path)
    assert known == {"run": str(run.id), "once": [True, False]}
    assert len(refused) == 3
    assert all("executor.submit(contextvars.copy_context().run, function)" in each["refused"] for each in refused)


@pytest.mark.parametrize("pool", [(), ("--pool=threads",), ("--pool=gevent",)])
def test_it_keeps_what_a_job_prints_in_the_log_of_its_run(processes, eventually, pool):
    worker = processes.start_worker(*pool)
    runs = [send("tests.print") for _ in range(3)]
    eventually(lambda: all(over(run) for run in runs))
    for run in runs:
        text = RunLog.objects.get(run=run).text
        assert text.startswith("printed 1 2\n")
        assert text.count("logged") == 1
        assert text.endswith("token=***")
    assert worker.log.count("printed 1 2") == 3


def test_it_executes_runs_and_steps_in_the_gevent_pool_but_no_coroutines(processes, eventually, tmp_path):
    processes.start_worker("--pool=gevent", "--concurrency=20")
    path = tmp_path / "left"
    chords = [send("tests.workflow", "nested", f"{path}.{number}") for number in range(5)]
    refused, threads = send("tests.decorated_coroutine", str(path)), send("tests.in_threads", f"{path}.threads")
    eventually(lambda: all(over(run) for run in (*chords, refused, threads)))
    assert [(run.state, run.attempt) for run in chords] == [(State.SUCCEEDED, 1)] * 5
    assert [lines(Path(f"{path}.{number}")) for number in range(5)] == [["8"]] * 5
    assert (refused.state, facts(path)) == (State.FAILED, [])
    assert "A greenlet pool executes no `async def` jobs" in refused.reason
    assert threads.state == State.SUCCEEDED


def test_it_lets_a_job_compute_in_processes_of_billiard_but_not_of_multiprocessing(processes, eventually, tmp_path):
    processes.start_worker("--concurrency=1")
    refused = send("tests.in_processes", str(path := tmp_path / "left"), "multiprocessing")
    run = send("tests.in_processes", str(path), "billiard")
    eventually(lambda: over(refused) and over(run))
    assert (refused.state, refused.error_class) == (State.FAILED, "AssertionError")
    assert "daemonic processes are not allowed to have children" in refused.reason
    assert (run.state, run.reason, facts(path)) == (State.SUCCEEDED, "", [{"squares": [0, 1, 4]}])
