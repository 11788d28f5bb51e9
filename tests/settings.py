"""Punctual's own settings, and one more app: a user's, with a `tasks.py` and its line in INSTALLED_APPS."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS, VAR_DIR

INSTALLED_APPS = [*INSTALLED_APPS, "tests.app"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # slow ones are for people
CELERY_RESULT_EXPIRES = None  # or every beat would bring the schedule that deletes old results among a test's own
MEDIA_ROOT = VAR_DIR / "media"  # where the jobs of tests.app.workflows save
