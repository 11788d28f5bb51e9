"""What does a worker tell about its configuration? What Celery tells, with secrets masked.

Its one rule: settings and arguments in the replies to `inspect`, which Flower also shows, are masked like log lines.
Celery masks by the names of settings: it misses addresses in lists and schedules, and a broker's password for a socket.
"""

from celery.worker.control import Panel

from jobs.secrets import masking


def mask_replies() -> None:
    """Mask what this worker replies. A second call changes nothing."""
    for name in (name for name, info in Panel.meta.items() if info.type == "inspect"):
        if not hasattr(Panel.data[name], "__wrapped__"):
            Panel.data[name] = masking(Panel.data[name])
