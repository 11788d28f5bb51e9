"""Chords of chains, groups and chords: with results in the database they end as with Redis, or say why they do not."""

import pytest
from celery import current_app

from jobs.local import embedded
from jobs.models import State, Step
from tests.making import ends, lines, send

pytestmark = pytest.mark.django_db(transaction=True)

# What each writes: the results of the chord's members, in their order.
WRITTEN = {
    "branching": "[1,[3,4],[3,[8,9]],[3,3]]",
    "nested_chords": "[27,39]",
    "joined": "[10,1,11,[15,16]]",
}
NOT_ON_REDIS = {"joined"}  # there a member that is added comes at any place, and counts as one task


@pytest.mark.parametrize("backend", ["django-db", "redis"])
def test_it_ends_a_chord_of_chains_groups_and_chords(processes, eventually, tmp_path, servers, backend):
    on_redis = {"RESULT_BACKEND": embedded.broker_url(servers.redis_url)}
    processes.start_worker(env=on_redis if backend == "redis" else {})
    kinds = WRITTEN.keys() - (NOT_ON_REDIS if backend == "redis" else set())
    runs = {kind: send("tests.workflow", kind, str(tmp_path / kind)) for kind in kinds}
    for kind in kinds:
        current_app.tasks["tests.workflow"].delay(kind, str(tmp_path / f"plain {kind}"))
    eventually(lambda: all(ends(run) for run in runs.values()))
    assert {kind: (run.state, run.reason) for kind, run in runs.items()} == dict.fromkeys(kinds, (State.SUCCEEDED, ""))
    assert {step.state for run in runs.values() for step in run.steps.all()} == {Step.State.SUCCEEDED}
    for kind in kinds:
        eventually(lambda kind=kind: lines(tmp_path / f"plain {kind}"))
        assert [lines(tmp_path / kind), lines(tmp_path / f"plain {kind}")] == [[WRITTEN[kind]], [WRITTEN[kind]]]


def test_it_says_that_a_member_of_a_chord_raised_ignore(processes, eventually, tmp_path):
    runs = [send("tests.workflow", kind, str(tmp_path / "left")) for kind in ("ignoring", "ignoring_chain")]
    processes.start_worker()
    eventually(lambda: all(ends(run) for run in runs))
    why = "its chord waits for tests.ignore, but the task ended itself by raising Ignore"
    reason = f"step tests.total never started: {why}"
    assert [(run.state, run.reason) for run in runs] == [(State.FAILED, reason)] * 2
    assert lines(tmp_path / "left") == []
