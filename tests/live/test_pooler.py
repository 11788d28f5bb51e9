"""All of Punctual behind PgBouncer in transaction mode: each transaction may have another session, shared by all."""

import os

import pytest

from jobs.models import Run, State, StoredFile
from tests.making import ends, lines, make_due, make_schedule, send

pytestmark = pytest.mark.django_db(transaction=True)

WORKFLOWS = ("chain", "group", "chord", "nested", "chord_chain", "retried")


def test_it_runs_jobs_and_workflows_through_a_pooler(processes, eventually, pooled, tmp_path):
    processes.start_worker(env=pooled)
    processes.start_beat(env=pooled)
    due = make_schedule("due", task="tests.note", args=[str(tmp_path / "due")])
    make_due(due)
    retried = send("tests.retry", str(tmp_path / "retried"))
    spoiling = [send("tests.spoil", how) for how in ("setting", "temporary table", "transaction")]
    workflows = [send("tests.workflow", kind, str(tmp_path / kind)) for kind in WORKFLOWS]
    eventually(lambda: all(ends(run) for run in (retried, *spoiling, *workflows)))
    eventually(lambda: Run.objects.filter(schedule=due, state=State.SUCCEEDED).exists())
    assert (retried.state, retried.attempt) == (State.SUCCEEDED, 3)
    assert {run.state for run in (*spoiling, *workflows)} == {State.SUCCEEDED}
    assert all(lines(tmp_path / kind) for kind in WORKFLOWS)


def test_it_backs_up_and_reports_on_a_session_of_their_own_or_not_at_all(
    processes, eventually, environment, pooled, servers, tmp_path
):
    given = {"FILES_DIR": str(tmp_path)}
    if servers.binaries:
        given["PATH"] = f"{servers.binaries}{os.pathsep}{os.environ['PATH']}"
    without = processes.start_worker(env=given | pooled)
    refused = [send("jobs.backup_database"), send("jobs.report", "runs by outcome")]
    eventually(lambda: all(ends(run) for run in refused))
    assert [run.state for run in refused] == [State.FAILED] * 2
    assert all("Set DATABASE_DIRECT_URL" in run.reason for run in refused)
    without.stop()
    processes.start_worker(env=given | pooled | {"DATABASE_DIRECT_URL": environment["DATABASE_URL"]})
    for _ in range(3):
        for job in (("jobs.backup_database",), ("jobs.report", "runs by outcome"), ("tests.note", str(tmp_path / "x"))):
            run = send(*job)
            eventually(lambda run=run: ends(run))
            assert (run.state, run.reason) == (State.SUCCEEDED, "")
    assert StoredFile.objects.filter(size__gt=0).count() == 6
