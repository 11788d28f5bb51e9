"""The same settings without Punctual's app, and with Celery's own habit of connecting to the database for each task."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [app for app in INSTALLED_APPS if app not in {"jobs", "tests.app"}]
CELERY_DB_REUSE_MAX = None
