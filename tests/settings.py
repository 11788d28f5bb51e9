"""Punctual's own settings, and one more app: a user's, with a `tasks.py` and its line in INSTALLED_APPS."""

from project.settings import *  # noqa: F403
from project.settings import DATABASES, INSTALLED_APPS
from tests.waiting import DEADLINE

INSTALLED_APPS = [*INSTALLED_APPS, "tests.app"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # slow ones are for people
# Otherwise every beat would bring the schedules that delete old rows among a test's own.
CELERY_RESULT_EXPIRES, CELERY_BEAT_SCHEDULE = None, {}

# On a busy machine a connection, another writer's turn or the start of a pool's child takes longer than usual.
patience = "timeout" if "sqlite3" in DATABASES["default"]["ENGINE"] else "connect_timeout"
DATABASES["default"]["OPTIONS"][patience] = int(DEADLINE)
CELERY_WORKER_PROC_ALIVE_TIMEOUT = DEADLINE
