"""The workflows of docs/workflows.md, each as a run: the files that it writes, and the steps that the ledger shows."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.urls import reverse

from jobs.models import State
from tests.making import ends, send

pytestmark = pytest.mark.django_db(transaction=True)
COVERS = {f"thumbnails/cover{number}-80": f"cover{number}, 80 wide" for number in range(1, 26)}


class Example(NamedTuple):
    job: str
    args: list[Any]
    steps: str
    left: dict[str, str]
    state: State = State.SUCCEEDED


EXAMPLES = [
    Example("export_orders", ["2026-10-31"], "3 of 3 steps", {"exports/2026-10-31": "order\n7\n8\n9"}),
    Example(
        "make_thumbnails",
        ["hat"],
        "3 of 3 steps",
        {f"thumbnails/hat-{width}": f"hat, {width} wide" for width in (80, 320, 1280)},
    ),
    Example(
        "close_month",
        ["2026-10", [1, 2]],
        "3 of 3 steps",
        {"invoices/2026-10-1": "10 EUR", "invoices/2026-10-2": "20 EUR", "totals/2026-10": "30"},
    ),
    Example("close_month", ["2026-11", [3, -1]], "2 of 3 steps", {"invoices/2026-11-3": "30 EUR"}, State.FAILED),
    Example(
        "close_year",
        [2026, [4, 5]],
        "7 of 7 steps",
        {f"invoices/2026-{half}-{customer}": f"{customer}0 EUR" for half in ("first", "second") for customer in (4, 5)}
        | {"totals/2026-first": "90", "totals/2026-second": "90", "totals/2026": "180"},
    ),
    Example(
        "remind",
        [["ada", "bob"]],
        "1 of 1 step",
        {"mails/reminder for ada": "reminder for ada", "mails/reminder for bob": "reminder for bob"},
    ),
    Example(
        "make_previews",
        [["cap", "tie"]],
        "1 of 1 step",
        {f"thumbnails/{photo}-{width}": f"{photo}, {width} wide" for photo in ("cap", "tie") for width in (80, 320)},
    ),
    Example("make_covers", [1, 25], "3 of 3 steps", COVERS),
    Example(
        "welcome",
        [6],
        "3 of 3 steps",
        {
            "invoices/entry-6": "60 EUR",
            "mails/welcome, 6": "welcome, 6",
            "mails/6 is a customer now": "6 is a customer now",
        },
    ),
    Example("bill", [-2, "2026-10"], "2 of 2 steps", {"mails/-2 has no invoice": "-2 has no invoice"}, State.FAILED),
    Example(
        "publish_catalogue",
        [],
        "2 of 2 steps",
        {"thumbnails/catalogue-320": "catalogue, 320 wide", "mails/the catalogue is out": "the catalogue is out"},
    ),
    Example(
        "take_stock",
        [["north", "south"]],
        "8 of 8 steps",
        {"totals/north": "300", "totals/south": "100", "totals/stock": "400"},
    ),
]


def test_it_runs_every_workflow_of_the_documentation(processes, eventually, tmp_path, admin_client):
    runs = [send(f"tests.app.workflows.{example.job}", *example.args) for example in EXAMPLES]
    processes.start_worker(env={"VAR_DIR": str(tmp_path)})
    for run in runs:
        eventually(lambda run=run: ends(run))
    ended = [(run.task, run.state, progress_of(admin_client, run)) for run in runs]
    assert ended == [(f"tests.app.workflows.{name}", state, steps) for name, _, steps, _, state in EXAMPLES]
    assert left_in(tmp_path / "files") == {name: text for example in EXAMPLES for name, text in example.left.items()}


def progress_of(client, run) -> str:
    """The number of steps on the page of a run."""
    page = client.get(reverse("admin:jobs_run_change", args=[run.id])).content.decode()
    return re.search(r"\d+ of \d+ steps?", page)[0]


def left_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
