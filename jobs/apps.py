"""Connects the app to Django and Celery: its signal receivers, once, after Django has loaded every model."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Punctual"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from jobs import checks
        from jobs.beat import rivals
        from jobs.ledger import outcomes, windows
        from jobs.messages import discovery
        from jobs.models import dates, routing
        from jobs.monitoring import nodes, statistics, strangers
        from jobs.rules import zones
        from jobs.schedules import calendar
        from jobs.worker import connection, guard, logs, refusals, resources, signals

        zones.use_newest()
        routing.install()
        dates.install()
        checks.connect()
        signals.connect()
        connection.connect()
        discovery.connect()
        calendar.connect()
        windows.connect()
        nodes.connect()
        outcomes.listen(outcomes.pause_failing)
        guard.connect()
        logs.connect()
        refusals.connect()
        resources.connect()
        rivals.connect()
        statistics.connect()
        strangers.connect()
