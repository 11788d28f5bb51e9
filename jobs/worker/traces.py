"""Which part of a trace is an execution? A span from the start of its body until its end is recorded.

Its one rule: it continues the trace that its message names, that of the code that started the run or sent the step; the
steps that it sends belong to its span.
Limit: an execution whose process is killed leaves no span.
"""

from typing import Any

from celery import signals

from jobs import tracing
from jobs.messages import baggage
from jobs.worker.context import Execution


def begin(execution: Execution) -> None:
    """Open the span of an execution; it is closed when the execution is left."""
    if not tracing.is_on():
        return
    request = execution.request
    sent = request.headers or {} if request.is_eager else request  # eager: Celery keeps the headers apart
    span = tracing.span(request.task, "consumer", [sent.get(tracing.HEADER)], _attributes(execution))
    execution.span = execution.scope.enter_context(span)


def failed(execution: Execution, error: BaseException) -> None:
    """Mark the span of an execution whose task has failed."""
    if execution.span is not None:
        tracing.fail(execution.span, error)


def _attributes(execution: Execution) -> dict[str, Any]:
    request = execution.request
    found = {
        "punctual.run": str(execution.run_id),
        "punctual.attempt": execution.attempt,
        "punctual.step": execution.step,
        "punctual.schedule": request.get("periodic_task_name"),
        "messaging.operation.name": "process",
        "messaging.destination.name": (request.delivery_info or {}).get("routing_key"),
        "messaging.consumer.group.name": request.hostname,
    }
    return {name: value for name, value in found.items() if value is not None}


def connect() -> None:
    """Turn tracing on if OpenTelemetry's variables ask for it. Raises ImproperlyConfigured."""
    tracing.connect()
    if tracing.is_on():
        baggage.register(tracing.headers, tracing.HEADER)
        signals.worker_process_shutdown.connect(tracing.stop, dispatch_uid="jobs.worker.traces")
