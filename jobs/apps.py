"""Connects the app to Django and Celery: its signal receivers, once, after Django has loaded every model."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate

from jobs import zones


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Punctual"
    default_auto_field = "django.db.models.BigAutoField"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        zones.use_newest()  # before any model makes a zone: two that were made of different rules are not equal

    def ready(self) -> None:
        from jobs import checks
        from jobs.alerts import watching
        from jobs.beat import rivals
        from jobs.ledger import outcomes
        from jobs.messages import discovery
        from jobs.models import dates, rights, routing, sqlite_files, unknown_zones
        from jobs.monitoring import nodes, statistics, strangers
        from jobs.schedules import calendar
        from jobs.worker import connection, control, guard, logs, refusals, resources, signals, traces

        for module in (routing, dates, sqlite_files, unknown_zones):
            module.install()
        post_migrate.connect(rights.make_permissions, sender=self)
        outcomes.listen(outcomes.pause_failing)
        for module in (checks, signals, connection, discovery, calendar, nodes, guard, control, logs, refusals):
            module.connect()
        for module in (resources, rivals, statistics, strangers, watching, traces):
            module.connect()
