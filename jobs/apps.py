"""Joins the app to Django and Celery: receivers are connected here, once, when every model is known."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Punctual"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from jobs import base, calendar, nodes, sharing, statistics

        base.connect()
        calendar.connect()
        nodes.connect()
        sharing.connect()
        statistics.connect()
