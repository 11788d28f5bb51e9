"""Mapped resources: one file for all processes of a machine, built by one process, mapped only when complete."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cache import resources
from jobs.cache.mapped import MappedResource
from tests.forking import forks, in_child
from tests.servers import ROOT
from tests.waiting import DEADLINE

# Each process of the test below maps the table. Its builder waits until all four have asked for the lock.
PROCESS = """
import fcntl, sys, time
from pathlib import Path
from jobs.cache.mapped import MappedResource
from tests.waiting import eventually

folder, number = Path(sys.argv[1]), int(sys.argv[2])
flock = fcntl.flock

def ask(descriptor, how):
    (folder / f"asked-{number}").touch()
    flock(descriptor, how)

def others_build():
    return (folder / "built").read_text() != "x"

def build(path):
    with (folder / "built").open("a") as file:
        file.write("x")
    eventually(lambda: len(list(folder.glob("asked-*"))) == 4 or others_build())
    until = time.monotonic() + 0.3  # long enough for another process to build, if it could
    while not others_build() and time.monotonic() < until:
        time.sleep(0.01)
    path.write_bytes(b"table")

fcntl.flock = ask
print(bytes(MappedResource("table", build, folder / "tables").get()).decode())
"""


class Builds:
    """A `build` that writes v1, v2, v3 and so on."""

    number = 0

    def __call__(self, path: Path) -> None:
        self.number += 1
        path.write_bytes(f"v{self.number}".encode())


@pytest.fixture(autouse=True)
def _names_of_this_test_only(monkeypatch):
    for name, value in (("registry", {}), ("_hook", None), ("_unused", None)):
        monkeypatch.setattr(resources, name, value)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "table").iterdir())


def test_it_maps_the_built_file_read_only(tmp_path):
    table = MappedResource("table", Builds(), tmp_path)
    view = table.get()
    assert bytes(view) == b"v1"
    assert view.readonly
    assert table.get() is view
    assert (table.tally().bytes, files(tmp_path)) == (2, ["0"])


def test_it_is_built_once_for_all_processes_of_a_machine(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for number in range(4)
    ]
    assert [process.communicate(timeout=DEADLINE)[0] for process in processes] == ["table\n"] * 4
    assert (tmp_path / "built").read_text() == "x"


@forks
def test_it_is_shared_with_children(tmp_path):
    table = MappedResource("table", build := Builds(), tmp_path)
    table.get()
    assert in_child(lambda: [bytes(table.get()).decode(), build.number]) == ["v1", 1]


def test_it_uses_the_file_that_an_earlier_process_built(tmp_path):
    MappedResource("table", Builds(), tmp_path).get()
    resources.registry.clear()
    later = Builds()
    assert bytes(MappedResource("table", later, tmp_path).get()) == b"v1"
    assert not later.number


def test_it_builds_a_new_version_and_leaves_the_old_one_to_its_users(tmp_path):
    table = MappedResource("table", Builds(), tmp_path)
    former = table.get()
    table.drop(version=7)
    assert bytes(table.get()) == b"v2"
    assert files(tmp_path) == ["7"]
    assert bytes(former) == b"v1"


def test_it_maps_the_same_file_again_when_only_this_process_dropped_it(tmp_path):
    table = MappedResource("table", build := Builds(), tmp_path)
    table.get()
    table.drop()
    assert bytes(table.get()) == b"v1"
    assert build.number == 1


def test_it_builds_an_expired_file_again(tmp_path):
    table = MappedResource("table", build := Builds(), tmp_path, ttl=60)
    table.get()
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "table" / "0", (an_hour_ago, an_hour_ago))
    table.drop()
    assert bytes(table.get()) == b"v2"
    assert build.number == 2


def test_it_counts_the_age_of_a_file_from_the_build_of_another_process(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "0").write_bytes(b"built elsewhere")
    a_while_ago = time.time() - 50
    os.utime(tmp_path / "table" / "0", (a_while_ago, a_while_ago))
    table, now = MappedResource("table", Builds(), tmp_path, ttl=60), [1000.0]
    table.clock = lambda: now[0]
    assert bytes(table.get()) == b"built elsewhere"
    now[0] += 20
    table.get()
    assert table.tally().misses == 2


@forks
def test_it_never_maps_the_file_of_a_killed_builder(tmp_path):
    def build_and_die(path: Path) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def build_on(path: Path) -> None:
        with path.open("ab") as file:
            file.write(b"whole")

    table = MappedResource("table", build_and_die, tmp_path)
    child = os.fork()
    if not child:
        table.get()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert files(tmp_path) == ["unfinished"]
    table.load = build_on
    assert bytes(table.get()) == b"whole"
    assert files(tmp_path) == ["0"]


def test_it_never_maps_the_file_of_a_failed_build(tmp_path):
    def build(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    table = MappedResource("table", build, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        table.get()
    assert files(tmp_path) == []


def test_it_refuses_an_empty_table(tmp_path):
    table = MappedResource("table", lambda path: path.touch(), tmp_path)
    with pytest.raises(ValueError, match="build wrote nothing to the file"):
        table.get()
    assert files(tmp_path) == []


def test_it_has_no_keys(tmp_path):
    with pytest.raises(TypeError, match=r"is one table and has no keys: call get\(\) and look up \('a',\)"):
        MappedResource("table", Builds(), tmp_path).get("a")
