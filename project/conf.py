"""Which settings does Celery know? Those of its namespace, under Celery's own names.

    CELERY_BROKER_URL = ...    # celery.conf.broker_url

Its one rule: Celery receives no other setting of Django. `celery report`, `celery inspect` and Flower print all that it
receives, people paste that into bug reports, and Celery masks values by its own names only. What it prints is masked
like log lines, too (jobs/worker/app.py, jobs/worker/reports.py).
Limit: a setting without CELERY_ that Celery asks for by name, such as TIME_ZONE or a name of Celery 3, is found as with
Celery's own `namespace`, but not printed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings

PREFIX = "CELERY_"


class Own(Mapping[str, Any]):
    """The settings that begin with CELERY_, read each time, so that Django's `override_settings` works."""

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(settings, name if name.isupper() else f"{PREFIX}{name.upper()}")
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(PREFIX).lower() for name in dir(settings) if name.startswith(PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


own = Own()
