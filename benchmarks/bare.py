"""Celery without Punctual: a plain application with the same tasks."""

import os

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
