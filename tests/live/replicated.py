"""The tests' settings with Django's documented primary/replica router; the replica REPLICA lags behind for good."""

import os
from typing import Any

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

DATABASES["replica"] = {**DATABASES["default"], "NAME": os.environ["REPLICA"]}
DATABASE_ROUTERS = ["tests.live.replicated.PrimaryReplicaRouter"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"  # sessions must not lag, either


class PrimaryReplicaRouter:
    """From Django's documentation, "Multiple databases"."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool:
        return True

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return True
