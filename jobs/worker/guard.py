"""Does this process's Celery application start each attempt of a run only once? Beat, workers and `checks` ask.

Its one rule: where `app.Task` is no `Job`, beat and worker do not start: a message may come several times, and only the
guard of `Job` makes that harmless. The error names the line to write.

Limit: a worker that does not load this app cannot refuse. `jobs.monitoring.strangers` finds it.
"""

from typing import Any

from celery import signals

from jobs.worker.task import Job


def fault(app: Any) -> str:
    """What is wrong with this Celery application, and the lines to write; empty if its tasks are jobs."""
    if issubclass(app.Task, Job):
        return ""
    name = app.main or "project"
    return (
        f"The Celery application {name!r} is a plain one: each repeated message would execute its run again. Make it"
        f" with `from jobs.worker.app import Application` and `app = Application({name!r})`,"
        " and import it in the project's __init__.py."
    )


def _on_worker_init(sender: Any, **_: Any) -> None:
    if found := fault(sender.app):
        raise SystemExit(found)  # Celery swallows an Exception of a receiver


def connect() -> None:
    signals.worker_init.connect(_on_worker_init, dispatch_uid="jobs.worker.guard")
