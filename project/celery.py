"""The Celery application of this project, and how its processes log."""

import logging.config
import os
from typing import Any

from celery import signals

from jobs.worker.app import Application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")


@signals.setup_logging.connect
def configure_logging(**_: Any) -> None:
    """Configure logging from the settings in beat and workers, as Django does in the web process."""
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)


app = Application("project")
app.config_from_object("project.conf:own", namespace="CELERY")
app.autodiscover_tasks()
