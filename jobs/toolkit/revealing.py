"""How does a job get the value of a secret? By `reveal`, which asks where the value goes.

Its one rule: it checks the host and the job (`jobs.messages.destinations`) before it inserts a value. A step counts by
its own name. Code outside of a task, such as a shell or a test, may use every secret, but sends it to its hosts only.
"""

from celery import current_task

from jobs import secrets
from jobs.messages import destinations
from jobs.toolkit import http
from jobs.worker import context


def reveal(text: str, to: str | None = None) -> str:
    """The text with each `secret:NAME` replaced by its value, to be sent to the address `to`.

    `to` is an address as `http.fetch` takes it. Without it the job must be listed in SECRET_JOBS_NAME. Raises `Invalid`
    (a ValueError) if the secret may not go there or is not for this job, UnknownNameError if this process has no value.
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
    """The name of the task that calls; None outside of a task."""
    execution = context.of_caller()
    task = getattr(execution.request, "task", None) if execution else None
    return task or (current_task.name if current_task else None)
