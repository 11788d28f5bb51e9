"""Jobs about a row that a request has written, and a job that starts another one."""

from pathlib import Path
from typing import Any

from celery import shared_task
from django.contrib.auth.models import Group
from django.db import transaction

from jobs.toolkit import run_job


@shared_task(name="tests.find")
def find(path: str, name: str) -> None:
    """Write a line: whether a row has this name."""
    with Path(path).open("a") as file:
        file.write("found\n" if Group.objects.filter(name=name).exists() else "missing\n")


@shared_task(name="tests.pass_on")
def pass_on(path: str, name: str, **how: Any) -> None:
    """Write a row and start `tests.find` for it, in one transaction; fail afterwards if told so."""
    with transaction.atomic():
        Group.objects.create(name=name)
        run_job("tests.find", path=path, name=name)
    if how.get("fail"):
        raise ValueError("after the commit")
