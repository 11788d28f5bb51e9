"""Workflows inside a run: the tasks of chains, groups and chords are its steps, and it ends with the last one."""

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from celery import current_app
from django_celery_results.models import ChordCounter

from jobs.beat.rescue import rescue
from jobs.ledger import outbox, outcomes
from jobs.messages import dispatch
from jobs.models import Attempt, Run, RunLog, State, Step, database_now
from tests.live.conftest import SHORT_LEASE
from tests.making import ends, lines, make_run, make_schedule, send

pytestmark = pytest.mark.django_db(transaction=True)


def states(run: Run) -> list[str]:
    return sorted(run.steps.values_list("state", flat=True))


def over(run: Run) -> bool:
    """Rescue and send like beat; returns whether the run is over."""
    rescue()
    outbox.send_waiting()
    return ends(run)


@pytest.mark.parametrize(
    ("kind", "left", "steps"),
    [
        ("chain", ["6"], 3),
        ("group", ["0", "1", "2", "3", "4"], 5),
        ("chord", ["20"], 6),
        ("nested", ["8"], 5),
        ("retried", ["0", "1", "2"], 1),
        ("chord_chain", ["3", "end"], 4),
        ("later", ["later"], 1),
    ],
)
@pytest.mark.parametrize("how", ["tests.workflow", "tests.replaced"])
def test_it_ends_a_run_with_its_last_step(processes, eventually, tmp_path, how, kind, left, steps):
    path = tmp_path / "left"
    run = send(how, kind, str(path))
    processes.start_worker()
    eventually(lambda: ends(run))
    assert (run.state, run.attempt, run.reason) == (State.SUCCEEDED, 1, "")
    assert sorted(lines(path)) == left
    assert set(states(run)) == {Step.State.SUCCEEDED}
    assert run.steps.exclude(task="celery.accumulate").count() == steps
    assert run.finished_at >= max(run.steps.values_list("finished_at", flat=True))


@pytest.mark.parametrize("how", ["tests.workflow", "tests.replaced"])
def test_it_fails_a_run_whose_step_fails_for_good(processes, eventually, tmp_path, how):
    run = send(how, "failing", str(tmp_path / "left"), max_attempts=2, retry_delay=timedelta(0))
    processes.start_worker()
    eventually(lambda: over(run))
    assert (run.state, run.attempt, run.error_class) == (State.FAILED, 2, "ValueError")
    assert run.reason == "step tests.fail failed: ValueError: step two is bad"
    assert [attempt.outcome for attempt in run.attempts.all()] == [Attempt.Outcome.FAILED]
    assert lines(tmp_path / "left") == []


def test_it_waits_for_a_task_that_is_linked_to_an_error(processes, eventually, tmp_path):
    run = send("tests.workflow", "linked", str(tmp_path / "left"))
    processes.start_worker()
    eventually(lambda: ends(run))
    assert run.state == State.FAILED
    assert states(run) == [Step.State.FAILED, Step.State.SUCCEEDED]
    assert lines(tmp_path / "left") == [run.steps.get(task="tests.fail").id]


@pytest.mark.parametrize(
    ("undo", "left"), [(False, ["not", "before", "True", "step"]), (True, ["not", "before", "True"])]
)
def test_it_publishes_a_step_when_its_transaction_is_committed(processes, eventually, tmp_path, undo, left):
    run = send("tests.in_transaction", str(tmp_path / "left"), undo)
    processes.start_worker()
    eventually(lambda: over(run))
    assert run.state == State.SUCCEEDED
    assert run.steps.count() == (not undo)
    assert lines(tmp_path / "left") == left


def test_it_takes_a_step_with_a_fixed_id_in_every_run(processes, eventually, tmp_path):
    processes.start_worker()
    for number in range(2):
        run = send("tests.workflow", "static", str(tmp_path / "left"))
        eventually(partial(over, run))
        assert (run.state, run.steps.get().task_id) == (State.SUCCEEDED, "daily-report")
        assert lines(tmp_path / "left") == ["static"] * (number + 1)


def test_it_waits_for_no_task_of_another_project(processes, eventually, tmp_path, redis):
    processes.start_worker()
    run = send("tests.foreign", str(tmp_path / "left"))
    eventually(lambda: over(run))
    assert (run.state, run.steps.count(), redis.llen("elsewhere")) == (State.SUCCEEDED, 0, 1)


def test_it_fails_a_run_whose_replacement_was_rolled_back(processes, eventually, tmp_path):
    processes.start_worker()
    run = send("tests.replaced_in_transaction", str(tmp_path / "left"))
    eventually(lambda: over(run))
    assert run.state == State.FAILED
    assert run.reason == "its replacement was rolled back with the transaction"


