"""Resources in real workers: each process loads once, an invalidation reaches all, and each reports its holdings."""

from collections import Counter
from pathlib import Path

import pytest
from celery import Task

from jobs.models import Holding, State
from jobs.worker import resources
from tests.app.tasks import inherit, look_up
from tests.live.conftest import Process, Processes
from tests.making import ends, lines, send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("standing")]
AT_ONCE = 10  # tasks
sent: Counter[Path] = Counter()  # tasks that leave a line there


@pytest.fixture(scope="module")
def worker(standing: Processes) -> Process:
    """A worker with two children, for most tests here: each test has its own path, and so its own key."""
    return standing.start_worker()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def seen(task: Task, path: Path) -> set[tuple[int, int]]:
    """Send some more of these tasks once the earlier ones are over.

    Returns each executing process with the process that loaded its value.
    """
    if len(lines(path)) == sent[path]:
        sent[path] += AT_ONCE
        for _ in range(AT_ONCE):
            task.delay(str(path))
    return {tuple(map(int, line.split(":"))) for line in lines(path)}


def test_it_loads_once_in_each_process_however_many_tasks_ask(eventually, worker, path):
    eventually(lambda: len(seen(look_up, path)) == 2)
    assert all(process == loader for process, loader in seen(look_up, path))
    assert len(lines(Path(f"{path}.loads"))) == 2


def test_it_loads_again_in_each_process_after_an_invalidation(eventually, worker, path):
    eventually(lambda: len(seen(look_up, path)) == 2)
    children = {process for process, _ in seen(look_up, path)}
    resources.invalidate("tests.loaded")
    eventually(lambda: seen(look_up, path) and len(lines(Path(f"{path}.loads"))) == 4)
    assert sorted(lines(Path(f"{path}.loads"))) == sorted([*map(str, children)] * 2)


def test_it_uses_the_value_loaded_before_the_fork_until_it_is_invalidated(eventually, worker, path):
    eventually(lambda: len(seen(inherit, path)) == 2)
    assert {loader for _, loader in seen(inherit, path)} == {worker.pid}
    resources.invalidate("tests.inherited")
    eventually(lambda: len({process for process, loader in seen(inherit, path) if process == loader}) == 2)


@pytest.mark.parametrize(("how", "state"), [("end", "succeeded"), ("fail", "failed"), ("ignore", "succeeded")])
def test_it_releases_the_values_of_a_task_when_the_task_is_over(eventually, worker, path, how, state):
    run = send("tests.borrow", str(path), how)
    eventually(lambda: ends(run))
    assert run.state == State(state)
    assert lines(path) == [how, "closed"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_it_reports_the_holdings_of_a_process_until_it_ends(standing, eventually, path, pool):
    node = f"{pool}@localhost"
    worker = standing.start_worker(f"--pool={pool}", f"--queues={pool}", f"--hostname={node}")
    look_up.apply_async([str(path)], queue=pool)
    eventually(
        lambda: Holding.objects.filter(resource="tests.loaded", node=node, entries=1, misses=1, bytes__gt=0).exists()
    )
    held = Holding.objects.get(resource="tests.loaded", node=node)
    assert lines(path) == [f"{held.pid}:{held.pid}"]
    assert Holding.objects.get(resource="tests.inherited", node=node, entries=1).pid == held.pid
    worker.stop()
    assert not Holding.objects.filter(node=node).exists()
