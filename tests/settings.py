"""Punctual's own settings, and one more app: a user's, with a `tasks.py` and its line in INSTALLED_APPS."""

from project.settings import *  # noqa: F403
from project.settings import DATABASES, INSTALLED_APPS
from tests.waiting import DEADLINE

INSTALLED_APPS = [*INSTALLED_APPS, "tests.app"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # slow ones are for people
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["OPTIONS"]["timeout"] = DEADLINE  # for those who wait for another writer
CELERY_RESULT_EXPIRES = None  # or every beat would bring the schedule that deletes old results among a test's own