def test_it_fails_a_run_whose_step_was_not_sent(processes, eventually, tmp_path):
    paths = [tmp_path / name for name in ("group", "commit", "ignored")]
    part = send("tests.workflow", "unfit_in_group_body", str(paths[0]))
    vain = send("tests.send_in_vain", str(paths[1]))
    ignored = send("tests.ignore_after_undone", str(paths[2]))
    processes.start_worker()
    eventually(lambda: all(over(run) for run in (part, vain, ignored)))
    assert part.reason.startswith("step tests.leave never started: TypeError: leave() takes 2 positional arguments")
    why = "it was not sent: another on-commit callback of its transaction failed"
    assert vain.reason == f"step tests.leave failed: {why}"
    assert lines(paths[1]) == ["one"]
    assert ignored.state == State.SUCCEEDED


def test_it_waits_for_running_steps_when_a_body_fails_and_starts_no_others(processes, eventually, tmp_path):
    path = tmp_path / "left"
    processes.start_worker()
    run = send("tests.fail_after_sending", str(path), max_attempts=2, retry_delay=timedelta(0))
    eventually(lambda: Step.objects.filter(run=run, state=Step.State.CANCELLED).exists())
    eventually(lambda: Run.objects.filter(id=run.id, lease_until=None, error_class="ValueError").exists())
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.RUNNING, 1)
    Path(f"{path}.go").touch()
    eventually(lambda: over(run))
    assert (run.state, run.attempt, run.reason) == (State.FAILED, 2, "ValueError: after all")
    assert run.attempts.get().reason == "ValueError: after all"
    assert "never" not in lines(path)


def test_it_gives_a_step_another_id_if_an_unfinished_step_of_another_run_has_its_id(processes, eventually, tmp_path):
    processes.start_worker()
    first = make_run(state=State.RUNNING)
    theirs = Step.objects.create(id="daily-report", run=first, attempt=1, task="tests.leave", state=Step.State.RUNNING)
    run = send("tests.workflow", "static", str(tmp_path / "left"))
    eventually(lambda: ends(run))
    assert (run.state, states(run), lines(tmp_path / "left")) == (State.SUCCEEDED, [Step.State.SUCCEEDED], ["static"])
    theirs.refresh_from_db()
    assert (theirs.run, theirs.state) == (first, Step.State.RUNNING)


@pytest.mark.parametrize(
    ("kind", "left", "steps"),
    [
        ("chain", ["6"], 3),
        ("nested", ["8"], 5),
        ("chord_chain", ["3", "end"], 4),
        ("chord", ["20"], 6),
        ("linked_chain", ["2", "linked"], 4),
        ("static", ["static"], 1),
    ],
)
def test_it_executes_every_step_of_a_workflow_that_is_applied_again(processes, eventually, tmp_path, kind, left, steps):
    processes.start_worker()
    run = send("tests.apply_again", kind, str(tmp_path / "left"), 5)
    eventually(lambda: ends(run))
    assert (run.state, run.reason, run.attempt) == (State.SUCCEEDED, "", 1)
    assert sorted(lines(tmp_path / "left")) == sorted(left * 5)
    assert states(run) == [Step.State.SUCCEEDED] * steps * 5


def test_it_executes_every_step_of_a_workflow_that_several_runs_apply_at_once(processes, eventually, tmp_path):
    path = tmp_path / "left"
    runs = [send("tests.apply_shared", str(path)) for _ in range(6)]
    processes.start_worker("--concurrency=1")
    eventually(lambda: all(ends(run) for run in runs))
    assert [(run.state, states(run)) for run in runs] == [(State.SUCCEEDED, [Step.State.SUCCEEDED] * 2)] * 6
    assert sorted(lines(path)) == ["first"] * 6 + ["second"] * 6


def test_it_counts_a_task_as_a_step_that_a_task_called_in_place_sends(processes, eventually, tmp_path):
    processes.start_worker()
    run = send("tests.call_in_place", str(tmp_path / "left"))
    eventually(lambda: over(run))
    assert (run.state, run.steps.get().task) == (State.SUCCEEDED, "tests.retry")


