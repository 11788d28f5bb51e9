"""The documents say what the code does: every setting, command, job and state stands in them, and no other."""

import re
from pathlib import Path

from jobs.models import TRANSITIONS, State
from project.celery import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def first_cells(text: str, heading: str) -> set[str]:
    """The names in code type that open the rows of the table under a heading."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    rows = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_it_keeps_the_documents_short_enough_to_be_read():
    assert len(README.splitlines()) <= 250
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_it_documents_every_setting_and_no_other():
    source = (ROOT / "project" / "settings.py").read_text()
    read = re.findall(r'read\(\s*"\w+", "(\w+)"', source)
    assert first_cells(README, "Settings") == {*read, "JOB_SECRET_NAME"}


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


def test_it_draws_the_transitions_that_the_code_allows():
    drawn = set(re.findall(r"^    (\w+) --> (\w+)", ARCHITECTURE, re.MULTILINE))
    assert drawn == {(str(state), str(after)) for state, followers in TRANSITIONS.items() for after in followers}


def test_it_names_a_test_for_every_invariant():
    rows = re.findall(r"^\| (I\d) \| .* \| (.*) \|$", ARCHITECTURE, re.MULTILINE)
    assert [name for name, _ in rows] == [f"I{number}" for number in range(1, 10)]
    for _, paths in rows:
        assert all((ROOT / path).is_file() for path in paths.split(", "))


def test_it_shows_workflows_as_the_tests_run_them():
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "workflows.md").read_text(), re.DOTALL)
    _, _, run = (ROOT / "tests" / "app" / "workflows.py").read_text().partition('"""\n\n')
    assert "\n\n".join(shown) == run


def test_it_refers_to_files_that_exist():
    for text in (README, ARCHITECTURE):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / target).is_file(), target
