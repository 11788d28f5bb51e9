"""What does a worker tell about itself and its tasks? What Celery tells, with secrets masked.

Its one rule: the replies to `inspect` and the events, which Flower also shows, are masked like log lines: settings,
arguments and errors.
Celery masks by the names of settings: it misses addresses in lists and schedules, and a broker's password for a socket.
"""

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events import EventDispatcher
from celery.worker.control import Panel

from jobs.secrets import masked, masking


class Dispatcher(EventDispatcher):
    """Sends the events of a worker."""

    def send(self, type: str, *args: Any, **fields: Any) -> Any:  # noqa: A002 - Celery's name
        return super().send(type, *args, **(masked(fields) if self.enabled else fields))


class Events(CeleryEvents):
    """Celery's `app.events`. `jobs.worker.app.Application` names it."""

    dispatcher_cls = "jobs.worker.reports:Dispatcher"


def mask_replies() -> None:
    """Mask what this worker replies. A second call changes nothing."""
    for name in (name for name, info in Panel.meta.items() if info.type == "inspect"):
        if not hasattr(Panel.data[name], "__wrapped__"):
            Panel.data[name] = masking(Panel.data[name])