def test_it_fails_a_run_whose_step_cannot_send_the_next_one(processes, eventually, tmp_path):
    why = {
        ("workflow", "unfit"): "step tests.add failed: TypeError: leave() takes 2 positional arguments but 3",
        ("workflow", "unfit_body"): "step tests.leave never started: TypeError: leave() takes 2 positional arguments",
        ("workflow", "unfit_after_groups"): "step tests.",  # either of the second group
        ("set_off", "tests.replaced", "unsendable"): "step tests.replaced failed: kombu.exceptions.EncodeError: ",
        ("set_off", "tests.retry_unsendable"): "step tests.retry_unsendable failed: TypeError: retry_unsendable()",
        ("set_off", "tests.replaced_in_transaction"): "step tests.replaced_in_transaction failed: its replacement ",
    }
    runs = {what: send(f"tests.{what[0]}", *what[1:], str(tmp_path / "left")) for what in why}
    processes.start_worker()
    eventually(lambda: all(over(run) for run in runs.values()))
    assert {what: (run.state, run.reason[: len(why[what])]) for what, run in runs.items()} == {
        what: (State.FAILED, sentence) for what, sentence in why.items()
    }
    assert lines(tmp_path / "left") == []


def test_it_retries_a_step_that_called_retry_in_a_transaction(processes, eventually, tmp_path):
    processes.start_worker()
    run = send("tests.set_off", "tests.retry_in_transaction", str(tmp_path / "left"))
    eventually(lambda: over(run))
    assert (run.state, run.attempt, run.steps.count()) == (State.SUCCEEDED, 1, 1)
    assert lines(tmp_path / "left") == ["0", "1"]


def test_it_waits_for_a_replacement_that_starts_before_the_replaced_step_ends(processes, eventually, tmp_path):
    processes.start_worker()
    run = send("tests.set_off", "tests.replaced_early", str(tmp_path / "left"))
    eventually((tmp_path / "left.started").exists)
    last = send("tests.nothing")  # executed by the process of the replaced step, after it
    eventually(lambda: over(last))
    assert states(run) == [Step.State.RUNNING]
    (tmp_path / "left.go").touch()
    eventually(lambda: over(run))
    assert (run.state, states(run)) == (State.SUCCEEDED, [Step.State.SUCCEEDED])


def test_it_loses_a_step_and_its_run_together():
    run = make_run(make_schedule(policy={"rerun_if_lost": False}), State.RUNNING, lease_until=None)
    lost = {"state": Step.State.RUNNING, "lease_until": database_now(), "node": "w"}
    Step.objects.create(id="a", run=run, attempt=1, task="tests.add", **lost)
    assert rescue() == 1
    run.refresh_from_db()
    assert run.state == State.LOST


def test_it_ends_no_run_when_its_message_comes_again_to_another_thread(processes, eventually, tmp_path):
    processes.start_worker("--pool=threads")
    run = send("tests.hold", str(tmp_path / "left"))
    eventually((tmp_path / "left.started").exists)
    dispatch.publish([run])
    last = send("tests.nothing")
    eventually(lambda: over(last))
    run.refresh_from_db()
    assert run.state == State.RUNNING
    (tmp_path / "left.go").touch()
    eventually(lambda: over(run))
    assert (run.state, lines(tmp_path / "left")) == (State.SUCCEEDED, [str(run.id)])


def test_it_cancels_runs_that_are_revoked_by_remote_control(processes, eventually, tmp_path):
    worker = processes.start_worker(env={"REMOTE_CONTROL": "full"})
    running, other = (send("tests.hold", str(tmp_path / "held")) for _ in range(2))
    for_the_pool = send("tests.workflow", "held", str(tmp_path / "left"))
    eventually(lambda: Run.objects.filter(state=State.RUNNING).count() == 2)
    for run in (for_the_pool, other, running):
        current_app.control.revoke(str(run.id), terminate=True, signal="SIGKILL")
    eventually(lambda: over(running) and over(other) and over(for_the_pool))
    assert [run.state for run in (running, other, for_the_pool)] == [State.CANCELLED] * 3
    assert for_the_pool.reason == "cancelled: it was revoked"
    assert worker.running


def test_it_cancels_a_run_with_all_of_its_steps(processes, eventually, tmp_path):
    run = send("tests.workflow", "held", str(tmp_path / "left"))
    processes.start_worker(env=SHORT_LEASE)
    eventually(lambda: states(run) == [Step.State.QUEUED, Step.State.RUNNING, Step.State.RUNNING])
    eventually(lambda: Run.objects.carried().exists())
    outcomes.cancel(Run.objects.filter(id=run.id), "enough")
    eventually(lambda: over(run))
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled: enough")
    assert Step.State.CANCELLED in states(run)
    assert [path.name for path in tmp_path.glob("left.?")] == []


