"""How does a job get the value of a secret? It calls `reveal` with the address that the value goes to.

Its one rule: `reveal` checks the host and the job (`jobs.messages.destinations`) before it inserts a value. For a step,
it checks the name of the step. Code outside a task, such as a shell, may use every secret, but only for its hosts.
"""

from celery import current_task

from jobs import http, secrets
from jobs.messages import destinations
from jobs.worker import context


def reveal(text: str, to: str | None = None) -> str:
    """The text with each `secret:NAME` replaced by its value, for a request to the address `to`.

    `to` is an address as `http.fetch` takes it. Without `to`, SECRET_JOBS_NAME must list the job. Raises `Invalid` (a
    ValueError) if the settings do not allow the host or the job, UnknownNameError if this process has no value.
    """
    names = secrets.named(text)
    url = http.locate(to) if names and to is not None else None
    job = _job() if names else None
    for name in names:
        if job is not None:
            destinations.check_job(name, job)
        if url is not None:
            destinations.check_host(name, url)
        elif job is not None:
            destinations.check_named(name, job)
    return secrets.reveal(text)


def _job() -> str | None:
    """The name of the calling task; None outside a task."""
    execution = context.of_caller()
    task = getattr(execution.request, "task", None) if execution else None
    return current_task.name if current_task else task
