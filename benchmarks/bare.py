"""Celery without Punctual: a plain application with the same tasks."""

import os
from pathlib import Path
from typing import Any

from celery import Celery

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.bare_settings"

app = Celery("bare")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task(name="tests.nothing")
def nothing(*_: object) -> None:
    """Do nothing."""


@app.task(name="tests.answer", ignore_result=False)
def answer() -> int:
    return 42


@app.task(name="tests.stamp")
def stamp(path: str) -> None:
    """Write the current time to the file."""
    from tests.app.stamp import leave

    leave(path)


@app.task(name="tests.note", bind=True)
def note(self: Any, path: str) -> None:
    """Write a line with the id of the task."""
    with Path(path).open("a") as file:
        file.write(f"{self.request.id}\n")
