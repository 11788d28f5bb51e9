"""The Django project: settings, the Celery application, URLs, and the entry points for WSGI and ASGI servers."""

from project.celery import app as celery_app

__all__ = ["celery_app"]
