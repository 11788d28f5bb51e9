"""What do people see and do in Django's admin? Schedules, runs, nodes, files, results, resources, webhooks, alerts.

Its one rule: a page shows the ledger and calls other modules to act. A form refuses a schedule that cannot run, with
the calendar's sentence. A schedule saved otherwise is flagged with the same sentence. Runs are read-only.
"""

from jobs.admin import (
    alerts,
    audit,
    catalogue,
    channels,
    files,
    resources,
    results,
    runs,
    schedules,
    set_aside,
    silences,
    timings,
    tokens,
    webhooks,
)

__all__ = [
    "alerts",
    "audit",
    "catalogue",
    "channels",
    "files",
    "resources",
    "results",
    "runs",
    "schedules",
    "set_aside",
    "silences",
    "timings",
    "tokens",
    "webhooks",
]
