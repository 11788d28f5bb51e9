"""The same settings without Punctual's app, and with Celery's default of a new database connection for each task."""

from tests.settings import *  # noqa: F403
from tests.settings import CELERY_RESULT_BACKEND, INSTALLED_APPS

# Pages of the admin, and a middleware that takes uploads, need Punctual.
INSTALLED_APPS = [app for app in INSTALLED_APPS if app not in {"jobs", "project.admin.Config", "tests.app"}]
ROOT_URLCONF = "benchmarks.bare_site"
MIDDLEWARE = [  # of a new Django project
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
CELERY_WORKER_CONSUMER = "celery.worker.consumer:Consumer"
CELERY_DB_REUSE_MAX = None
if CELERY_RESULT_BACKEND.startswith("jobs."):
    CELERY_RESULT_BACKEND = "django-db"
