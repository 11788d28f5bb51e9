"""Would another scheduler run the schedules a second time? Beat, `worker -B` and `checks` ask before they start.

Its one rule: with Punctual, only its own scheduler may tick. django-celery-beat's runs every schedule without a row in
the ledger, and any other one the entries of CELERY_BEAT_SCHEDULE. The error names the line to write.

Limits: DatabaseScheduler writes these entries before a beat can refuse it. `monitoring.strangers` finds one that a
process without this app uses.
"""

from typing import Any

from celery import signals
from celery.utils.imports import load_extension_class_names, symbol_by_name

from jobs.beat.scheduler import Scheduler


def fault(scheduler: Any) -> str:
    """The fault of this scheduler, a class or a name as for `-S`; empty if it is ours, or cannot be imported."""
    names: Any = load_extension_class_names("celery.beat_schedulers")
    try:
        found = symbol_by_name(scheduler, aliases=dict(names))
    except (AttributeError, ImportError, ValueError):
        return ""  # Celery says so itself
    if isinstance(found, type) and issubclass(found, Scheduler):
        return ""
    name = getattr(found, "__qualname__", str(scheduler))
    return (
        f"The scheduler {name} would run the jobs of these schedules a second time, without a row in the ledger. Write"
        ' CELERY_BEAT_SCHEDULER = "jobs.beat:Scheduler" in the settings, and start beat without -S.'
    )


def _refuse(scheduler: Any) -> None:
    if found := fault(scheduler):
        raise SystemExit(found)  # Celery swallows an Exception of a receiver


def _on_beat_init(sender: Any, **_: Any) -> None:
    _refuse(sender.scheduler_cls)


def _on_worker_init(instance: Any, options: dict[str, Any], **_: Any) -> None:
    if options.get("beat"):
        _refuse(options.get("scheduler") or instance.app.conf.beat_scheduler)


def connect() -> None:
    signals.beat_init.connect(_on_beat_init, dispatch_uid="jobs.beat.rivals")
    signals.celeryd_init.connect(_on_worker_init, dispatch_uid="jobs.beat.rivals.worker")
