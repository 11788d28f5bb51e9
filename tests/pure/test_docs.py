"""Do the documents match the code? They name every setting, command, job, public name and state, and no other."""

import ast
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from django.apps import apps

import jobs
from jobs import toolkit
from jobs.models import TRANSITIONS, State
from project.celery import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PUBLIC_NAMES = [*toolkit.__all__, "files", "http", "mail", "webhooks"]  # the last four are modules
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def first_cells(text: str, heading: str) -> set[str]:
    """The names in backticks in the first column of the table under a heading."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    rows = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_it_keeps_the_documents_short():
    assert len(README.splitlines()) <= 250
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_it_documents_every_setting_and_no_other():
    source = (ROOT / "project" / "settings.py").read_text()
    read = re.findall(r'read\(\s*"\w+", "(\w+)"', source)
    assert first_cells(README, "Settings") == {
        *read,
        *("JOB_SECRET_NAME", "SECRET_HOSTS_NAME", "SECRET_JOBS_NAME", "WEBHOOK_KEYS_NAME"),
        *("CHANNEL_URL_NAME", "CHANNEL_KEY_NAME"),
    }


def test_it_documents_every_command_and_no_other():
    commands = {path.stem for path in (ROOT / "jobs" / "management" / "commands").glob("[a-z]*.py")}
    targets = re.search(r"\.PHONY:(.*)", (ROOT / "Makefile").read_text())[1].split()
    expected = {f"manage.py {name}" for name in commands} | {f"make {name}" for name in targets if name != "install"}
    assert first_cells(README, "Commands") == expected


def test_it_documents_every_ready_made_job_and_no_other():
    app.loader.import_default_modules()
    assert first_cells(README, "Ready-made jobs") == {name for name in app.tasks if re.fullmatch(r"jobs\.\w+", name)}


def test_it_names_every_state():
    life = README.split("The life of a run:")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", life)) == set(State.values)


def test_it_draws_the_allowed_transitions():
    drawn = set(re.findall(r"^    (\w+) --> (\w+)", ARCHITECTURE, re.MULTILINE))
    assert drawn == {(str(state), str(after)) for state, followers in TRANSITIONS.items() for after in followers}


def test_it_names_a_test_for_every_invariant():
    rows = re.findall(r"^\| (I\d) \| .* \| (.*) \|$", ARCHITECTURE, re.MULTILINE)
    assert [name for name, _ in rows] == [f"I{number}" for number in range(1, 10)]
    for _, paths in rows:
        assert all((ROOT / path).is_file() for path in paths.split(", "))


def test_it_names_a_test_for_every_line_about_security():
    rows = re.findall(r"^\| (\w.*) \| (.*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for line, paths in rows:
        assert all(path.startswith("tests/") and (ROOT / path).is_file() for path in paths.split(", ")), line


def test_it_shows_the_workflows_that_the_tests_run():
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "workflows.md").read_text(), re.DOTALL)
    _, _, run = (ROOT / "tests" / "app" / "workflows.py").read_text().partition('"""\n\n')
    assert "\n\n".join(shown) == run


def test_it_documents_every_name_that_jobs_import_and_no_other():
    imports = (ROOT / "docs" / "jobs.md").read_text()
    assert first_cells(imports, "Imports") == set(PUBLIC_NAMES)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_it_explains_every_name_that_jobs_import(name):
    docstring = resolve_name(f"jobs.toolkit.{name}").__doc__
    assert docstring
    assert not docstring.startswith(f"{name}("), "It has only the signature that Python generates for dataclasses."


def test_it_describes_every_room_and_no_other():
    rooms = re.findall(r"^    (\w+)/?  ", jobs.__doc__, re.MULTILINE)
    table = ARCHITECTURE.split("| room | holds |\n")[1].split("\n\n")[0]
    described = [
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)
    ]
    assert described == rooms


@each_document
def test_it_shows_imports_from_the_public_modules_only(document):
    for snippet in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(snippet)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            ours = {name for name in names if name.partition(".")[0] in {"jobs", "project"}}
            assert ours <= {"jobs.toolkit", "jobs.models"}, ours


@each_document
def test_it_names_only_jobs_and_modules_that_exist(document):
    app.loader.import_default_modules()
    for name in set(re.findall(r"\bjobs(?:\.\w+)+", document.read_text())) - {"jobs.md"}:
        assert name in app.tasks or name in permissions() or exists(name), (
            f"{document.name} names {name}, which does not exist."
        )


def permissions() -> set[str]:
    """The names of the permissions for our models."""
    models = apps.get_app_config("jobs").get_models()
    return {f"jobs.{act}_{model._meta.model_name}" for model in models for act in model._meta.default_permissions}


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module, or to a member of one."""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@each_document
def test_it_refers_to_existing_files(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert (document.parent / target).is_file(), target
