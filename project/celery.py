"""The Celery application of this project."""

import os

from jobs.worker.app import Application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Application("project")
app.config_from_object("project.conf:own", namespace="CELERY")
app.autodiscover_tasks()
