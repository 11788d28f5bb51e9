"""Which database holds our rows? The default one, for every read and write, whatever the project's routers say.

Its one rule: rows of Punctual, django-celery-beat and django-celery-results are read where they are written. A replica
lags: a claim would miss a schedule, a retry its run, and the last member of a chord the others. Statements without a
model, such as the database's clock, use the default database, too; a transaction spans one database only.

Limits: `using()` still goes where the caller says. A test that overrides DATABASE_ROUTERS replaces this router, too.
"""

from typing import Any

from django.db import DEFAULT_DB_ALIAS, router

OURS = frozenset({"jobs", "django_celery_beat", "django_celery_results"})  # labels of apps


class Router:
    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return DEFAULT_DB_ALIAS if model._meta.app_label in OURS else None

    db_for_write = db_for_read

    def allow_relation(self, one: Any, other: Any, **_: Any) -> bool | None:
        return True if {one._meta.app_label, other._meta.app_label} <= OURS else None

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        return db == DEFAULT_DB_ALIAS if app_label in OURS else None


def install() -> None:
    """Ask this router before those of DATABASE_ROUTERS."""
    router.routers.insert(0, Router())