def test_it_rescues_a_run_whose_step_s_worker_was_killed(processes, eventually, tmp_path):
    run = send("tests.workflow", "held", str(tmp_path / "left"))
    first = processes.start_worker()
    eventually(lambda: states(run).count(Step.State.RUNNING) == 2 and Run.objects.carried().exists())
    first.kill()
    processes.start_worker()
    Step.objects.filter(state=Step.State.RUNNING).update(lease_until=database_now())
    eventually(lambda: rescue() and Run.objects.filter(attempt=2).exists())
    for number in range(3):
        (tmp_path / f"left.{number}.go").touch()
    eventually(lambda: over(run))
    assert (run.state, run.attempt) == (State.SUCCEEDED, 2)
    assert "step tests.hold, worker" in run.attempts.get().reason
    assert [len(lines(tmp_path / f"left.{number}")) for number in range(3)] == [1, 1, 1]


def test_it_rescues_a_run_whose_step_s_message_is_lost(processes, eventually, tmp_path, redis):
    run = send("tests.workflow", "held", str(tmp_path / "left"))
    worker = processes.start_worker("--concurrency=1")
    eventually(lambda: states(run).count(Step.State.RUNNING) == 1 and Run.objects.carried().exists())
    worker.kill()
    redis.flushdb()
    Step.objects.update(lease_until=database_now())
    rescue()
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.WAITING, 2)
    assert set(states(run)) == {Step.State.LOST}
    assert rescue() == 0


@pytest.mark.parametrize(
    "what",
    [["workflow", "held_chord"], ["workflow", "held_chord_chain"], ["set_off", "tests.replaced", "held_chord"]],
)
def test_it_fails_a_run_whose_chord_cannot_end(processes, eventually, tmp_path, what):
    run = send(f"tests.{what[0]}", *what[1:], str(tmp_path / "left"))
    processes.start_worker("--concurrency=1", "--pool=solo")
    eventually(lambda: ChordCounter.objects.exists() and (tmp_path / "left.0.started").exists())
    ChordCounter.objects.all().delete()
    (tmp_path / "left.0.go").touch()
    eventually(lambda: over(run))
    assert run.state == State.FAILED
    assert run.reason == "step tests.total never started: the counter of its chord is gone"
    assert lines(tmp_path / "left") == []


def test_it_ends_a_run_after_the_process_of_its_last_step_died():
    run = make_run(make_schedule(), State.RUNNING, lease_until=None)
    Step.objects.create(id="a", run=run, attempt=1, task="tests.add", state=Step.State.SUCCEEDED)
    assert rescue() == 1
    run.refresh_from_db()
    assert run.state == State.SUCCEEDED


def test_it_loses_a_run_whose_step_kills_its_process_in_every_attempt(processes, eventually, tmp_path):
    run = send("tests.workflow", "poison", str(tmp_path / "left"))
    processes.start_worker()
    eventually(lambda: over(run))
    assert (run.state, run.attempt) == (State.LOST, 3)
    assert run.reason == "lost: step tests.die, its process ended: signal 9 (SIGKILL)"
    assert len(lines(tmp_path / "left")) == 3


def test_it_leaves_tasks_outside_of_runs_alone(processes, eventually, tmp_path):
    path = tmp_path / "left"
    current_app.tasks["tests.workflow"].delay("chord", str(path))
    current_app.tasks["tests.leave"].delay("plain", str(path))
    processes.start_worker()
    eventually(lambda: sorted(lines(path)) == ["20", "plain"])
    assert not Step.objects.exists()
    assert not Run.objects.exists()


def test_it_shows_log_and_progress_of_a_run_while_it_executes(processes, eventually, tmp_path):
    path = tmp_path / "left"
    run = send("tests.tell", str(path))
    processes.start_worker()
    eventually(lambda: RunLog.objects.filter(run=run).exists())
    eventually(lambda: Run.objects.filter(id=run.id, progress_done=7).exists())
    run.refresh_from_db()
    assert (run.state, run.progress_total, run.progress_message) == (State.RUNNING, 10, "almost")
    log = RunLog.objects.get(run=run)
    assert "tests.tell: password=*** at" in log.text
    assert "hunter2" not in log.text
    Path(f"{path}.go").touch()
    eventually(lambda: ends(run))
    assert lines(path) == [str(run.id), "True", "False"]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_it_asks_a_running_job_to_end_in_every_pool(processes, eventually, tmp_path, pool):
    run = send("tests.hold", str(tmp_path / "left"))
    worker = processes.start_worker(f"--pool={pool}", env=SHORT_LEASE)
    eventually((tmp_path / "left.started").exists)
    outcomes.cancel(Run.objects.filter(id=run.id), "enough")
    eventually(lambda: ends(run))
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled: enough")
    assert worker.running
    assert lines(tmp_path / "left") == []
