"""Does the repository keep its shape: its files, its locked requirements, and its imports between modules?

The tests look only at files that git tracks. `jobs/__init__.py` sets the order of the rooms.
"""

import ast
import os
import re
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from django.conf import settings

from tests.servers import ROOT

FILES_AT_THE_TOP = {
    *("manage.py", "Makefile", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", ".gitignore"),
    *("Dockerfile", ".dockerignore", "docker-compose.yml", "Caddyfile", "gunicorn.conf.py"),
    *("conftest.py", "pyproject.toml", "pytest.ini", "requirements.in", "requirements.txt"),
    *("requirements-dev.in", "requirements-dev.txt", "requirements-audit.in", "requirements-audit.txt"),
}
FOLDERS_AT_THE_TOP = {"project", "jobs", "templates", "tests", "extras", ".ci"}
MAY_COME = {"benchmarks", "docs"}

PURE = {"jobs.cache.resources", "jobs.toolkit.rows"}  # and all of `rules`
NOT_PURE = {"django", "django_celery_beat", "django_celery_results", "environ", "kombu", "project", "psycopg", "redis"}


# Where code that may raise anything is called, and how often.
EDGES = {
    "jobs.rules.errors": 2,  # `logged`: threads, receivers, listeners, closing; `error_of`: a message, a task's router
    "jobs.cache.resources": 1,  # a load, whose error every waiting thread is given
    "jobs.messages.discovery": 1,  # the import of an app's tasks
    "jobs.beat.claim": 1,  # one schedule of a batch
    "jobs.beat.scheduler": 1,  # a tick
    "jobs.worker.consumer": 1,  # an acknowledgement
    "jobs.worker.logs": 1,  # a line of log
    "jobs.worker.loops": 1,  # what an `async def` job awaits
    "jobs.worker.signals": 1,  # the end of an attempt
    "jobs.worker.task": 1,  # the start of an attempt, in a process that a job has spoilt
}

# Modules that import an extra, where it is turned on.
EXTRAS = {"jobs.tracing": "opentelemetry"}

# Written in pieces, so that the pattern does not find itself.
MACHINE_PATHS = re.compile(r"(?<![\w.}>-])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/\w")


@cache
def files() -> tuple[str, ...]:
    """Every existing file that git tracks."""
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    listing = [*git, "ls-files", "-z", "--cached"]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("This is not a git working tree: its files are unknown.")
    if Path(top.strip()) != ROOT:
        pytest.skip(f"This copy lies inside another repository, {top.strip()}.")
    return tuple(name for name in listed.split("\0") if name and (ROOT / name).exists())


@cache
def modules() -> dict[str, Path]:
    """Every Python module of project/ and jobs/ except migrations, by its dotted name."""
    found = {}
    for path in [*ROOT.glob("project/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "migrations" not in path.parts and (path.stat().st_size or path.name != "__init__.py"):
            found[name] = path
    return found


def imports_of(path: Path) -> set[str]:
    """All imports of a module, late ones too. `from x import y` counts as x.y if that is a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)} imports relatively: write the full name."
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {member for member in members if member in modules()} or {str(node.module)}
    return names


def rooms() -> list[str]:
    """The rooms of the app, in the order of its docstring."""
    return re.findall(r"^    (\w+)/?  ", (ROOT / "jobs" / "__init__.py").read_text(), flags=re.MULTILINE)


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_it_has_only_the_agreed_files_at_the_top():
    tops = {name.partition("/")[0] for name in files()}
    of_punctual = {"jobs", "project", "tests"}
    apps = {app.partition(".")[0] for app in settings.INSTALLED_APPS} - of_punctual  # a user's own apps
    assert tops - MAY_COME - apps == FILES_AT_THE_TOP | FOLDERS_AT_THE_TOP
    assert {name for name in files() if name.startswith(".ci/")} == {".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_it_names_no_path_of_a_developers_machine():
    found = []
    for name in files():
        try:
            lines = (ROOT / name).read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{number}: {line}" for number, line in enumerate(lines, 1) if MACHINE_PATHS.search(line)]
    assert not found


def test_it_can_find_a_path_of_a_developers_machine():
    assert MACHINE_PATHS.search("see /" + "root/notes")
    assert MACHINE_PATHS.search("'/" + "home/me/punctual'")
    assert not MACHINE_PATHS.search("https://example.com/" + "work/1")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_it_locks_every_requirement_with_hashes(name):
    for line in requirements(name):
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+( ; [^\\]+?)?( --hash=sha256:[0-9a-f]{64})+$", line), line


def test_it_locks_every_requirement_and_the_same_versions_for_developers():
    locked, develop = (versions(f"requirements{suffix}.txt") for suffix in ("", "-dev"))
    assert locked.items() <= develop.items()
    for source, lock in (("requirements.in", locked), ("requirements-dev.in", develop)):
        asked = {normalised(line) for line in requirements(source) if not line.startswith("-")}
        assert asked <= set(lock)


def requirements(name: str) -> list[str]:
    """The requirements of a file without comments, each with its hashes in one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def normalised(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>~! ]", requirement, maxsplit=1)[0]).lower()


def versions(name: str) -> dict[str, str]:
    return {normalised(line): line.split("==")[1].split()[0] for line in requirements(name)}


def test_it_maps_every_room_and_no_other():
    assert sorted(rooms()) == sorted({room_of(module) for module in modules() if module.startswith("jobs.")} - {"apps"})


@pytest.mark.parametrize("module", sorted(module for module in modules() if module.startswith("jobs.")))
def test_it_imports_only_from_its_room_and_rooms_above(module):
    order = [*rooms(), "apps"]
    for imported in imports_of(modules()[module]):
        assert not imported.startswith("project"), f"{module} imports {imported}: the app must work in other projects."
        if imported.startswith("jobs."):
            assert order.index(room_of(imported)) <= order.index(room_of(module)), f"{module} imports {imported}."


def test_it_has_no_circular_imports():
    known = modules().keys()
    graph = {module: imports_of(path) & known - {module} for module, path in modules().items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the names of the modules


@pytest.mark.parametrize("room", rooms())
def test_it_opens_each_room_with_its_question_from_the_map(room):
    question = re.search(rf"^    {room}/?  +(.+?\?)", (ROOT / "jobs" / "__init__.py").read_text(), re.MULTILINE)[1]
    docstring = ast.get_docstring(ast.parse(modules()[f"jobs.{room}"].read_text()))
    assert docstring.lower().startswith(question.lower())


def test_it_imports_no_code_in_migrations():
    for path in ROOT.glob("jobs/migrations/*.py"):
        assert not {name for name in imports_of(path) if name.partition(".")[0] in {"jobs", "project"}}, path


def test_it_publishes_runs_in_one_module():
    publishing = {
        name for name, path in modules().items() if re.search(r"Envelopes|producer_pool\.acquire", path.read_text())
    }
    assert publishing == {"jobs.messages.dispatch", "jobs.messages.envelope"}


def test_it_ends_runs_in_one_module():
    ending = {name for name, path in modules().items() if re.search(r"\.(conclude|succeed)\(", path.read_text())}
    assert ending == {"jobs.ledger.outcomes"}


def test_it_catches_every_error_at_the_named_edges_only():
    broad = re.compile(r"except\b[^\n]*\b(?:Base)?Exception\b|except:|suppress\([^)]*\b(?:Base)?Exception\b")
    caught = {name: len(broad.findall(path.read_text())) for name, path in modules().items()}
    assert {name: number for name, number in caught.items() if number} == EDGES


def test_it_writes_states_in_the_models_only():
    bare = re.compile(r"\bupdate\((?:[^()]|\([^()]*\))*\bstate\b[\"']?[=:]")
    writing = {name for name, path in modules().items() if bare.search(path.read_text())}
    assert writing <= {"jobs.toolkit.mail", "jobs.models.alerts"}  # of deliveries, and of notices


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.startswith("jobs.rules") or name in PURE))
def test_it_keeps_pure_modules_pure(module):
    imported = imports_of(modules()[module])
    assert not {name.partition(".")[0] for name in imported} & NOT_PURE
    assert all(name.startswith("jobs.rules") for name in imported if name.startswith("jobs"))


def test_it_imports_only_packages_that_production_installs():
    providers = packages_distributions()
    installed = set(versions("requirements.txt"))
    for module, path in modules().items():
        known = installed | set(versions(f"extras/{EXTRAS[module]}.txt") if module in EXTRAS else ())
        for root in {imported.partition(".")[0] for imported in imports_of(path)} & set(providers):
            assert {normalised(name) for name in providers[root]} & known, f"{module} imports {root}"
